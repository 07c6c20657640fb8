"""Tests of the analysis package on small synthetic run files whose tables can be worked out by hand.

`write_run` writes the run file format with h5py; every expected number below is computed in the test or stated.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import analysis
from analysis import cli, stats
from analysis.grouping import canonical, group
from analysis.summarize import summarize

NAN = float("nan")
TEXT = h5py.string_dtype()
SETTINGS = {"alpha": "0.3", "model": "m", "data": "d.h5", "rounds": "2", "lr-shared": "0.01", "flip-clients": "0"}


def write_run(
    path: Path,
    method: str = "fedavg",
    seed: int = 1,
    accuracy: Any = ((0.5, 0.5), (0.6, 0.7), (0.7, 0.8)),
    validation: Any = None,
    margin: Any = (1.0, 1.0, -1.0, 1.0),
    client: Any = None,
    pair: Any = None,
    names: Sequence[str] | None = None,
    domains: Sequence[str] = ("d",),
    explicit: Any = None,
    status: str = "complete",
    environment: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a run; options are given with underscores for the dashes of the command line."""
    accuracy = np.asarray(accuracy, dtype=float)
    rounds, clients = accuracy.shape
    margin = np.asarray(margin, dtype=float)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:

        def dataset(name: str, values: Any, units: str = "1") -> None:
            item = file.create_dataset(name, data=values)
            item.attrs["units"] = units
            item.attrs["description"] = "what it is"

        file.attrs["format"] = "fedpdpo-run"
        file.attrs["version"] = np.int64(1)
        file.attrs["status"] = status
        config = file.create_group("config")
        given = {key.replace("_", "-"): value for key, value in options.items()}
        resolved = {
            **SETTINGS,
            **given,
            "method": method,
            "seed": seed,
            "out": str(path),
            "command_line": f"run {path}",
        }
        for key, value in resolved.items():
            config.attrs[key] = str(value)
        for key, value in {"device": "cpu", "num_ranks": 1, **(environment or {})}.items():
            file.require_group("environment").attrs[key] = value
        dataset("rounds/round", np.arange(rounds, dtype=np.int64))
        dataset("clients/test/after/accuracy", accuracy)
        dataset("clients/test/after/loss", 1.0 - accuracy, "nat")
        dataset("clients/test/before/accuracy", accuracy + 0.1)
        dataset("clients/validation/after/accuracy", accuracy if validation is None else np.asarray(validation, float))
        dataset("clients/train/tokens", np.full((rounds, clients), 8.0), "token")
        if explicit is not None:
            dataset("clients/test/after/accuracy_implicit", accuracy - 0.05)
            dataset("clients/test/after/accuracy_explicit", np.full((rounds, clients), explicit))
        partition = file.create_group("partition")
        partition.create_dataset("client_names", data=list(names or [f"c{i}" for i in range(clients)]), dtype=TEXT)
        partition.create_dataset("domain_names", data=list(domains), dtype=TEXT)
        partition.create_dataset("label_names", data=["verbs", "nouns", "islands"], dtype=TEXT)
        partition["client_domain"] = (np.arange(clients) % len(domains)).astype(np.int32)
        histogram = 1 + np.arange(clients * 9).reshape(clients, 3, 3) % (7 + len(str(resolved["alpha"])))
        partition["label_histogram"] = histogram.astype(np.int64)
        partition["flipped"] = np.zeros(clients)
        partition["train/pair"] = np.arange(5, dtype=np.uint64)
        owner = np.arange(margin.size) * clients // margin.size if client is None else client
        dataset("final/test/client", np.asarray(owner, dtype=np.int32))
        dataset("final/test/file", np.zeros(margin.size, dtype=np.uint32))
        dataset("final/test/pair", np.asarray(np.arange(margin.size) if pair is None else pair, dtype=np.uint64))
        dataset("final/test/margin", margin)
        dataset("timings/total", np.ones(rounds), "s")
    return path


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def tables_of(*paths: Path, by: Sequence[str] | None = None) -> list[analysis.Table]:
    return group([analysis.load(path) for path in paths], by)


def run_cli(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def cells(text: str, label: str) -> list[str]:
    """Columns of the one line of an aligned table that starts with `label`."""
    (line,) = [line for line in text.splitlines() if line.startswith(label + "  ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


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


# What belongs together


@pytest.mark.parametrize("option", ["alpha", "flip-clients", "model", "an-option-of-the-future"])
def test_settings_that_differ_make_tables(tmp_path: Path, option: str) -> None:
    paths = [write_run(tmp_path / f"{v}.h5", seed=v, **{option: v}) for v in (10, 2)]
    tables = tables_of(*paths)
    assert [table.title for table in tables] == [f"{option} = 2", f"{option} = 10"]
    assert [len(table.rows[0].runs) for table in tables] == [1, 1]


def test_an_option_that_some_runs_lack_makes_tables(tmp_path: Path) -> None:
    tables = tables_of(write_run(tmp_path / "1.h5"), write_run(tmp_path / "2.h5", seed=2, noise="0.1"))
    assert sorted(table.title for table in tables) == ["noise = (unset)", "noise = 0.1"]


@pytest.mark.parametrize("option", ["lr-shared", "lr-private", "head", "bottleneck", "reward-pool", "loss", "prox-mu"])
def test_method_options_that_differ_make_rows(tmp_path: Path, option: str) -> None:
    paths = [write_run(tmp_path / f"{v}{s}.h5", seed=s, **{option: v}) for v in (16, 8) for s in (1, 2)]
    (table,) = tables_of(*paths)
    assert [row.label for row in table.rows] == [f"fedavg {option}=8", f"fedavg {option}=16"]
    assert [[run.seed for run in row.runs] for row in table.rows] == [[1, 2], [1, 2]]


def test_method_options_that_differ_between_methods_are_noted(tmp_path: Path) -> None:
    first = write_run(tmp_path / "1.h5", method="fedavg", lr_shared="0.01")
    second = write_run(tmp_path / "2.h5", method="fedpdpo", lr_shared="0.003")
    (table,) = tables_of(first, second)
    assert [row.label for row in table.rows] == ["fedavg", "fedpdpo"]
    assert "lr-shared: 0.01 (fedavg); 0.003 (fedpdpo)" in table.notes


def test_equal_values_in_other_spelling_belong_together(tmp_path: Path) -> None:
    first = write_run(tmp_path / "1.h5", seed=1, alpha="0.30", lr_shared="1e-2", model="models/x/")
    second = write_run(tmp_path / "2.h5", seed=2, alpha="0.3", lr_shared="0.01", model="models/x")
    (table,) = tables_of(first, second)
    assert [row.label for row in table.rows] == ["fedavg"] and len(table.rows[0].runs) == 2
    assert canonical("fedavg") == "fedavg" and canonical("1e1") == "10"


def test_models_are_titled_by_the_last_part_of_their_path(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"{m}.h5", model=f"/some/where/{m}") for m in ("large", "small")]
    assert [table.title for table in tables_of(*paths)] == ["model = large", "model = small"]
    paths = [write_run(tmp_path / f"{m}.h5", model=f"/{m}/same") for m in ("large", "small")]
    assert [table.title for table in tables_of(*paths)] == ["model = /large/same", "model = /small/same"]


def test_by_makes_tables_and_the_rest_makes_rows(tmp_path: Path) -> None:
    runs = itertools.product(("0.1", "1"), (5, 10))
    paths = [write_run(tmp_path / f"{a}-{n}.h5", alpha=a, rounds=n) for a, n in runs]
    assert len(tables_of(*paths)) == 4
    tables = tables_of(*paths, by=["alpha"])
    assert [table.title for table in tables] == ["alpha = 0.1", "alpha = 1"]
    assert [row.label for row in tables[0].rows] == ["fedavg rounds=5", "fedavg rounds=10"]


def test_by_an_unknown_option_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5")
    code, out, err = run_cli(capsys, "summarize", tmp_path, "--by", "alhpa")
    assert (code, out, err) == (2, "", "analysis: --by: no run has an option 'alhpa'\n")


def test_where_selects_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for alpha in ("0.1", "1", "10"):
        write_run(tmp_path / f"{alpha}.h5", alpha=alpha)
    out = run_cli(capsys, "summarize", tmp_path, "--where", "alpha=1.0,0.1")[1]
    assert "alpha = 0.1" in out and "alpha = 1 " in out and "alpha = 10" not in out
    code, _, err = run_cli(capsys, "summarize", tmp_path, "--where", "alpha=7")
    assert code == 2 and "no run matches --where (3 looked at)" in err


def test_the_same_run_twice_counts_once(tmp_path: Path) -> None:
    (table,) = tables_of(write_run(tmp_path / "1.h5"), write_run(tmp_path / "copy.h5"))
    assert [run.path.name for run in table.rows[0].runs] == ["1.h5"]
    assert any("copy.h5 left out: same options and seed as" in note for note in table.notes)


def test_other_clients_are_other_tables(tmp_path: Path) -> None:
    tables = tables_of(write_run(tmp_path / "1.h5", names=["a", "b"]), write_run(tmp_path / "2.h5", seed=2))
    assert [table.client_names for table in tables] == [["a", "b"], ["c0", "c1"]]
    assert len({table.title for table in tables}) == 2


def test_pooled_data_is_a_row_with_a_mean_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5")
    write_run(tmp_path / "2.h5", method="centralized", accuracy=[[0.5], [0.9]], names=["all"])
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    assert cells(out, "centralized") == ["centralized", "1", "-", "-", "0.900", "-"]
    assert "mean over the pooled data, not over clients: centralized" in out


def test_rows_follow_the_order_of_methods(tmp_path: Path) -> None:
    methods = ["fedpdpo", "zeta", "fedavg", "local"]
    (table,) = tables_of(*[write_run(tmp_path / f"{m}.h5", method=m) for m in methods])
    assert [row.method for row in table.rows] == ["local", "fedavg", "fedpdpo", "zeta"]


def test_other_program_versions_and_devices_are_noted(tmp_path: Path) -> None:
    first = write_run(tmp_path / "1.h5", device="cpu", environment={"git_hash": "aaa"})
    second = write_run(tmp_path / "2.h5", seed=2, device="cuda", environment={"git_hash": "bbb"})
    (table,) = tables_of(first, second)
    assert {"runs differ in device: cpu, cuda", "runs differ in source revision: aaa, bbb"} <= set(table.notes)


# Comparison


def comparison(tmp_path: Path, runs: Sequence[dict[str, Any]]) -> stats.Comparison:
    """Of the last method given against fedavg."""
    (table,) = tables_of(*[write_run(tmp_path / f"{i}.h5", **run) for i, run in enumerate(runs)])
    (result,) = summarize(table, stats.Query(), "fedavg").comparisons or []
    return result


def test_comparison_counts_and_interval(tmp_path: Path) -> None:
    # 400 pairs of two clients: better on 100, worse on 60, equal on 240; spread evenly over the clients.
    base = np.tile(np.repeat([-1.0, 1.0, 1.0], [50, 30, 120]), 2)
    other = np.tile(np.repeat([1.0, -1.0, 1.0], [50, 30, 120]), 2)
    result = comparison(tmp_path, [{"margin": base}, {"method": "fedpdpo", "margin": other}])
    assert (result.wins, result.losses, result.pairs, result.seeds) == (100, 60, 400, 1)
    assert result.difference == pytest.approx(0.1)
    half = 1.96 * math.sqrt((160 / 400 - 0.1**2) / 400)
    assert (result.low, result.high) == (pytest.approx(0.1 - half, abs=0.006), pytest.approx(0.1 + half, abs=0.006))
    assert result.p_value == pytest.approx(2 * sum(math.comb(160, k) for k in range(61)) / 2**160)


def test_comparison_averages_over_clients_and_halves_ties(tmp_path: Path) -> None:
    client = [0, 0, 0, 0, 1]
    base = {"margin": [-1, -1, 1, 1, 1], "client": client}
    other = {"method": "fedpdpo", "margin": [1, 0, 1, 1, -1], "client": client}
    result = comparison(tmp_path, [base, other])
    # client 0: (1 + .5) / 4; client 1: -1
    assert result.difference == pytest.approx((1.5 / 4 - 1) / 2)
    assert (result.wins, result.losses) == (2, 1)


def test_comparison_pairs_by_identity_not_by_position(tmp_path: Path) -> None:
    base = {"margin": [1, -1, 1, 1], "client": [0, 0, 1, 1], "pair": [10, 11, 12, 13]}
    other = {"method": "fedpdpo", "margin": [1, 1, -1, 1], "client": [1, 1, 0, 0], "pair": [13, 12, 11, 10]}
    result = comparison(tmp_path, [base, other])
    assert (result.difference, result.wins, result.losses, result.p_value) == (0.0, 0, 0, 1.0)


def test_seeds_share_their_test_pairs(tmp_path: Path) -> None:
    worse, better = [-1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    runs = [{"seed": s, "margin": worse} for s in (1, 2, 3)]
    runs += [{"seed": s, "margin": better, "method": "fedpdpo"} for s in (1, 2, 3, 4)]
    result = comparison(tmp_path, runs)
    assert (result.seeds, result.pairs, result.wins, result.losses) == (3, 4, 2, 0)  # two votes, not six
    assert result.p_value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"pair": [5, 6, 7, 8]}, "test pairs of seed 1 are not the same"), ({"seed": 2}, "no seed in common")],
)
def test_what_cannot_be_paired_is_said(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    result = comparison(tmp_path, [{}, {"method": "fedpdpo", **change}])
    assert problem in result.problem and math.isnan(result.difference)


def test_baseline_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", margin=[-1.0] * 9 + [1.0])
    write_run(tmp_path / "2.h5", method="local", margin=[1.0] * 9 + [-1.0])
    _, out, _ = run_cli(capsys, "summarize", tmp_path, "--baseline", "fedavg")
    last = [line.split() for line in out.splitlines() if line.startswith("local ")][-1]
    # 9 better, 1 worse: p = 2 (1 + 10) / 1024; client means .6 + 1.0
    assert last[:4] == ["local", "1", "10", "+0.800"] and last[-3:] == ["9", "1", "0.0215"]
    assert "exact two-sided sign test" in out and "bootstrap" in out
    assert "no row of this table is 'nosuch'" in run_cli(capsys, "summarize", tmp_path, "--baseline", "nosuch")[1]
    write_run(tmp_path / "3.h5", lr_shared=1)
    out = run_cli(capsys, "summarize", tmp_path, "--baseline", "fedavg")[1]
    assert "name one: 'fedavg lr-shared=0.01', 'fedavg lr-shared=1'" in out
    out = run_cli(capsys, "summarize", tmp_path, "--baseline", "fedavg lr-shared=1")[1]
    assert "against fedavg lr-shared=1" in out


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12)])
def test_sign_test_against_the_binomial_sum(wins: int, losses: int) -> None:
    n = wins + losses
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)
    assert stats.sign_test(wins, losses) == pytest.approx(expected)


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


# Figures


def curve(clients: int, level: float) -> np.ndarray:
    rounds = np.arange(16)[:, None]
    return 0.5 + (level - 0.5) * (1 - np.exp(-rounds / 4.0)) * np.linspace(0.9, 1.1, clients)


def write_sweep(folder: Path, alphas: Sequence[str] = ("0.1", "10"), clients: int = 4, **more: Any) -> None:
    levels = {"local": 0.7, "fedavg": 0.8, "fedavg-ft": 0.802, "fedper": 0.805, "fedpdpo": 0.86}
    for (method, level), alpha, seed in itertools.product(levels.items(), alphas, (1, 2)):
        head = {"explicit": 0.6} if method == "fedpdpo" else {}
        accuracy = curve(clients, level + 0.01 * seed)
        write_run(folder / f"{method}-{alpha}-{seed}.h5", method, seed, accuracy, alpha=alpha, **head, **more)


def test_figures_are_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs")
    code, out, err = run_cli(capsys, "figures", tmp_path / "runs", "--out", tmp_path / "figures")
    assert (code, err) == (0, "")
    stems = ["accuracy-by-round", "accuracy-heatmap-alpha-0.1", "accuracy-heatmap-alpha-10", "partition"]
    names = {f"{stem}.{kind}" for stem in [*stems, "reward-accuracy-by-round"] for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names | {"captions.md"}
    assert {Path(line).name for line in out.splitlines()} == names | {"captions.md"}
    captions = (tmp_path / "figures/captions.md").read_text(encoding="utf-8")
    assert all(f"**{Path(name).stem}.**" in captions for name in names)


def test_domains_have_a_panel_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs", alphas=("0.3",), domains=("news", "law"))
    drawing = drawings_of(tmp_path / "runs")["accuracy-by-round-domains-"]
    assert [axis.get_title() for axis in drawing.axes] == ["news (2 clients)", "law (2 clients)"]
    line = drawing.axes[1].lines[0]  # local, mean over clients 1 and 3 and both seeds
    expected = np.mean([curve(4, 0.7 + 0.01 * seed)[:, [1, 3]] for seed in (1, 2)], axis=(0, 2))
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_figures_are_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs")
    contents = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "analysis", "figures", str(tmp_path / "runs"), "--out", str(tmp_path / name)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert all(b"<dc:date>" not in data for data in contents[0].values())


def test_png_is_at_200_dpi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs", alphas=("0.3",))
    run_cli(capsys, "figures", tmp_path / "runs", "--out", tmp_path)
    data = (tmp_path / "accuracy-by-round.png").read_bytes()
    width = struct.unpack(">I", data[16:20])[0]
    per_metre = struct.unpack(">I", data[data.index(b"pHYs") + 4 :][:4])[0]
    assert round(per_metre * 0.0254) == 200 and width == round(3.4 * 200)


def drawings_of(folder: Path) -> dict[str, Any]:
    """The figures before they are saved, by name, laid out."""
    import matplotlib.pyplot as plt

    from analysis.figures import curves, heatmap, partition, rewards, style

    plt.switch_backend("Agg")
    style.apply_style()
    tables = tables_of(*analysis.find_files([folder]).finished)
    query = stats.Query()
    drawings = [*curves.by_setting(tables, query), *curves.by_domain(tables, query), *heatmap.draw(tables, query)]
    drawings += [*partition.draw(tables), *rewards.draw(tables, query)]
    for drawing in drawings:
        drawing.figure.canvas.draw()
    return {drawing.name: drawing.figure for drawing in drawings}


@pytest.mark.parametrize(
    ("alphas", "clients", "more"),
    [
        (("0.3",), 4, {}),
        (("0.1", "0.3", "10"), 10, {}),
        (("0.3",), 3, {"names": ["helpfulness", "harmlessness", "summaries"], "domains": ("hh", "pku", "tldr")}),
        (("0.3",), 30, {}),
    ],
)
def test_no_text_is_clipped_or_overlaps(
    tmp_path: Path, alphas: tuple[str, ...], clients: int, more: dict[str, Any]
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.text import Text

    write_sweep(tmp_path, alphas, clients, **more)
    for name, figure in drawings_of(tmp_path).items():
        renderer = figure.canvas.get_renderer()
        hidden = {id(text) for axis in figure.axes if not axis.get_visible() for text in axis.findobj(Text)}
        for axis in figure.axes:
            # A tick outside the limits or without its label is not drawn, although its text exists.
            for ticked, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
                low, high = sorted(limits)
                for tick in [*ticked.get_major_ticks(), *ticked.get_minor_ticks()]:
                    off = not low - 1e-9 <= tick.get_loc() <= high + 1e-9
                    hidden |= {id(t) for t in (tick.label1, tick.label2) if off or not t.get_visible()}
        boxes = []
        for text in figure.findobj(Text):
            if text.get_text().strip() and text.get_visible() and id(text) not in hidden:
                boxes.append((text.get_text(), text.get_window_extent(renderer), text.get_rotation() % 90 != 0))
        width, height = figure.bbox.size
        assert len(boxes) > 5
        for label, box, _ in boxes:
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, f"{name}: '{label}' is clipped"
        straight = [(label, box) for label, box, slanted in boxes if not slanted]
        for (label, box), (other, other_box) in itertools.combinations(straight, 2):
            x = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            y = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert x <= 1 or y <= 1, f"{name}: '{label}' overlaps '{other}'"


def test_curves_show_mean_and_band_and_leave_out_unevaluated_rounds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from analysis.figures.curves import over_seeds

    accuracy = np.array([[0.5, 0.5], [NAN, NAN], [0.6, 0.8]])
    first = write_run(tmp_path / "1.h5", accuracy=accuracy)
    second = write_run(tmp_path / "2.h5", seed=2, accuracy=accuracy + 0.1)
    (table,) = tables_of(first, second)
    query = stats.Query()
    rounds, mean, sd = over_seeds(table.rows[0], lambda run: stats.client_means(stats.series(run, query)))
    assert rounds.tolist() == [0, 2]
    np.testing.assert_allclose(mean, [0.55, 0.75])
    np.testing.assert_allclose(sd, [math.sqrt(0.005)] * 2)


def test_heat_map_values_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "1.h5", accuracy=[[0.5, 0.5], [0.6, 0.9]])
    write_run(tmp_path / "2.h5", seed=2, accuracy=[[0.5, 0.5], [0.8, 0.9]])
    write_run(tmp_path / "3.h5", method="local", accuracy=[[0.5, 0.5], [0.25, 1.0]])
    figure = drawings_of(tmp_path)["accuracy-heatmap-"]
    main, mean, _ = figure.axes
    np.testing.assert_allclose(main.images[0].get_array(), [[0.25, 1.0], [0.7, 0.9]])
    np.testing.assert_allclose(mean.images[0].get_array(), [[0.625], [0.8]])
    assert [text.get_text() for text in main.texts] == [".25", "1.0", ".70", ".90"]


def test_bubble_areas_are_proportional_to_pairs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = write_run(tmp_path / "1.h5")
    histogram = analysis.load(path).partition["label_histogram"][:, 0, :]
    axis = drawings_of(tmp_path)["partition"].axes[0]
    (collection,) = axis.collections
    counts = [histogram[int(x), int(y)] for x, y in collection.get_offsets()]
    assert sum(counts) == histogram.sum()
    ratio = collection.get_sizes() / np.array(counts)
    np.testing.assert_allclose(ratio, ratio[0])
    # The largest is of the size of its place without touching its neighbours; areas are in square points.
    (x0, y0), (x1, y1) = axis.transData.transform([(0, 0), (1, 1)]) * 72 / axis.figure.dpi
    place = min(abs(x1 - x0), abs(y1 - y0))
    assert 0.4 * place < math.sqrt(collection.get_sizes().max()) <= place


def test_direct_labels_leave_the_width_to_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path, alphas=("0.3",))
    (axis,) = drawings_of(tmp_path)["accuracy-by-round"].axes
    assert {text.get_text() for text in axis.texts} == {"local", "fedavg", "fedavg-ft", "fedper", "fedpdpo", "chance"}
    assert axis.get_position().width > 0.6


def test_a_reward_head_that_ties_everything_has_no_panel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "1.h5", explicit=0.5)
    assert "reward-accuracy-by-round" not in drawings_of(tmp_path)
    write_run(tmp_path / "2.h5", method="fedpdpo", explicit=0.6)
    figure = drawings_of(tmp_path)["reward-accuracy-by-round"]
    assert [axis.get_title() for axis in figure.axes] == ["fedpdpo"]


def test_every_method_has_its_own_look() -> None:
    pytest.importorskip("matplotlib")
    from analysis.figures.style import method_style
    from analysis.grouping import METHOD_ORDER

    looks = [method_style(method) for method in METHOD_ORDER]
    assert len(set(looks)) == len(METHOD_ORDER) == 23
    common = ["local", "local-pdpo", "private-only", "fedavg", "fedavg-ft", "fedper", "fedpdpo"]
    assert len({method_style(method)[0] for method in common}) == len(common)
    assert method_style("mine") == method_style("mine") != method_style("yours-too")


def test_variants_of_a_method_share_its_colour(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from analysis.figures.style import method_style, row_styles

    tables = tables_of(*[write_run(tmp_path / f"{v}.h5", lr_shared=v) for v in (1, 2)])
    first, second = row_styles(tables).values()
    assert first.color == second.color == method_style("fedavg")[0]
    assert first.dashes != second.dashes
