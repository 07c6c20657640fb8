"""Tuning: trial files, equal trials, the choice by validation, and going on, with a stand-in for fedpdpo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "jobs"))
from gridfile import GridError, read_grid  # noqa: E402
from trials import read_trials  # noqa: E402

from analysis.grouping import METHOD_ORDER  # noqa: E402

# Writes a run whose validation accuracy falls with the distance of lr-shared from what suits the method; a method named
# "broken" fails at 0.01 while the file "broken" exists, and seed 99 waits for SIGUSR1 while "slow" exists.
FAKE = f"""#!{sys.executable}
import os, signal, sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'python')!r}]
words = sys.argv[1:]
given = {{words[i][2:]: words[i + 1] for i in range(1, len(words), 2)}}
with open("calls", "a") as calls:
    calls.write(" ".join(words) + "\\n")
if given["method"] == "broken" and given["lr-shared"] == "0.01" and os.path.exists("broken"):
    print("fedpdpo: error: it is broken", flush=True)
    sys.exit(2)
if given["seed"] == "99" and os.path.exists("slow"):
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    open("ready", "w").close()
    time.sleep(60)
from pathlib import Path
from analysis_support import write_run
best = {{"fedavg": 0.003, "fedpdpo": 0.01}}.get(given["method"], 0.001)
accuracy = 0.9 - 10 * abs(float(given["lr-shared"]) - best)
rows = [[0.5, 0.5], [accuracy, accuracy]]
options = {{key.replace("-", "_"): value for key, value in given.items() if key not in ("method", "seed", "out")}}
write_run(Path(given["out"]), method=given["method"], seed=int(given["seed"]), accuracy=rows, **options)
"""

TRIALS = """
# what is tried
[local broken]
lr-shared = 0.001 0.01   # two trials
[fedavg]
lr-shared = 0.01 0.003
[fedpdpo]
lr-shared  = 0.001 0.01
lr-private = 0.01  0.001
"""
ONE = "trials = x.trials\nout = runs/s/{method}-s{seed}.h5\n"
GRID = ONE.replace("-s{seed}", "-a{alpha}-s{seed}") + "method = fedavg fedpdpo\nalpha = 0.1 1\nseed = 1 2 3\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "fedpdpo").write_text(FAKE)
    (tmp_path / "fedpdpo").chmod(0o755)
    (tmp_path / "x.trials").write_text(TRIALS)
    (tmp_path / "x.grid").write_text(GRID)
    return tmp_path


def command(place: Path, *words: str, script: str = "tune.py") -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / script), "x.grid", "--program", str(place / "fedpdpo"), *words]


def tune(place: Path, *words: str, script: str = "tune.py") -> subprocess.CompletedProcess:
    return subprocess.run(command(place, *words, script=script), cwd=place, capture_output=True, text=True, timeout=60)


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines() if (place / "calls").exists() else []


def test_trials_are_columns(place: Path) -> None:
    trials = read_trials(place / "x.trials")
    assert list(trials) == ["local", "broken", "fedavg", "fedpdpo"]
    assert trials["local"] == [{"lr-shared": "0.001"}, {"lr-shared": "0.01"}]
    assert trials["fedpdpo"][1] == {"lr-shared": "0.01", "lr-private": "0.001"}


@pytest.mark.parametrize(("text", "message"), [
    ("[a]\nlr = 1 2\n[b]\nlr = 1\n", "x.trials:4: lr: expected 2 values as above, found 1"),
    ("[a]\nlr =\n", "x.trials:2: lr: expected a value, found 0"),
    ("[a]\nlr = 1\n[b a]\nlr = 1\n", "x.trials:3: a: stands twice"),
    ("[a]\nlr = 1\nlr = 2\n", "x.trials:3: lr: given twice"),
    ("lr = 1\n", "x.trials:1: lr: expected a [method] above it"),
    ("[a]\n", "x.trials: [a]: expected a key"),
    ("[a]\nLR 1\n", "x.trials:2: expected 'key = value ...'"),
    ("[a\nlr = 1\n", "x.trials:1: expected [method method]"),
    ("[a]\nseed = 1\n", "x.trials:2: seed: stands in the grid file"),
])
def test_bad_trials_are_named(place: Path, text: str, message: str) -> None:
    (place / "x.trials").write_text(text)
    with pytest.raises(GridError) as error:
        read_trials(place / "x.trials")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_best_validation_is_chosen_and_the_other_seeds_follow(place: Path) -> None:
    assert tune(place, "--count").stdout == "16\n"
    done = tune(place, "-j", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    made = calls(place)
    assert len(made) == 4 * (2 + 2)
    assert all("--seed 1" in line for line in made[:8])
    assert not any("--seed 1" in line for line in made[8:])
    assert all("--lr-shared 0.01 --lr-private 0.001" in line for line in made[8:] if "fedpdpo" in line)
    assert all("--lr-shared 0.003" in line for line in made[8:] if "fedavg" in line)
    names = sorted(path.name for path in (place / "runs" / "s").glob("*.h5"))
    assert names == [f"{m}-a{a}-s{s}.h5" for m in ("fedavg", "fedpdpo") for a in ("0.1", "1") for s in (1, 2, 3)]
    with h5py.File(place / "runs/s/fedavg-a1-s1.h5") as run:
        assert run["config"].attrs["lr-shared"] == "0.003"
    assert len(list((place / "runs" / "s-trials").glob("*.h5"))) == 8
    chosen = json.loads((place / "runs/s/x.chosen.json").read_text())
    assert [row["run"] for row in chosen] == [f"{m} alpha={a}" for m in ("fedavg", "fedpdpo") for a in ("0.1", "1")]
    assert chosen[0]["chosen"] == {"lr-shared": "0.003"}
    assert [trial["validation_accuracy"] for trial in chosen[0]["trials"]] == pytest.approx([0.83, 0.9])
    assert " 0.830 (lr-shared 0.01)  *0.900 (lr-shared 0.003)" in done.stdout
    again = tune(place)
    assert again.returncode == 0
    assert len(calls(place)) == len(made)


def test_equal_trials_take_the_first(place: Path) -> None:
    (place / "x.trials").write_text("[fedavg fedpdpo]\nlr-shared = 0.01 0.01\n")
    assert tune(place).returncode == 0
    assert "*0.830 (lr-shared 0.01)   0.830" in tune(place).stdout


def test_a_failed_trial_holds_only_its_method_back(place: Path) -> None:
    (place / "x.grid").write_text(ONE + "method = broken fedavg\nseed = 1 2\n")
    (place / "broken").touch()
    done = tune(place)
    assert done.returncode == 1
    assert "it is broken" in done.stdout
    assert "not chosen, trials are missing" in done.stdout
    assert sorted(path.name for path in (place / "runs/s").glob("*.h5")) == ["fedavg-s1.h5", "fedavg-s2.h5"]
    (place / "broken").unlink()
    assert tune(place).returncode == 0
    assert len(list((place / "runs/s").glob("*.h5"))) == 4


def test_an_edited_trial_is_not_taken_for_the_old_one(place: Path) -> None:
    assert tune(place).returncode == 0
    (place / "x.trials").write_text(TRIALS.replace("lr-shared = 0.01 0.003", "lr-shared = 0.01 0.002"))
    done = tune(place)
    assert done.returncode == 2
    message = "fedavg-a0.1-s1-t2.h5: lr-shared: expected 0.002, found 0.003; remove the file to run it again"
    assert done.stderr.strip().endswith(message)


def test_missing_data_is_said_once_before_anything_starts(place: Path) -> None:
    (place / "x.grid").write_text(GRID + "data = none.h5\n")
    done = tune(place)
    assert (done.returncode, done.stderr) == (2, "tune.py: x.grid: data: none.h5: no such file\n")
    assert calls(place) == [] and done.stdout == ""


def test_interrupted_tuning_goes_on(place: Path) -> None:
    (place / "x.grid").write_text(ONE + "method = fedavg\nseed = 1 99\n")
    (place / "slow").touch()
    process = subprocess.Popen(command(place), cwd=place, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not (place / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    os.remove(place / "slow")
    assert tune(place).returncode == 0
    assert len(calls(place)) == 2 + 2  # both trials once, seed 99 twice


@pytest.mark.parametrize(("text", "message"), [
    (GRID.replace("trials = x.trials\n", ""), "x.grid: trials: expected a file, found none"),
    (GRID.replace("x.trials", "no.trials"), "x.grid: trials: no.trials: no such file"),
    (GRID.replace("fedavg", "scaffold"), "x.trials: scaffold: expected trials for this method of x.grid, found none"),
    (GRID + "lr-shared = 1\n", "x.grid: lr-shared: is tried for fedavg and cannot be set in the grid too"),
    ("trials = x.trials\nout = a.h5\nmethod = fedavg\n", "x.grid: seed: expected values, found none"),
])
def test_bad_grids_are_exit_code_2(place: Path, text: str, message: str) -> None:
    (place / "x.grid").write_text(text)
    done = tune(place)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_sweep_refuses_a_grid_with_trials(place: Path) -> None:
    done = tune(place, "--local", script="sweep.py")
    assert done.returncode == 2
    assert "x.grid: trials: expected none in a sweep; tune.py runs this grid" in done.stderr


def test_the_committed_study_gives_every_method_the_same() -> None:
    trials = read_trials(ROOT / "jobs" / "methods_blimp.trials")
    grids = [read_grid(ROOT / "jobs" / f"methods_blimp_{name}.grid") for name in ("alpha01", "alpha10", "flips")]
    for tasks in grids:
        assert {task.values["method"] for task in tasks} == set(METHOD_ORDER) == set(trials)
        assert {task.values["seed"] for task in tasks} == {"1", "2", "3"}
    assert len({task.out for tasks in grids for task in tasks}) == 3 * 3 * len(METHOD_ORDER)
    assert {len(settings) for settings in trials.values()} == {3}
