"""Methods are compositions: private modules, a personal LoRA, groups and compression over any aggregation of LoRA."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_support import (Workspace, differences, group_values, metrics, needs_program, random_pairs, read,
                         run_everywhere, write_pairs)

pytestmark = needs_program

MODULES = {"head": "full", "bottleneck": 4, "reward_head": "on"}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "fedpdpo": {"method": "fedpdpo", "bottleneck": 4},
    "fedpdpo's modules over ffa-lora": {"method": "ffa-lora", **MODULES},
    "fedpdpo's modules over fedsa-lora": {"method": "fedsa-lora", **MODULES},
    "fedpdpo's modules over fedex-lora": {"method": "fedex-lora", **MODULES},
    "fedpdpo's modules over scaffold": {"method": "scaffold", **MODULES},
    "fedpdpo's modules over flora": {"method": "flora", **MODULES, "lora_ranks": "4,2"},
    "fedpdpo with an APFL LoRA": {"method": "fedpdpo", "bottleneck": 4, "personal_lora": "apfl"},
    "fedpdpo in 8 bits": {"method": "fedpdpo", "bottleneck": 4, "compress": "int8"},
    "fedpdpo, the largest tenth": {"method": "fedpdpo", "bottleneck": 4, "compress": "topk", "compress_share": 0.1},
    "fedpdpo in two clusters": {"method": "fedpdpo", "bottleneck": 4, "groups": "clusters:2"},
    "ditto over scaffold": {"method": "scaffold", "personal_lora": "ditto"},
    "apfl over ffa-lora": {"method": "ffa-lora", "personal_lora": "apfl"},
    "feddpa over fedadam": {"method": "fedadam", "personal_lora": "feddpa", "server_lr": 0.05},
    "ditto, refitted": {"method": "ditto", "refit": 2},
    "fedprox with a private head in turns": {"method": "fedprox", "head": "lowrank", "schedule": "alternate"},
}


@pytest.fixture(scope="module")
def trained(space: Workspace) -> dict[str, Path]:
    data = write_pairs(space.folder / "more.h5", random_pairs(150))
    long = {"data": data, "rounds": 6, "steps": 4, "batch": 8, "lora_rank": 4, "lr_private": 0.01}
    return dict(zip(COMBINATIONS, space.run_several({
        f"combination-{i}": long | options for i, options in enumerate(COMBINATIONS.values())})))


def test_combinations_learn(trained: dict[str, Path]) -> None:
    """30 test pairs: chance is .5 with a standard deviation of .09."""
    for name, run in trained.items():
        assert read(run, "rounds/test/after/accuracy")[-1] > 0.75, name
        assert read(run, "rounds/train/loss")[-1] < read(run, "rounds/train/loss")[1], name
        with_reward = COMBINATIONS[name]["method"] == "fedpdpo" or "reward_head" in COMBINATIONS[name]
        assert (np.abs(read(run, "final/test/margin_explicit")).max() > 1e-3) == with_reward, name


def test_combinations_differ(trained: dict[str, Path]) -> None:
    margins = {name: read(run, "final/test/margin").tobytes() for name, run in trained.items()}
    assert [pair for pair in combinations(margins, 2) if margins[pair[0]] == margins[pair[1]]] == []


def test_modules_change_nothing_in_what_travels(trained: dict[str, Path]) -> None:
    """Bytes are the aggregation's."""
    up = {name: read(run, "clients/train/bytes_up")[1:] for name, run in trained.items()}
    whole = up["fedpdpo"]
    assert (up["fedpdpo's modules over fedex-lora"] == whole).all() and (up["ditto, refitted"] == whole).all()
    assert (up["fedpdpo's modules over scaffold"] == 2 * whole).all()
    np.testing.assert_array_equal(
        up["fedpdpo's modules over ffa-lora"] + up["fedpdpo's modules over fedsa-lora"], whole)
    np.testing.assert_array_equal(up["fedpdpo's modules over ffa-lora"], up["apfl over ffa-lora"])


CASES: dict[str, dict[str, Any]] = {
    "modules over ffa-lora": {"method": "ffa-lora", **MODULES},
    "modules over fedex-lora, alternate": {"method": "fedex-lora", "schedule": "alternate", "refit": 1, **MODULES},
    "ditto over scaffold": {"method": "scaffold", "personal_lora": "ditto", "participation": 0.75},
    "apfl over fedsa-lora": {"method": "fedsa-lora", "personal_lora": "apfl", "lr_private": 0.01, "refit": 1},
    "everything": {"method": "fedpdpo", "bottleneck": 4, "personal_lora": "apfl", "groups": "clusters:2", "refit": 1,
                   "compress": "topk", "compress_share": 0.2, "participation": 0.75, "new_clients": 1,
                   "cross_eval": True, "lora_dropout": 0.1, "loss": "robust"},
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_resume(space: Workspace, case: str) -> None:
    run_everywhere(space, case.replace(", ", "-").replace(" ", "-"), **CASES[case])


IDENTITIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fedper is fedavg with a private head": ({"method": "fedper"}, {"method": "fedavg", "head": "full"}),
    "fedrep is fedper with the head first": ({"method": "fedrep"}, {"method": "fedper", "schedule": "alternate"}),
    "ditto is fedavg with a LoRA of one's own": ({"method": "ditto"}, {"method": "fedavg", "personal_lora": "ditto"}),
    "local-pdpo without its modules is local": (
        {"method": "local-pdpo", "head": "frozen", "bottleneck": 0, "reward_head": "off"}, {"method": "local"}),
    "private-only is local-pdpo without LoRA": (
        {"method": "private-only"}, {"method": "local-pdpo", "lora_rank": 0, "lora_dropout": None}),
    "fedavg-ft without tuning is fedavg": ({"method": "fedavg-ft", "refit": 0}, {"method": "fedavg"}),
    "fedavgm without momentum is fedavg": ({"method": "fedavgm", "server_momentum": 0}, {"method": "fedavg"}),
    "fedavg with all modules is fedpdpo": ({"method": "fedavg", **MODULES}, {"method": "fedpdpo", "bottleneck": 4}),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_identities(space: Workspace, case: str) -> None:
    runs = space.run_several({f"{case.replace(' ', '-')}-{i}": {"rounds": 4, "lora_dropout": 0.1, **options}
                              for i, options in enumerate(IDENTITIES[case])})
    assert differences(metrics(runs[0]), metrics(runs[1])) == []


def test_one_client_has_nothing_to_correct(space: Workspace) -> None:
    """Up to rounding: SCAFFOLD's controls cancel, and averages of one client leave nothing out."""
    plain, *others = (read(space.run(f"one-{method}", method=method, clients=1, rounds=4), "final/test/margin")
                      for method in ("fedavg", "scaffold", "fedex-lora"))
    assert np.abs(plain).max() > 1e-3
    for margin in others:
        np.testing.assert_allclose(margin, plain, rtol=0, atol=2e-6)


def test_private_phases_and_shared_values(space: Workspace) -> None:
    """What is private never reaches the server: with no rate for LoRA, the average stays where it began."""
    runs = [space.run(f"private-{method}", method=method, lr_shared=0, lr_private=0.05, rounds=rounds,
                      checkpoint_every=1) for method, rounds in (("fedpdpo", 3), ("apfl", 3), ("fedavg", 1))]
    for run in runs[:2]:
        np.testing.assert_array_equal(group_values(run), group_values(runs[2]))
        assert (read(run, "clients/train/update_norm")[1:] == 0).all()
        assert read(run, "rounds/test/after/loss")[-1] != read(run, "rounds/test/after/loss")[0]
