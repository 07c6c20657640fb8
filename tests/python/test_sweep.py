"""Sweeps: grid files, runs on this machine with a stand-in for fedpdpo, and what is handed to Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ROOT / "jobs" / "sweep.py"
sys.path.insert(0, str(ROOT / "jobs"))
from done import compare  # noqa: E402
from gridfile import GridError, Task, config_values, read_grid  # noqa: E402

from analysis_support import write_run  # noqa: E402

from analysis.runfile import load_config  # noqa: E402

# Writes its run file; by seed it fails (13), asks to be requeued until it was started four times (75), or waits for
# SIGUSR1 (99) and then goes on from its "checkpoint".
PLACES = [str(ROOT), str(ROOT / "tests" / "python"), str(ROOT / "jobs")]
FAKE = f"#!{sys.executable}\nimport sys\nsys.path[:0] = {PLACES}\n" + r"""
import os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
out, seed = option("--out"), option("--seed")
with open(out + ".calls", "a") as calls:
    calls.write(" ".join(words) + "\n")
count = len(open(out + ".calls").readlines())
if seed == "13":
    print("starting\nfedpdpo: error: pairs.h5: /prompt: expected uint32, found float", flush=True)
    print("-----\nmpirun has said something\n-----", flush=True)
    sys.exit(2)
if seed == "75" and count < 4:
    sys.exit(75)
if seed == "99" and "--resume" not in words:
    signal.signal(signal.SIGUSR1, lambda *_: (os.makedirs(out[:-3] + ".ckpt"), sys.exit(75)))
    open(out + ".ready", "w").close()
    time.sleep(60)
if seed == "77":
    sys.exit(0)
from analysis_support import write_run
given = {words[i][2:].replace("-", "_"): words[i + 1] for i in range(1, len(words) - 1) if words[i].startswith("--")}
if "config" in given:
    from gridfile import config_values
    given = {**config_values(Path(given["config"])), **given}
write_run(Path(given.pop("out")), **given)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a grid, its config and a fake program; runs start there."""
    (tmp_path / "fedpdpo").write_text(FAKE)
    (tmp_path / "fedpdpo").chmod(0o755)
    (tmp_path / "base.cfg").write_text("[federation]\nrounds = 3  # few\n")
    return tmp_path


def grid(place: Path, text: str) -> Path:
    path = place / "x.grid"
    path.write_text(text)
    return path


def sweep_command(place: Path, *words: str, mpirun: str = "") -> list[str]:
    return [sys.executable, str(SWEEP), "x.grid", "--program", str(place / "fedpdpo"), "--mpirun", mpirun, *words]


def sweep(place: Path, *words: str, mpirun: str = "", **environment: str) -> subprocess.CompletedProcess:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.run(sweep_command(place, *words, mpirun=mpirun), cwd=place, capture_output=True, text=True,
                          timeout=60, env={**inherited, **environment})


def calls(place: Path, out: str) -> list[str]:
    path = place / (out + ".calls")
    return path.read_text().splitlines() if path.exists() else []


SMALL = "config = base.cfg\nout = runs/{method}-s{seed}.h5\nmethod = local fedavg\nseed = 1 2\n"


def test_product_with_sections(place: Path) -> None:
    tasks = read_grid(grid(place, """
# a comment
config = base.cfg   # beside this file
out = runs/{data}/{method}-a{alpha}-s{seed}.h5
method = local fedavg fedpdpo
alpha = 0.1 1
seed = 1 2
data = "d/a.h5 d/b.h5"
lr-shared = 0.001
[method=fedpdpo]
lr-private = 0.01
[method=fedavg,fedpdpo alpha=0.1]
lr-shared = 0.003
"""))
    assert len(tasks) == 12
    assert [task.index for task in tasks] == list(range(12))
    assert str(tasks[0].out) == "runs/a+b/local-a0.1-s1.h5"
    assert str(tasks[1].out) == "runs/a+b/local-a0.1-s2.h5"
    by_name = {task.out.stem: task for task in tasks}
    assert "lr-private" not in by_name["fedavg-a0.1-s1"].values
    assert by_name["fedpdpo-a1-s1"].values["lr-private"] == "0.01"
    shared = {name: task.values["lr-shared"] for name, task in by_name.items() if name.endswith("s1")}
    assert shared == {"local-a0.1-s1": "0.001", "local-a1-s1": "0.001", "fedavg-a0.1-s1": "0.003",
                      "fedavg-a1-s1": "0.001", "fedpdpo-a0.1-s1": "0.003", "fedpdpo-a1-s1": "0.001"}
    words = tasks[0].arguments()
    assert words[:2] == ["--config", str(place / "base.cfg")]
    assert words[words.index("--data"):][:3] == ["--data", "d/a.h5", "d/b.h5"]
    assert words[-2:] == ["--out", "runs/a+b/local-a0.1-s1.h5"]


def test_config_value(place: Path) -> None:
    assert config_values(place / "base.cfg").get("rounds") == "3"
    assert config_values(place / "base.cfg").get("steps") is None


@pytest.mark.parametrize(("text", "message"), [
    ("seed = 1\n", "out: expected one name"),
    ("out = a.h5\nseed = 1 2\n", "a.h5 would be written by several tasks; add {seed}"),
    ("out = {method}.h5\nmethod = a b\nseed = 1 2\n", "add {seed}"),
    ("out = {sed}.h5\nseed = 1\n", "{sed} is no key of the grid"),
    ("out = {seed}.h5\nseed = 1 1\n", "x.grid:2: seed: a value stands twice"),
    ("out = {seed}.h5\nseed = 1\nseed = 2\n", "x.grid:3: seed: given twice"),
    ("out = {seed}.h5\nseed =\n", "x.grid:2: seed: expected a value"),
    ("out = {seed}.h5\nseed 1\n", "x.grid:2: expected 'key = value ...'"),
    ("out = {seed}.h5\nSeed = 1\n", "x.grid:2: expected 'key = value ...'"),
    ("out = {seed}.h5\nseed = \"1\n", "x.grid:2: No closing quotation"),
    ("config = no.cfg\nout = {seed}.h5\nseed = 1\n", "no.cfg: no such file"),
    ("out = {seed}.h5\nseed = 1\noverwrite = on\n", "x.grid:3: overwrite: a sweep skips what is done"),
    ("out = {seed}.h5\nseed = 1\n[method=local]\nbeta = 1\n", "section on method: the grid has no such key"),
    ("out = {seed}.h5\nseed = 1\n[seed=2]\nbeta = 1\n", "section seed=2: expected one of 1"),
    ("out = {seed}.h5\nseed = 1 2\n[seed=2]\nbeta = 1 2\n", "x.grid:4: beta: expected one value in a section"),
    ("out = {seed}.h5\nseed = 1 2\n[seed=2]\nseed = 1\n", "seed: is an axis"),
    ("out = {seed}.h5\nseed = 1 2\n[seed=2]\nout = a\n", "out: cannot be set in a section"),
    ("out = {seed}.h5\nseed = 1\n[seed]\n", "expected [key=value"),
    ("out = {seed}.h5\nseed = 1\n[seed=1\n", "expected [key=value]"),
])
def test_bad_grids_are_named(place: Path, text: str, message: str) -> None:
    with pytest.raises(GridError) as error:
        read_grid(grid(place, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_grid_is_exit_code_2(place: Path) -> None:
    done = sweep(place, "--list")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("x.grid: cannot be read (No such file or directory)")


def test_count_and_list(place: Path) -> None:
    grid(place, SMALL)
    write_run(place / "runs" / "local-s2.h5", method="local", seed=2, rounds=3)
    assert sweep(place, "--count").stdout == "4\n"
    lines = [line.split("\t") for line in sweep(place, "--list").stdout.splitlines()]
    assert [line[:2] for line in lines] == [["0", "-"], ["1", "done"], ["2", "-"], ["3", "-"]]
    assert lines[3][2] == "--config base.cfg --method fedavg --seed 2 --out runs/fedavg-s2.h5"


def test_local_runs_all_and_skips_what_is_done(place: Path) -> None:
    grid(place, SMALL)
    write_run(place / "runs" / "local-s2.h5", method="local", seed=2, rounds=3)
    done = sweep(place, "--local", "-j", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 done, 1 done before, 0 failed, 0 left" in done.stdout
    assert calls(place, "runs/local-s2.h5") == []
    assert calls(place, "runs/fedavg-s1.h5") == [
        "run --config base.cfg --method fedavg --seed 1 --out runs/fedavg-s1.h5"
    ]
    assert (place / "runs" / "fedavg-s1.log").read_text().startswith("$ ")
    assert "0 done, 4 done before" in sweep(place, "--local").stdout


def test_failures_are_collected_with_their_reason(place: Path) -> None:
    grid(place, "out = runs/s{seed}.h5\nseed = 13 1 77\n")
    done = sweep(place, "--local")
    assert done.returncode == 1
    assert "1 done, 0 done before, 2 failed, 0 left" in done.stdout
    summary = done.stdout[done.stdout.index("2 failed"):]
    assert "task 0 runs/s13.h5: exit code 2: fedpdpo: error: pairs.h5: /prompt: expected uint32" in summary
    assert "task 2 runs/s77.h5: exit code 0, but the run file is missing" in summary


def test_program_that_cannot_be_started(place: Path) -> None:
    grid(place, SMALL)
    (place / "fedpdpo").unlink()
    done = sweep(place, "--local")
    assert done.returncode == 2
    assert "fedpdpo: cannot be started" in done.stderr


def test_exit_code_75_is_restarted_up_to_a_bound(place: Path) -> None:
    grid(place, "out = runs/s{seed}.h5\nseed = 75\n")
    done = sweep(place, "--local", "--restarts", "1")
    assert done.returncode == 1
    assert len(calls(place, "runs/s75.h5")) == 2
    (place / "runs" / "s75.h5.calls").unlink()
    assert sweep(place, "--local").returncode == 0
    attempts = calls(place, "runs/s75.h5")
    assert len(attempts) == 4
    assert ["--resume auto" in line for line in attempts] == [False, True, True, True]


@pytest.mark.parametrize(("text", "passed"), [
    ("checkpoint-every = 5\n", True),
    ("checkpoint-every = 0\n", False),
    ("checkpoint-every = 5\nresume = none\n", False),
    ("", False),
])
@pytest.mark.parametrize("where", ["grid", "config"])
def test_resume_is_passed_where_there_may_be_a_checkpoint(place: Path, text: str, passed: bool, where: str) -> None:
    (place / "base.cfg").write_text(text if where == "config" else "")
    grid(place, "config = base.cfg\nout = runs/s{seed}.h5\nseed = 1\n" + (text if where == "grid" else ""))
    assert sweep(place, "--local").returncode == 0
    assert ("--resume auto" in calls(place, "runs/s1.h5")[0]) == passed


def wait_for(path: Path) -> None:
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_lets_runs_checkpoint_and_a_new_sweep_goes_on(place: Path, number: signal.Signals) -> None:
    grid(place, "out = runs/s{seed}.h5\nseed = 99 1\n")
    process = subprocess.Popen(sweep_command(place, "--local"), cwd=place, stdout=subprocess.PIPE, text=True)
    wait_for(place / "runs" / "s99.h5.ready")
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "stopped runs/s99.h5 (at a checkpoint)" in output
    assert "0 done, 0 done before, 0 failed, 2 left" in output
    assert sweep(place, "--local").returncode == 0
    assert "--resume auto" in calls(place, "runs/s99.h5")[1]


def test_task_passes_usr1_on_and_returns_75(place: Path) -> None:
    grid(place, "out = runs/s{seed}.h5\nseed = 1 99\n")
    process = subprocess.Popen(sweep_command(place, "--task", "1"), cwd=place)
    wait_for(place / "runs" / "s99.h5.ready")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 75


def test_task_under_slurm_requeues_itself(place: Path) -> None:
    grid(place, "out = runs/s{seed}.h5\nseed = 75\n")
    scontrol = place / "scontrol"
    scontrol.write_text("#!/bin/sh\necho \"$@\" >> scontrol.calls\n")
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "0",
             "PATH": f"{place}:{os.environ['PATH']}"}
    assert sweep(place, "--task", "0", **slurm).returncode == 75
    assert (place / "scontrol.calls").read_text() == "requeue 10_0\n"
    enough = sweep(place, "--task", "0", "--restarts", "2", SLURM_RESTART_COUNT="2", **slurm)
    assert "requeued 2 times, which is enough" in enough.stdout
    assert (place / "scontrol.calls").read_text() == "requeue 10_0\n"
    assert "--resume auto" in calls(place, "runs/s75.h5")[1]


def test_task_out_of_range(place: Path) -> None:
    grid(place, SMALL)
    done = sweep(place, "--task", "4")
    assert done.returncode == 2
    assert "--task: expected 0 to 3, found 4" in done.stderr


def test_ranks_go_to_the_launcher(place: Path) -> None:
    grid(place, "out = runs/s{seed}.h5\nseed = 1\n")
    launcher = place / "launcher"
    launcher.write_text("#!/bin/sh\necho \"$@\" > launcher.calls\nshift 3\nexec \"$@\"\n")
    launcher.chmod(0o755)
    assert sweep(place, "--local", "--ranks", "4", mpirun=f"{launcher} --quiet").returncode == 0
    assert (place / "launcher.calls").read_text().startswith(f"--quiet -n 4 {place}/fedpdpo run ")
    refused = sweep(place, "--local", "--ranks", "4")
    assert refused.returncode == 2
    assert "--ranks: needs --mpirun" in refused.stderr


def test_submit_gives_slurm_what_is_left(place: Path) -> None:
    grid(place, SMALL)
    sbatch = place / "sbatch"
    sbatch.write_text("#!/bin/sh\nfor word; do echo \"$word\"; done\n")
    sbatch.chmod(0o755)
    write_run(place / "runs" / "local-s2.h5", method="local", seed=2, rounds=3)
    words = ("--submit", "--limit", "3", "--ranks", "2", "--sbatch=-p main -t 10")
    done = sweep(place, *words, mpirun="mpirun", PATH=f"{place}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["--array=0,2-3%3", "--job-name=x", "--ntasks=2"]
    assert lines[5:9] == ["-p", "main", "-t", "10"]
    assert lines[9:11] == [str(ROOT / "jobs" / "array.sbatch"), "x.grid"]
    assert sweep(place, "--submit", PATH="/usr/bin/no-such").returncode == 2


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.grid")), ids=lambda path: path.name)
def test_committed_grids_are_sound(path: Path) -> None:
    tasks = read_grid(path)
    assert tasks
    assert all(task.config is not None for task in tasks)
    # The heads of grid and config file say how to make what they name; $domain stands for the files of a loop.
    for file in (path, tasks[0].config):
        head = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
        assert f"--model {tasks[0].option('model')} " in head.replace("\\\n", "")
        made = [f"--out {name}" for name in tasks[0].option("data").split()]
        assert all(out in head or f"{Path(out).parent}/$domain.h5" in head for out in made)


# Run files that an earlier form of the grid has left


EDITED = "config = base.cfg\nout = runs/s{seed}.h5\nmethod = fedavg\nseed = 1 2\nlr-shared = 0.01\n"


@pytest.fixture
def edited(place: Path) -> Path:
    """Two tasks done; then the grid wants another rate of the second, and the config file, too, is another."""
    grid(place, EDITED)
    assert sweep(place, "--local").returncode == 0
    (place / "base.cfg").write_text("[federation]\nrounds = 3.0\nthreads = 2  # free\nmicro-rows = auto\n")
    grid(place, EDITED + "[seed=2]\nlr-shared = 0.5\n")
    return place


def recorded(place: Path, out: str) -> dict[str, str]:
    return load_config(place / out)


def test_a_run_with_other_options_is_not_taken_for_done(edited: Path) -> None:
    done = sweep(edited, "--local")
    assert done.returncode == 1
    reason = "not this task's run: lr-shared: expected 0.5, found 0.01; --overwrite runs it again"
    assert "0 done, 1 done before, 1 failed, 0 left" in done.stdout
    assert f"task 1 runs/s2.h5: {reason}" in done.stdout
    assert recorded(edited, "runs/s2.h5")["lr-shared"] == "0.01" and len(calls(edited, "runs/s2.h5")) == 1
    assert [line.split("\t")[1] for line in sweep(edited, "--list").stdout.splitlines()] == ["done", reason]
    again = sweep(edited, "--local", "--overwrite")
    assert again.returncode == 0, again.stdout
    assert "1 done, 1 done before, 0 failed" in again.stdout
    assert "runs/s2.h5: not this task's run, is replaced" in again.stdout
    assert calls(edited, "runs/s2.h5")[1].endswith("--out runs/s2.h5 --overwrite")
    assert recorded(edited, "runs/s2.h5")["lr-shared"] == "0.5" and len(calls(edited, "runs/s1.h5")) == 1


def test_an_edited_config_file_is_seen_too(edited: Path) -> None:
    (edited / "base.cfg").write_text("rounds = 1\n")
    done = sweep(edited, "--local")
    assert done.returncode == 1
    assert "task 0 runs/s1.h5: not this task's run: rounds: expected 1, found 3; --overwrite" in done.stdout
    assert "lr-shared: expected 0.5, found 0.01; rounds: expected 1, found 3;" in done.stdout


def test_a_single_task_and_slurm_see_it_too(edited: Path) -> None:
    done = sweep(edited, "--task", "1")
    assert done.returncode == 1 and "lr-shared: expected 0.5, found 0.01" in done.stdout
    assert sweep(edited, "--task", "0").returncode == 0
    sbatch = edited / "sbatch"
    sbatch.write_text("#!/bin/sh\necho \"$@\" > sbatch.calls\n")
    sbatch.chmod(0o755)
    path = f"{edited}:{os.environ['PATH']}"
    refused = sweep(edited, "--submit", PATH=path)
    assert refused.returncode == 1 and "not submitted: task 1 runs/s2.h5: not this task's run" in refused.stdout
    assert not (edited / "sbatch.calls").exists()
    assert sweep(edited, "--submit", "--overwrite", PATH=path).returncode == 0
    submitted = (edited / "sbatch.calls").read_text()
    assert "--array=1 " in submitted and submitted.rstrip().endswith("--overwrite")
    assert sweep(edited, "--task", "1", "--overwrite").returncode == 0
    assert recorded(edited, "runs/s2.h5")["lr-shared"] == "0.5"


def test_what_is_no_run_file_is_not_done(edited: Path) -> None:
    (edited / "runs" / "s1.h5").write_text("not hdf5")
    done = sweep(edited, "--local")
    assert done.returncode == 1 and "task 0 runs/s1.h5: not this task's run: not an HDF5 file" in done.stdout


def test_without_h5py_nothing_is_taken_for_done(edited: Path) -> None:
    (edited / "none").mkdir()
    (edited / "none" / "h5py.py").write_text("raise ModuleNotFoundError('none', name='h5py')\n")
    done = sweep(edited, "--local", PYTHONPATH=str(edited / "none"))
    assert done.returncode == 2
    assert done.stderr == ("sweep.py: runs/s1.h5: comparing its options with the grid's needs h5py; "
                           ".venv/bin/python has it\n")


def test_checkpoints_of_other_options_make_way_and_own_ones_stay(edited: Path) -> None:
    folders = {}
    for seed, rate in (("1", "0.01"), ("2", "0.01")):
        folders[seed] = edited / "runs" / f"s{seed}.ckpt" / "round-00002-00"
        folders[seed].mkdir(parents=True)
        facts = {"option.lr-shared": rate, "option.seed": seed, "sha256.model": "x"}
        (folders[seed] / "manifest.json").write_text(json.dumps({"facts": facts}))
    (edited / "runs" / "s1.h5").unlink()
    done = sweep(edited, "--local", "--overwrite")
    assert done.returncode == 0, done.stdout
    assert folders["1"].exists() and "--resume auto" in calls(edited, "runs/s1.h5")[1]
    assert not folders["2"].exists()
    assert "runs/s2.h5: removed the checkpoints of a run with other options" in done.stdout


@pytest.mark.parametrize(("key", "one", "other", "equal"), [
    ("data", "d/a.h5  d/b.h5", "d/a.h5 ./d/b.h5", True), ("data", "a.h5 b.h5", "b.h5 a.h5", False),
    ("model", "m/x/", "m/x", True), ("eval-splits", "test, validation", "validation,test", True),
    ("lora-ranks", "4,8", "8,4", False), ("lr-shared", "1e-2", "0.010", True), ("head", "full", "frozen", False),
    ("seed", "12345678901234567", "12345678901234568", False), ("participation", "0.5", "0.25", False),
])
def test_values_are_compared_as_the_program_reads_them(key: str, one: str, other: str, equal: bool) -> None:
    difference = compare(Task(0, {key: one}, Path("x.h5")), {key: other})
    assert difference == (None if equal else f"{key}: expected {one}, found {other}")


# Models and pair files


@pytest.mark.parametrize("command", ["--local", "--submit"])
def test_missing_model_and_data_are_said_once_before_anything_starts(place: Path, command: str) -> None:
    (place / "base.cfg").write_text("model = runs/models/none\ndata = a.h5\ndata = b.h5\n")
    (place / "b.h5").touch()
    grid(place, SMALL)
    done = sweep(place, command)
    assert done.returncode == 2
    assert done.stderr == "sweep.py: x.grid: model: runs/models/none: no such folder; data: a.h5: no such file\n"
    assert not (place / "runs").exists()
    (place / "a.h5").touch()
    (place / "runs/models/none").mkdir(parents=True)
    assert sweep(place, "--local").returncode == 0
    (place / "a.h5").unlink()  # nothing left to run needs it
    assert "0 done, 4 done before" in sweep(place, "--local").stdout
