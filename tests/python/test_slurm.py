"""Sweeps under a real Slurm, started on this machine's loopback interface (tests/slurm/loopback.sh).

Skipped where Slurm or munge is not installed or we are not root; the runs of the real program are skipped where it has
not been built.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = ROOT / "tests" / "slurm" / "loopback.sh"
SWEEP = ROOT / "jobs" / "sweep.py"
MODEL = ROOT / "tests" / "golden" / "tiny_llama"
PROGRAM = Path(os.environ.get("FEDPDPO_BIN", ROOT / "build" / "fedpdpo"))
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
TOOLS = ("slurmctld", "slurmd", "sbatch", "munged")

needs_program = pytest.mark.skipif(not PROGRAM.is_file(), reason=f"{PROGRAM} has not been built (FEDPDPO_BIN)")


def tool_missing() -> str | None:
    """What a Slurm of our own lacks here."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (packages slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for Slurm's commands."""
    if reason := tool_missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment.update(
        SLURM_CONF=str(folder / "slurm.conf"), PATH=os.environ["PATH"] + ":/usr/sbin:/sbin",
        OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
        OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_hwloc_base_binding_policy="none",
        FEDPDPO_CACHE=str(folder / "cache"),
    )
    started = subprocess.run([LOOPBACK, "start", folder, str(free_port()), str(free_port())], env=environment,
                             capture_output=True, text=True, timeout=60)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield environment
    finally:
        subprocess.run([LOOPBACK, "stop", folder], env=environment, check=True, timeout=60)


def submit(folder: Path, environment: dict[str, str], *words: str) -> str:
    """Submits x.grid of a folder; the job's number."""
    done = subprocess.run([sys.executable, SWEEP, "x.grid", "--submit", *words], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()[-1]


def wait_until(condition, seconds: float, what: str, on_wait=lambda: None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        on_wait()
        time.sleep(0.2)


def tasks(job: str, environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    """State and reason of each task of a job, finished ones too: "12_0" -> ("PENDING", "BeginTime")."""
    shown = subprocess.run(["squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%i|%T|%r"],
                           env=environment, capture_output=True, text=True)
    rows = [line.split("|") for line in shown.stdout.splitlines()]
    return {task: (state, reason) for task, state, reason in rows}


def wait_for_end(job: str, environment: dict[str, str], folder: Path, seconds: float) -> None:
    """Waits until all tasks have ended; Slurm holds a requeued one back for two minutes: it is let go."""
    released = set()

    def ended() -> bool:
        states = {state for state, _ in tasks(job, environment).values()}
        return bool(states) and states <= FINAL_STATES

    def release() -> None:
        for task, (_, reason) in tasks(job, environment).items():
            if reason == "BeginTime" and task not in released:
                # Not at once: in the second of its requeueing a job's credential counts as revoked.
                subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now+3seconds"], env=environment,
                               check=True)
                released.add(task)

    try:
        wait_until(ended, seconds, f"the end of job {job}", release)
    except AssertionError as error:
        logs = "".join(path.read_text() for path in folder.rglob("slurm-*.log"))
        raise AssertionError(f"{error}; {tasks(job, environment)}; {logs}") from None


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """A folder with pairs.h5 for the tiny golden model and a config file."""
    pytest.importorskip("h5py")
    pytest.importorskip("tokenizers")
    generator = random.Random(0)
    words = [consonant + vowel for consonant in "bcdf" for vowel in "aeiou"]

    def text(count: int) -> str:
        return " " + " ".join(generator.choice(words) for _ in range(count))

    with (tmp_path / "pairs.jsonl").open("w") as rows:
        for number in range(240):
            rows.write(json.dumps({"prompt": text(4), "chosen": text(3), "rejected": text(3),
                                   "category": f"c{number % 4}"}) + "\n")
    subprocess.run([sys.executable, ROOT / "data_prep" / "prepare.py", "--in", "pairs.jsonl", "--model", MODEL,
                    "--category", "category", "--domain", "random", "--max-length", "32", "--out", "pairs.h5"],
                   cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "x.cfg").write_text(f"model = {MODEL}\ndata = pairs.h5\nclients = 2\nalpha = 5\nsteps = 1\nbatch = 2\n"
                                    "min-train = 2\ncheckpoint-every = 1\n")
    return tmp_path


def config_of(path: Path) -> dict[str, str]:
    import h5py

    with h5py.File(path) as file:
        return {key: str(value) for key, value in file["config"].attrs.items()}


@needs_program
def test_array_of_real_runs(slurm: dict[str, str], experiment: Path) -> None:
    (experiment / "x.grid").write_text("config = x.cfg\nout = runs/{method}-s{seed}.h5\nmethod = local fedavg\n"
                                       "seed = 1 2\nrounds = 2\n")
    job = submit(experiment, slurm, "--limit", "2", "--ranks", "2", "--program", str(PROGRAM))
    wait_for_end(job, slurm, experiment, 120)
    logs = {path.name: path.read_text() for path in experiment.rglob("slurm-*.log")}
    names = sorted(path.name for path in (experiment / "runs").glob("*.h5"))
    assert names == ["fedavg-s1.h5", "fedavg-s2.h5", "local-s1.h5", "local-s2.h5"], logs
    config = config_of(experiment / "runs" / "fedavg-s2.h5")
    assert (config["method"], config["seed"], config["rounds"]) == ("fedavg", "2", "2")


@needs_program
def test_real_run_checkpoints_on_the_warning_signal_and_goes_on(slurm: dict[str, str], experiment: Path) -> None:
    (experiment / "x.grid").write_text("config = x.cfg\nout = runs/s{seed}.h5\nmethod = fedavg\nseed = 1\n"
                                       "rounds = 400\n")
    job = submit(experiment, slurm, "--ranks", "2", "--program", str(PROGRAM))
    wait_until(lambda: (experiment / "runs" / "s1.h5.partial").exists(), 60, "the first round")
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"], env=slurm, check=True)
    wait_for_end(job, slurm, experiment, 240)
    log = "".join(path.read_text() for path in experiment.rglob("slurm-*.log"))
    assert (experiment / "runs" / "s1.h5").exists(), log
    assert f"requeueing job {job}_0" in log


# Stands for fedpdpo: waits for the warning signal once, as a run near its time limit does, and is done when it is
# started again.
FAKE = r"""#!/usr/bin/env python3
import signal, sys, time
out = sys.argv[sys.argv.index("--out") + 1]
if "--resume" in sys.argv:
    open(out, "w").close()
    sys.exit(0)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
open(out + ".ready", "w").close()
time.sleep(100)
"""


def test_signalled_task_is_requeued_and_done(slurm: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "fedpdpo").write_text(FAKE)
    (tmp_path / "fedpdpo").chmod(0o755)
    (tmp_path / "x.grid").write_text("out = runs/s{seed}.h5\nseed = 1\n")
    job = submit(tmp_path, slurm, "--mpirun", "", "--program", str(tmp_path / "fedpdpo"))
    wait_until(lambda: (tmp_path / "runs" / "s1.h5.ready").exists(), 30, "the start of the task")
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"], env=slurm, check=True)
    wait_for_end(job, slurm, tmp_path, 60)
    log = "".join(path.read_text() for path in tmp_path.rglob("slurm-*.log"))
    assert (tmp_path / "runs" / "s1.h5").exists(), log
    assert f"requeueing job {job}_0" in log
