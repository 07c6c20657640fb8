"""Starts one run of a sweep under MPI, passes signals on to it and reads the reason of a failure from its log."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

from gridfile import GridError, Task

EXIT_REQUEUE = 75  # fedpdpo: checkpointed on a signal, wants to be started again


class Launcher:
    """How runs are started."""

    def __init__(self, program: Path, mpirun: list[str], ranks: int) -> None:
        self.program, self.mpirun, self.ranks = program, mpirun, ranks
        self.environment = dict(os.environ)

    def share_this_machine(self) -> None:
        """Several mpiruns know nothing of each other: each would bind its ranks to the same first cores."""
        self.environment.setdefault("OMPI_MCA_hwloc_base_binding_policy", "none")
        self.environment.setdefault("OMP_WAIT_POLICY", "passive")

    def command(self, task: Task, attempt: int) -> list[str]:
        words = [*self.mpirun, "-n", str(self.ranks)] if self.mpirun else []
        words += [str(self.program), "run", *task.arguments()]
        return [*words, "--resume", "auto"] if resumes(task, attempt) else words

    def start(self, task: Task, log: bool, attempt: int = 0) -> "Run":
        """Starts a task, its output appended to OUT.log or going where ours goes."""
        return Run(task, self.command(task, attempt), self.environment, log, attempt)


class Run:
    """A started task."""

    def __init__(self, task: Task, command: list[str], environment: dict[str, str], log: bool, attempt: int) -> None:
        self.task, self.attempt = task, attempt
        self.log = task.out.with_suffix(".log") if log else None
        self.log_start = 0
        self.begin = time.monotonic()
        task.out.parent.mkdir(parents=True, exist_ok=True)
        output = None
        if self.log:
            output = self.log.open("ab")
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            self.log_start = output.tell()
        try:
            # A session of its own: a terminal's Ctrl-C must not kill ranks that are about to checkpoint.
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                            stderr=subprocess.STDOUT if output else None,
                                            env=environment, start_new_session=True)
        except OSError as error:
            raise GridError(f"{command[0]}: cannot be started ({error.strerror})") from None
        finally:
            if output:
                output.close()

    def poll(self) -> int | None:
        return self.process.poll()

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def stop(self, kill: bool = False) -> None:
        """Asks for a checkpoint, or kills. mpirun hands SIGUSR1 on to the ranks; SIGTERM would make it end them."""
        if self.process.poll() is not None:
            return
        if kill:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.send_signal(signal.SIGUSR1)

    def last_line(self) -> str:
        """The program's last words: its last line on the log, else the launcher's."""
        if not self.log:
            return ""
        with self.log.open("rb") as stream:
            stream.seek(self.log_start)
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
        said = [line for line in lines if line.strip("- \t")]
        errors = [line for line in said if line.startswith("fedpdpo: error:")]
        return (errors or said or ["no output"])[-1]


def resumes(task: Task, attempt: int) -> bool:
    """Whether a run has, or may have, a checkpoint to go on from, and its options leave the question open."""
    if task.option("resume") is not None:
        return False
    interval = task.option("checkpoint-every")
    return attempt > 0 or interval not in (None, "0") or task.out.with_suffix(".ckpt").is_dir()
