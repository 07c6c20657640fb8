"""The study's tables and its bag of words, on small synthetic runs whose numbers can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from analysis_support import cells, run_cli, write_run

import analysis
from analysis.bag_of_words import accuracies, bag_of_words, fit, pair_bags

FLIPS = {"partition": "iid", "alpha": "1", "flip_clients": "0.5"}


def rows(*last: float) -> list[list[float]]:
    return [[0.5] * len(last), list(last)]


def add_bytes(path: Path, sent: float) -> None:
    with h5py.File(path, "a") as file:
        rounds, clients = file["clients/test/after/accuracy"].shape
        values = np.full((rounds, clients), sent)
        values[0] = 0
        file["clients/train/bytes_up"] = values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """fedavg and fedpdpo, skewed with two seeds and flipped with one; fedper skewed with one seed."""
    for seed, accuracy in ((1, 0.7), (2, 0.8)):
        skewed = {"partition": "dirichlet", "seed": seed}
        add_bytes(write_run(tmp_path / f"a-fedavg-{seed}.h5", accuracy=rows(accuracy, accuracy - 0.2), **skewed), 2000)
        add_bytes(write_run(tmp_path / f"a-fedpdpo-{seed}.h5", method="fedpdpo", accuracy=rows(0.9, 0.8),
                            margin=(1.0, 1.0, 1.0, 1.0), **skewed), 2000)
    write_run(tmp_path / "a-fedper.h5", method="fedper", accuracy=rows(0.7, 0.7), partition="dirichlet")
    write_run(tmp_path / "f-fedavg.h5", accuracy=rows(0.5, 0.5), lr_shared="0.003", **FLIPS)
    write_run(tmp_path / "f-fedpdpo.h5", method="fedpdpo", accuracy=rows(0.7, 0.8), **FLIPS)
    return tmp_path


def test_overview_has_a_column_a_setting(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(capsys, "study", folder, "--no-bag-of-words")
    assert code == 0
    table = out.split("\n\n")[1]
    assert cells(table, "method") == ["method", "dirichlet, alpha 0.3", "iid, flip-clients 0.5", "kB up"]
    assert cells(table, "fedavg") == ["fedavg", "0.650 ± 0.071", "0.500 (n=1)", "2.0"]
    assert cells(table, "fedpdpo") == ["fedpdpo", "0.850 ± 0.000", "0.750 (n=1)", "2.0"]
    assert cells(table, "fedper") == ["fedper", "0.700 (n=1)", "-", "-"]


def test_missing_runs_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(folder / "x.h5.partial", status="running")
    _, out, err = run_cli(capsys, "study", folder, "--no-bag-of-words")
    assert "dirichlet, alpha 0.3: fedper: missing seed 2" in out
    assert "iid, flip-clients 0.5: missing: fedper" in out
    assert "iid, flip-clients 0.5: fedavg: missing seed 2" in out
    assert "1 unfinished left out" in err


def test_settings_show_the_worst_and_the_paired_difference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_cli(capsys, "study", folder, "--no-bag-of-words")
    table = out.split("== dirichlet, alpha 0.3 ==")[1].split("\n\n")[1]
    assert cells(table, "method") == ["method", "accuracy", "worst decile", "spread", "fedpdpo minus it"]
    fedavg = cells(table, "fedavg")
    assert fedavg[1:4] == ["0.650 ± 0.071", "0.550 ± 0.071", "0.141 ± 0.000"]
    assert fedavg[4].startswith("+0.250 [")  # one of four test pairs is wrong with fedavg alone
    assert cells(table, "fedpdpo")[4] == "-"


def test_what_the_run_recorded_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "a.h5", accuracy=rows(0.7, 0.5))
    with h5py.File(path, "a") as file:
        file["rounds/test/after/accuracy_worst_decile"] = [0.1, 0.4]
        file["rounds/test/after/accuracy_spread"] = [0.0, 0.25]
    _, out, _ = run_cli(capsys, "study", path, "--no-bag-of-words", "--against", "")
    assert cells(out.split("== all runs ==")[1], "fedavg") == ["fedavg", "0.600", "0.400", "0.250"]


def test_markdown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_cli(capsys, "study", folder, "--no-bag-of-words", "--markdown")
    assert "| fedavg | 0.650 ± 0.071 | 0.500 (n=1) | 2.0 |" in out
    assert "**iid, flip-clients 0.5**" in out


def test_empty_folder_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(capsys, "study", tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1


# Bag of words: token 1 is always chosen over token 2; all other tokens are the same on both sides.


def write_pairs(path: Path, count: int) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["vocab_size"] = 5
        for name, token in (("chosen", 1), ("rejected", 2)):
            file[f"{name}/tokens"] = np.array([3, token, 4] * count, dtype=np.uint32)
            file[f"{name}/offsets"] = np.arange(0, 3 * count + 1, 3, dtype=np.uint64)
    return path


def write_partition(path: Path, flipped: tuple[int, int]) -> Path:
    """Two clients with four train pairs and one of the others each, of twelve pairs."""
    with h5py.File(path, "a") as file:
        del file["partition/train/pair"], file["partition/flipped"]
        file["partition/flipped"] = np.array(flipped, dtype=float)
        for split, pairs, each in (("train", range(8), 4), ("validation", (8, 9), 1), ("test", (10, 11), 1)):
            file[f"partition/{split}/pair"] = np.array(pairs, dtype=np.uint64)
            file[f"partition/{split}/file"] = np.zeros(len(pairs), dtype=np.uint32)
            file[f"partition/{split}/offsets"] = np.array([0, each, 2 * each], dtype=np.uint64)
    return path


def test_bag_of_words_respects_flips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_pairs(tmp_path / "p.h5", 12)
    plain = write_partition(write_run(tmp_path / "r" / "a.h5", accuracy=rows(0.7, 0.5), data=str(pairs)), (0, 0))
    flipped = write_partition(write_run(tmp_path / "f.h5", accuracy=rows(0.7, 0.5), data=str(pairs)), (0, 1))
    result = bag_of_words(analysis.load(plain))
    assert result["local"].accuracy.tolist() == [1, 1]
    assert result["pooled"].accuracy.tolist() == [1, 1]
    result = bag_of_words(analysis.load(flipped))
    assert result["local"].accuracy.tolist() == [1, 1]
    assert result["pooled"].accuracy.tolist() == [0.5, 0.5]  # contradictory clients cancel: ties
    _, out, _ = run_cli(capsys, "study", tmp_path / "r")
    assert cells(out.split("\n\n")[1], "bag of words, local") == ["bag of words, local", "1.000", "-"]


def test_bag_of_words_reads_every_pair_file(tmp_path: Path) -> None:
    files = [write_pairs(tmp_path / name, 12) for name in ("p.h5", "q.h5")]
    with h5py.File(files[1], "a") as file:  # the other way around
        file["chosen/tokens"][()], file["rejected/tokens"][()] = file["rejected/tokens"][()], file["chosen/tokens"][()]
    data = " ".join(map(str, files))
    path = write_partition(write_run(tmp_path / "a.h5", accuracy=rows(0.7, 0.5), data=data), (0, 0))
    with h5py.File(path, "a") as file:  # the second client's pairs are the second file's
        for split in ("train", "validation", "test"):
            column = file[f"partition/{split}/file"]
            column[len(column) // 2:] = 1
    result = bag_of_words(analysis.load(path))
    assert result["local"].accuracy.tolist() == [1, 1]
    assert result["pooled"].accuracy.tolist() == [0.5, 0.5]


def test_a_lone_pair_file_may_have_a_blank_in_its_name(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "my pairs.h5", 12)
    path = write_partition(write_run(tmp_path / "a.h5", accuracy=rows(0.7, 0.5), data=str(pairs)), (0, 0))
    assert bag_of_words(analysis.load(path))["local"].accuracy.tolist() == [1, 1]


def test_missing_pairs_are_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_partition(write_run(tmp_path / "a.h5", accuracy=rows(0.7, 0.5), data="no.h5"), (0, 0))
    code, out, _ = run_cli(capsys, "study", path)
    assert code == 0
    assert "no bag of words" in out and "data: no.h5: no such file" in out


def test_pairs_are_count_differences(tmp_path: Path) -> None:
    run = analysis.load(write_run(tmp_path / "a.h5"))
    bags = pair_bags(write_pairs(tmp_path / "p.h5", 2), run)
    assert bags.tolist() == [[0, 1, -1, 0, 0]] * 2


def test_fit_is_the_minimum() -> None:
    rng = np.random.default_rng(3)
    bags, penalty = rng.integers(-2, 3, size=(60, 4)).astype(float), 1.0
    bags[:, 3] = 0
    weights = fit(bags, penalty)
    gradient = penalty / 60 * weights - bags.T @ (1 / (1 + np.exp(bags @ weights))) / 60
    assert np.abs(gradient).max() < 1e-3
    assert weights[3] == 0
    assert accuracies([bags[:0]], [weights]).tolist() != accuracies([bags], [weights]).tolist()
