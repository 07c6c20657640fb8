"""Tests of the analysis package: which runs make one row or one table, and how two methods are compared.

On small synthetic run files; every expected number is computed in the test or stated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from analysis_support import cells, run_cli, tables_of, write_run

from analysis import stats
from analysis.grouping import InputsDiffer, canonical
from analysis.summarize import summarize

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


@pytest.mark.parametrize("option", ["lr-shared", "lr-private", "head", "bottleneck", "reward-pool", "loss", "prox-mu",
                                    "personal-lora", "personal-prox", "dp-clip", "compress", "agreement-errors"])
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


# What must not be averaged


def other_clients(path: Path, **changes: Any) -> None:
    """Gives a run's partition other values."""
    with h5py.File(path, "r+") as file:
        for name, values in changes.items():
            file[f"partition/{name.replace('__', '/')}"][...] = values


def test_clients_of_other_partitions_have_no_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "1.h5", accuracy=[[0.5, 0.5], [0.6, 0.9]])
    write_run(tmp_path / "2.h5", seed=2, accuracy=[[0.5, 0.5], [0.8, 0.7]])
    write_run(tmp_path / "3.h5", method="centralized", accuracy=[[0.5], [0.9]], names=["all"])
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    assert cells(out, "method")[2:] == ["c0", "c1", "mean", "worst client"] and "partitions differ" not in out
    other_clients(tmp_path / "2.h5", train__pair=[9, 8, 7, 6, 5])
    _, out, _ = run_cli(capsys, "summarize", tmp_path, "--csv", tmp_path / "out.csv")
    assert cells(out, "method")[2:] == ["mean", "worst client"]
    assert cells(out, "fedavg") == ["fedavg", "2", "0.750 ± 0.000", f"0.650 ± {math.sqrt(0.005):.3f}"]
    assert cells(out, "centralized") == ["centralized", "1", "0.900", "-"]
    assert "the runs' partitions differ: no columns by client" in out
    assert ",c0," not in (tmp_path / "out.csv").read_text()
    _, out, _ = run_cli(capsys, "summarize", tmp_path, "--where", "seed=2")
    assert cells(out, "fedavg")[2:4] == ["0.800", "0.700"]


@pytest.mark.parametrize(("change", "by_client"), [
    ({"train__pair": [9, 8, 7, 6, 5]}, True), ({"flipped": [0, 1]}, False), ({"client_domain": [1, 0]}, False),
])
def test_the_only_client_of_a_domain_is_the_same_in_all_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], by_client: bool
) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}.h5", seed=seed, domains=("a", "b"))
    other_clients(tmp_path / "2.h5", **change)
    _, out, _ = run_cli(capsys, "summarize", tmp_path)
    assert (cells(out, "method")[2:4] == ["c0", "c1"]) == by_client


def hashes(data: str, model: str = "m1") -> dict[str, str]:
    return {"data_sha256": data, "model_sha256": model}


@pytest.mark.parametrize("command", [("summarize",), ("study", "--no-bag-of-words"), ("figures", "--out", "pictures")])
@pytest.mark.parametrize(("second", "reason"), [
    (hashes("a1 b2"), "different data: b.h5 (sha256 b1... and b2...);"),
    (hashes("a2 b2"), "different data: a.h5 (sha256 a1... and a2...), b.h5 (sha256 b1... and b2...);"),
    (hashes("a1 b1", "m2"), "different model: m (sha256 m1... and m2...);"),
])
def test_other_inputs_under_the_same_names_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], second: dict[str, str], reason: str
) -> None:
    first = write_run(tmp_path / "1.h5", data="a.h5 b.h5", environment=hashes("a1 b1"))
    other = write_run(tmp_path / "2.h5", seed=2, data="a.h5 b.h5", environment=second)
    words = [tmp_path / word if word == "pictures" else word for word in command]
    code, out, err = run_cli(capsys, words[0], tmp_path, *words[1:])
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"{first} and {other} were made with {reason} they cannot be averaged or compared" in err


def test_equal_other_named_and_unrecorded_inputs_are_as_before(tmp_path: Path) -> None:
    known = write_run(tmp_path / "1.h5", environment=hashes("a1"))
    same = write_run(tmp_path / "2.h5", seed=2, environment=hashes("a1"))
    unknown = write_run(tmp_path / "3.h5", seed=3)
    (table,) = tables_of(known, same, unknown)
    assert [run.seed for run in table.rows[0].runs] == [1, 2, 3]
    named = write_run(tmp_path / "4.h5", seed=2, data="e.h5", environment=hashes("a2"))
    assert [len(table.runs) for table in tables_of(known, named)] == [1, 1]
    assert len(tables_of(known, named, by=["alpha"])[0].rows) == 2
    # Of the same seed, too: it would be left out as a copy.
    with pytest.raises(InputsDiffer, match="copy.h5 were made with different data"):
        tables_of(known, write_run(tmp_path / "copy.h5", environment=hashes("a2")))


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
    code, out, err = run_cli(capsys, "summarize", tmp_path, "--baseline", "nosuch")
    assert (code, out) == (2, "") and err == "analysis: --baseline: expected one of local, fedavg, found nosuch\n"
    write_run(tmp_path / "3.h5", lr_shared=1)
    _, out, err = run_cli(capsys, "summarize", tmp_path, "--baseline", "nosuch")
    assert "expected one of local, fedavg, fedavg lr-shared=0.01, fedavg lr-shared=1, found nosuch" in err
    write_run(tmp_path / "4.h5", method="fedper", alpha="9")  # a table of its own, without the baseline
    code, out, _ = run_cli(capsys, "summarize", tmp_path, "--baseline", "local")
    assert code == 0 and "no comparison: no row of this table is 'local'" in out
    (tmp_path / "4.h5").unlink()
    out = run_cli(capsys, "summarize", tmp_path, "--baseline", "fedavg")[1]
    assert "name one: 'fedavg lr-shared=0.01', 'fedavg lr-shared=1'" in out
    out = run_cli(capsys, "summarize", tmp_path, "--baseline", "fedavg lr-shared=1")[1]
    assert "against fedavg lr-shared=1" in out


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12)])
def test_sign_test_against_the_binomial_sum(wins: int, losses: int) -> None:
    n = wins + losses
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)
    assert stats.sign_test(wins, losses) == pytest.approx(expected)
