"""Tests of the analysis package on small synthetic run files whose tables can be worked out by hand.

Reading, numbers, rounds, output formats, bad files; every expected number is computed in the test or stated.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from analysis_support import NAN, cells, run_cli, write_run
from conftest import ROOT

import analysis
from analysis import stats

# Reading


def test_load_gives_everything_that_was_written(tmp_path: Path) -> None:
    run = analysis.load(write_run(tmp_path / "a.h5", method="fedper", seed=7, lr_shared="1e-3"))
    assert (run.method, run.seed, run.complete) == ("fedper", 7, True)
    assert run.config["lr-shared"] == "1e-3"
    assert run.environment["num_ranks"] == 1
    assert run.client_names == ["c0", "c1"]
    np.testing.assert_array_equal(run.clients["test/after/accuracy"][2], [0.7, 0.8])
    assert run.clients["train/tokens"].shape == (3, 2)
    assert run.units["clients/test/after/loss"] == "nat"
    assert run.final["test/margin"].tolist() == [1.0, 1.0, -1.0, 1.0]
    assert run.partition["train/pair"].size == 5
    assert run.timings["total"].tolist() == [1.0, 1.0, 1.0]


def test_load_reads_only_what_is_asked_for(tmp_path: Path) -> None:
    run = analysis.load(write_run(tmp_path / "a.h5"), only=["clients/test/after/accuracy"])
    assert set(run.clients) == {"test/after/accuracy"}
    assert run.final == {}
    assert "train/pair" not in run.partition and "label_histogram" in run.partition


def test_find_files_tells_finished_from_partial(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep/b.h5")
    write_run(tmp_path / "sweep/deep/a.h5")
    write_run(tmp_path / "sweep/c.h5.partial")
    (tmp_path / "sweep/notes.txt").write_text("x")
    files = analysis.find_files([tmp_path / "sweep", tmp_path / "absent"])
    assert [path.name for path in files.finished] == ["b.h5", "a.h5"]
    assert [path.name for path in files.partial] == ["c.h5.partial"]
    assert [path.name for path in files.missing] == ["absent"]


# Numbers


def test_cells_are_means_over_seeds_with_sample_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", seed=1, accuracy=[[0.5, 0.5], [0.6, 0.9]])
    write_run(tmp_path / "2.h5", seed=2, accuracy=[[0.5, 0.5], [0.8, 0.7]])
    code, out, err = run_cli(capsys, "summarize", tmp_path)
    assert (code, err) == (0, "")
    # c0: .6, .8; c1: .9, .7; means .75, .75; the worst client is c0 in one seed and c1 in the other: .6, .7.
    sd = f"{math.sqrt(0.02):.3f}"
    worst = f"0.650 ± {math.sqrt(0.005):.3f}"
    assert cells(out, "fedavg") == ["fedavg", "2", f"0.700 ± {sd}", f"0.800 ± {sd}", "0.750 ± 0.000", worst]


def test_a_single_seed_has_no_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5")
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    assert cells(out, "fedavg") == ["fedavg", "1", "0.700", "0.800", "0.750", "0.700"]


def test_worst_client_has_the_highest_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5")
    _, out, _ = run_cli(capsys, "summarize", tmp_path, "--metric", "loss")
    assert cells(out, "fedavg")[-1] == "0.3"


def test_split_and_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", validation=[[0.5, 0.5], [0.1, 0.1], [0.2, 0.4]])
    assert cells(run_cli(capsys, "summarize", tmp_path, "--point", "before")[1], "fedavg")[2:4] == ["0.800", "0.900"]
    assert cells(run_cli(capsys, "summarize", tmp_path, "--split", "validation")[1], "fedavg")[4] == "0.300"
    assert (
        cells(run_cli(capsys, "summarize", tmp_path, "--split", "train", "--metric", "tokens")[1], "fedavg")[4] == "8"
    )


def test_many_clients_are_shown_by_deciles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(20) / 20.0  # worst tenth: 0 and .05; best: .9 and .95
    write_run(tmp_path / "1.h5", accuracy=np.stack([values, values[::-1]]))
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    spread = f"{values.std(ddof=1):.3f}"
    assert cells(out, "fedavg") == ["fedavg", "1", "0.475", spread, "0.025", "0.925"]
    assert "worst decile" in out and "c19" not in out


def test_twelve_clients_have_a_column_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", accuracy=np.full((2, 12), 0.6))
    assert len(cells(run_cli(capsys, "summarize", tmp_path)[1], "fedavg")) == 2 + 12 + 2


# Rounds


def test_last_is_the_last_evaluated_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = [[0.5, 0.5], [NAN, NAN], [0.6, 0.8], [NAN, NAN]]
    write_run(tmp_path / "1.h5", accuracy=skipped)
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    assert cells(out, "fedavg") == ["fedavg", "1", "0.600", "0.800", "0.700", "0.600"]


def test_a_client_without_value_is_left_out_of_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", accuracy=[[0.5, 0.5, 0.5], [0.6, NAN, 0.8]])
    write_run(tmp_path / "2.h5", seed=2, accuracy=[[0.5, 0.5, 0.5], [0.6, 0.9, 0.6]])
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    row = cells(out, "fedavg")
    assert row[3] == "0.900 (n=1)"  # one seed of two
    assert row[5].startswith("0.700 ±")  # .7 and .7


def test_different_last_rounds_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", seed=1)
    write_run(tmp_path / "2.h5", seed=2, accuracy=[[0.5, 0.5], [0.6, 0.7], [NAN, NAN]])
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    assert "not all runs were evaluated in round 2" in out and "fedavg 2 1" in out


def test_best_validation_chooses_the_round_and_test_is_shown(tmp_path: Path) -> None:
    query = stats.Query(round="best-validation")
    accuracy = [[0.5, 0.5], [0.6, 0.6], [0.9, 0.9], [0.7, 0.7]]
    validation = [[0.5, 0.5], [0.9, 0.7], [0.6, 0.6], [0.8, 0.8]]  # means .5, .8, .6, .8: the earlier of two equals
    run = analysis.load(write_run(tmp_path / "1.h5", accuracy=accuracy, validation=validation))
    assert stats.choose_round(run, query) == 1
    assert stats.client_values(run, query).tolist() == [0.6, 0.6]
    accuracy[1] = [NAN, NAN]  # a round without test values cannot be chosen
    run = analysis.load(write_run(tmp_path / "2.h5", accuracy=accuracy, validation=validation))
    assert stats.choose_round(run, query) == 3


def test_a_given_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", accuracy=[[0.5, 0.5], [NAN, NAN], [0.6, 0.8]])
    assert cells(run_cli(capsys, "summarize", tmp_path, "--round", 0)[1], "fedavg")[4] == "0.500"
    for number, reason in ((1, "was not evaluated in round 1"), (9, "has no round 9, its last is 2")):
        code, out, err = run_cli(capsys, "summarize", tmp_path, "--round", number)
        assert (code, out) == (2, "") and reason in err


# Output formats


def test_markdown_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", names=["a|b", "c"])
    _, out, _ = run_cli(capsys, "summarize", tmp_path, "--markdown")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert lines[0] == "| method | seeds | a\\|b | c | mean | worst client |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| fedavg | 1 | 0.700 | 0.800 | 0.750 | 0.700 |"


def test_columns_are_aligned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5")
    write_run(tmp_path / "2.h5", method="fedpdpo", accuracy=[[0.5, 0.5], [0.6, NAN]], names=["c0", "c1"])
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    lines = out.splitlines()[2:5]
    assert [line.split()[0] for line in lines] == ["method", "fedavg", "fedpdpo"]
    assert len({len(line) for line in lines}) == 1


def test_csv_holds_full_precision_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    third = 1 / 3
    for alpha, seed in itertools.product(("0.1", "1"), (1, 2)):
        write_run(tmp_path / f"{alpha}{seed}.h5", alpha=alpha, seed=seed, accuracy=[[0, 0], [third, seed]])
        write_run(tmp_path / f"{alpha}{seed}l.h5", alpha=alpha, seed=seed, method="local")
    target = tmp_path / "out.csv"
    assert run_cli(capsys, "summarize", tmp_path, "--csv", target, "--baseline", "local")[0] == 0
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    (row,) = [r for r in rows if (r["alpha"], r["row"], r["column"]) == ("0.1", "fedavg", "c0")]
    assert float(row["mean"]) == third and float(row["sd"]) == 0.0 and row["seeds"] == "2"
    (row,) = [r for r in rows if (r["alpha"], r["row"], r["column"]) == ("1", "fedavg", "c1")]
    assert float(row["mean"]) == 1.5 and float(row["sd"]) == pytest.approx(math.sqrt(0.5))
    (row,) = [r for r in rows if (r["alpha"], r["column"]) == ("1", "difference to local")]
    assert (row["mean"], row["low"], row["high"], row["p"]) == ("0.0", "0.0", "0.0", "1.0")
    assert "out" not in rows[0] and "seed" not in rows[0] and "model" not in rows[0]


# Bad and unfinished files


def damage(tmp_path: Path, kind: str) -> Path:
    path = write_run(tmp_path / f"{kind}.h5")
    if kind == "text":
        path.write_text("not hdf5")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    else:
        with h5py.File(path, "r+") as file:
            if kind == "pairs":
                file.attrs["format"] = "fedpdpo-pairs"
            elif kind == "no-format":
                del file.attrs["format"]
            elif kind == "version":
                file.attrs["version"] = 2
            elif kind == "no-config":
                del file["config"]
            elif kind == "no-method":
                del file["config"].attrs["method"]
            elif kind == "seed":
                file["config"].attrs["seed"] = "one"
            elif kind == "shape":
                del file["clients/test/after/accuracy"]
                file["clients/test/after/accuracy"] = np.zeros((3, 5))
            elif kind == "no-metric":
                del file["clients/test/after/accuracy"]
            elif kind == "all-nan":
                file["clients/test/after/accuracy"][...] = NAN
            else:
                raise ValueError(kind)
    return path


BAD = {
    "text": "not an HDF5 file",
    "empty": "not an HDF5 file",
    "truncated": "damaged HDF5 file",
    "pairs": "not a run file: has format 'fedpdpo-pairs', expected 'fedpdpo-run'",
    "no-format": "not a run file: has no 'format' attribute",
    "version": "run file version 2, expected 1",
    "no-config": "has no group /config",
    "no-method": "/config has no attribute 'method'",
    "seed": "/config seed is 'one', expected an integer",
    "shape": "/clients/test/after/accuracy has shape (3, 5), expected (3, 2)",
    "no-metric": "has no dataset /clients/test/after/accuracy",
    "all-nan": "/clients/test/after/accuracy holds no value",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = damage(tmp_path, kind)
    code, out, err = run_cli(capsys, "summarize", path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and str(path) in err and BAD[kind] in err


def test_good_files_are_shown_beside_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(tmp_path, "pairs")
    write_run(tmp_path / "good.h5")
    code, out, err = run_cli(capsys, "summarize", tmp_path)
    assert code == 2 and cells(out, "fedavg")[1] == "1" and err.count("\n") == 1


def test_a_mistyped_metric_does_not_repeat_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(7):
        write_run(tmp_path / f"{seed}.h5", seed=seed)
    code, _, err = run_cli(capsys, "summarize", tmp_path, "--metric", "acuracy")
    assert code == 2 and err.count("\n") == 1 and "(and 6 files more)" in err


def test_a_metric_that_is_not_there_is_answered_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "1.h5")
    code, out, err = run_cli(capsys, "summarize", tmp_path, "--metric", "tokens")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "has no dataset /clients/test/after/tokens; metrics by split and point: " in err
    assert "test/after: accuracy, loss; " in err and "test/before and validation/after: accuracy" in err
    assert "train: tokens" in err
    write_run(tmp_path / "2.h5", method="local")  # that --where leaves it out is not what is wrong
    assert run_cli(capsys, "summarize", tmp_path, "--metric", "tokens", "--where", "method=fedavg")[2] == err


def test_nothing_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "summarize", tmp_path)
    assert (code, err) == (2, f"analysis: no finished run files in {tmp_path}\n")
    code, _, err = run_cli(capsys, "summarize", tmp_path / "nowhere")
    assert (code, err) == (2, f"analysis: {tmp_path / 'nowhere'}: no such file or folder\n")


def test_unfinished_files_are_mentioned_and_read_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5")
    unfinished = [[0.5, 0.5], [0.6, 0.6], [NAN, NAN]]
    write_run(tmp_path / "2.h5.partial", seed=2, status="running", accuracy=unfinished)
    code, out, err = run_cli(capsys, "summarize", tmp_path)
    assert code == 0 and "1 unfinished left out" in err and "2.h5.partial" in err and cells(out, "fedavg")[1] == "1"
    code, out, err = run_cli(capsys, "summarize", tmp_path, "--partial")
    assert (code, err) == (0, "") and cells(out, "fedavg")[1] == "2"
    assert "2.h5.partial (round 1)" in out


def test_a_running_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    path = write_run(tmp_path / "1.h5.partial", status="running")
    with h5py.File(path, "r+") as writer:
        writer.flush()
        script = f"import analysis; print(analysis.load({str(path)!r}).status)"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "running\n"), done.stderr


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    write_run(tmp_path / "1.h5")
    write_run(tmp_path / "2.h5", seed=2)
    command = [sys.executable, "-m", "analysis", "summarize", str(tmp_path)]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=locale, check=False)
    assert done.returncode == 0, done.stderr
    assert "0.750 ± 0.000" in done.stdout.decode("utf-8")
    done = subprocess.run([*command, "--round", "first"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 2 and b"neither last, best-validation nor a number" in done.stderr
