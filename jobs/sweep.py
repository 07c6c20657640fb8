#!/usr/bin/env python3
"""Runs the tasks of a grid file: one task, one `fedpdpo run`, one run file. See gridfile.py for the format.

    sweep.py GRID --list | --count           what there is to do, and what is done
    sweep.py GRID --local -j 2               runs all here, two at a time, skipping what is done
    sweep.py GRID --task N                   runs one (what array.sbatch does)
    sweep.py GRID --submit --limit 8         a Slurm job array of what is not done, eight tasks at a time

A task is done if its run file records the options that the grid and its config file give. One that was made with other
options counts as a failure, said with the options, until --overwrite runs the task again and replaces the file. Once
there are run files, this needs h5py (.venv/bin/python).
A run that a signal stops leaves a checkpoint and exits with 75: under Slurm the task is requeued, here it is started
again, each a bounded number of times, and goes on from its checkpoint. Ctrl-C lets all runs write a checkpoint and
stop; twice kills them.
Exit codes: 0 all done; 1 some failed; 2 bad usage or grid; 75 stopped at a checkpoint; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from done import Survey, discard_other_checkpoints, survey
from gridfile import GridError, Task, check_inputs, read_grid
from launch import EXIT_REQUEUE, Launcher, Run

HERE = Path(__file__).resolve().parent
EXIT_BAD_INPUT = 2
POLL_SECONDS = 0.1


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = parse_arguments(argv)
    try:
        tasks = read_grid(args.grid)
        if args.count:
            print(len(tasks))
            return 0
        if args.list:
            return list_tasks(tasks)
        if any(task.trials for task in tasks):
            raise GridError(f"{args.grid}: trials: expected none in a sweep; tune.py runs this grid")
        launcher = Launcher(args.program or default_program(), shlex.split(args.mpirun), args.ranks)
        if args.submit:
            return submit(tasks, args)
        if args.local:
            found = survey(tasks, args.overwrite)
            check_inputs(args.grid, found.waiting)
            return Local(tasks, launcher, args.jobs, args.restarts, args.overwrite).run(found)
        if not 0 <= args.task < len(tasks):
            raise GridError(f"{args.grid}: --task: expected 0 to {len(tasks) - 1}, found {args.task}")
        return run_task(tasks[args.task], launcher, args.restarts, args.overwrite)
    except GridError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("grid", type=Path, metavar="GRID")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="one line a task: number, done or not, options")
    what.add_argument("--count", action="store_true", help="number of tasks")
    what.add_argument("--task", type=int, metavar="N", help="run task N, counted from 0")
    what.add_argument("--local", action="store_true", help="run all tasks on this machine")
    what.add_argument("--submit", action="store_true", help="submit a Slurm job array")
    add("-j", "--jobs", type=positive, default=1, metavar="N", help="--local: runs at a time (default: %(default)s)")
    add("--ranks", type=positive, default=int(os.environ.get("SLURM_NTASKS", "1")), metavar="R",
        help="MPI ranks of a run (default: $SLURM_NTASKS, else 1)")
    add("--mpirun", default="mpirun", metavar="CMD", help="how ranks are started; '-n R' is added; empty: directly, "
        "without MPI's launcher (default: %(default)s)")
    add("--program", type=Path, metavar="FILE", help="fedpdpo (default: $FEDPDPO_BIN, build/fedpdpo, or on the PATH)")
    add("--restarts", type=int, metavar="N", help="how often a run that exits with 75 is started again "
        "(default: 3 here, 100 under Slurm)")
    add("--overwrite", action="store_true", help="run tasks again whose run files were made with other options, and "
        "replace these and their checkpoints")
    add("--limit", type=positive, metavar="N", help="--submit: most tasks at a time")
    add("--sbatch", default="", metavar="OPTIONS", help="--submit: further options, as in --sbatch='-p gpu -t 2:00:00'")
    args = parser.parse_args(argv)
    if not args.mpirun.strip() and args.ranks > 1:
        parser.error("--ranks: needs --mpirun")
    return args


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def default_program() -> Path:
    """$FEDPDPO_BIN, else this checkout's build, else the one on the PATH."""
    if os.environ.get("FEDPDPO_BIN"):
        return Path(os.environ["FEDPDPO_BIN"])
    built = HERE.parent / "build" / "fedpdpo"
    return built if built.exists() else Path("fedpdpo")


def list_tasks(tasks: list[Task]) -> int:
    found = survey(tasks)
    state = {task.index: reason for task, reason in found.stale} | {task.index: "done" for task in found.done}
    for task in tasks:
        print(f"{task.index}\t{state.get(task.index, '-')}\t{shlex.join(task.arguments())}")
    return 0


class Local:
    """All tasks on this machine, a few at a time."""

    def __init__(self, tasks: list[Task], launcher: Launcher, jobs: int, restarts: int | None,
                 overwrite: bool = False) -> None:
        self.tasks, self.launcher, self.jobs, self.overwrite = tasks, launcher, jobs, overwrite
        self.restarts = 3 if restarts is None else restarts
        self.running: list[Run] = []
        self.failed: list[tuple[Task, str]] = []
        self.finished = 0
        self.signals: list[int] = []
        self.stopped_for = 0

    def run(self, found: Survey | None = None) -> int:
        found = found or survey(self.tasks, self.overwrite)
        waiting, done_before = found.waiting, len(found.done)
        say(f"{len(self.tasks)} tasks, {done_before} done before, {self.jobs} at a time")
        for task, reason in found.stale:
            self.fail(task, reason)
        if self.overwrite:
            for task in waiting:
                make_way(task)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _: self.signals.append(received))
        self.launcher.share_this_machine()
        while self.running or (waiting and not self.signals):
            while waiting and len(self.running) < self.jobs and not self.signals:
                self.running.append(self.launcher.start(waiting.pop(0), log=True))
            time.sleep(POLL_SECONDS)
            self.pass_signals_on()
            for run in [run for run in self.running if run.poll() is not None]:
                self.settle(run)
        return self.report(done_before)

    def pass_signals_on(self) -> None:
        """The first signal lets the runs checkpoint, another one kills them."""
        if len(self.signals) <= self.stopped_for:
            return
        if self.stopped_for == 0:
            say(f"stopping {len(self.running)} runs at a checkpoint; once more kills them")
        for run in self.running:
            run.stop(kill=self.stopped_for > 0)
        self.stopped_for = len(self.signals)

    def settle(self, run: Run) -> None:
        self.running.remove(run)
        code = run.poll()
        if code == 0 and run.task.out.exists():
            self.finished += 1
            say(f"done {run.task.out} ({run.seconds():.0f} s)")
        elif self.signals:
            say(f"stopped {run.task.out} ({'at a checkpoint' if code == EXIT_REQUEUE else f'exit code {code}'})")
        elif code == EXIT_REQUEUE and run.attempt < self.restarts:
            say(f"restarting {run.task.out} (exit code 75)")
            self.running.append(self.launcher.start(run.task, log=True, attempt=run.attempt + 1))
        else:
            reason = run.last_line() if code else "exit code 0, but the run file is missing"
            self.fail(run.task, f"exit code {code}: {reason}" if code else reason)

    def fail(self, task: Task, reason: str) -> None:
        self.failed.append((task, reason))
        say(f"failed {task.out}: {reason}")

    def report(self, done_before: int) -> int:
        left = len(self.tasks) - done_before - self.finished - len(self.failed)
        say(f"{self.finished} done, {done_before} done before, {len(self.failed)} failed, {left} left")
        for task, reason in self.failed:
            say(f"  task {task.index} {task.out}: {reason}")
        if self.signals:
            return 128 + self.signals[0]
        return 1 if self.failed else 0


def make_way(task: Task) -> None:
    """--overwrite: what a run with other options has left is replaced."""
    if task.overwrite:
        say(f"{task.out}: not this task's run, is replaced when the new one is done")
    if discard_other_checkpoints(task):
        say(f"{task.out}: removed the checkpoints of a run with other options")


def run_task(task: Task, launcher: Launcher, restarts: int | None, overwrite: bool) -> int:
    """One task in the foreground; signals ask the run for a checkpoint."""
    found = survey([task], overwrite)
    for _, reason in found.stale:
        say(f"failed {task.out}: {reason}")
        return 1
    if found.done:
        say(f"{task.out}: done before")
        return 0
    task = found.waiting[0]
    if overwrite:
        make_way(task)
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    received: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: received.append(got))
    run = launcher.start(task, log=False, attempt=restart)
    passed_on = 0
    while run.poll() is None:
        time.sleep(POLL_SECONDS)
        if len(received) > passed_on:
            run.stop(kill=received.count(signal.SIGINT) > 1)
            passed_on = len(received)
    code = run.poll()
    if code == EXIT_REQUEUE and "SLURM_JOB_ID" in os.environ:
        if restart >= (100 if restarts is None else restarts):
            say(f"{task.out}: requeued {restart} times, which is enough")
        elif not requeue():
            say(f"{task.out}: stopped at a checkpoint and could not be requeued; submit again to go on")
    elif code == 0 and not task.out.exists():
        say(f"{task.out}: exit code 0, but the run file is missing")
        return 1
    return code if code >= 0 else 128 - code


def requeue() -> bool:
    """Puts this very job (of an array: this very task) back into Slurm's queue."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    say(f"requeueing job {job}")
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0


def submit(tasks: list[Task], args: argparse.Namespace) -> int:
    """One job array of the tasks that are not done; 1 if others' run files were made with other options."""
    found = survey(tasks, args.overwrite)
    left = [task.index for task in found.waiting]
    check_inputs(args.grid, found.waiting)
    for task, reason in found.stale:
        say(f"not submitted: task {task.index} {task.out}: {reason}")
    failed = 1 if found.stale else 0
    if not left:
        say("nothing to submit" if found.stale else "nothing to do, all run files exist")
        return failed
    if shutil.which("sbatch") is None:
        raise GridError("--submit: sbatch is not on the PATH; --local runs the grid here")
    logs = tasks[left[0]].out.parent
    logs.mkdir(parents=True, exist_ok=True)
    limit = f"%{args.limit}" if args.limit else ""
    forward = ["--mpirun", args.mpirun]
    if args.program:
        forward += ["--program", str(args.program)]
    if args.restarts is not None:
        forward += ["--restarts", str(args.restarts)]
    if args.overwrite:
        forward.append("--overwrite")
    command = ["sbatch", f"--array={ranges(left)}{limit}", f"--job-name={args.grid.stem}", f"--ntasks={args.ranks}",
               f"--output={logs}/slurm-%A_%a.log",
               f"--export=ALL,FEDPDPO_SWEEP={HERE / 'sweep.py'},FEDPDPO_PYTHON={sys.executable}",
               *shlex.split(args.sbatch), str(HERE / "array.sbatch"), str(args.grid), *forward]
    return subprocess.run(command, check=False).returncode or failed


def ranges(numbers: list[int]) -> str:
    """Ascending numbers as Slurm writes them: 0-3,5,7-8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} sweep: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
