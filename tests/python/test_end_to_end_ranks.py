"""The promise: the same options and seed give the same run file, bit for bit, on any number of ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_support import (GPT2, GPT_NEOX, MISTRAL, QWEN2, QWEN3, Workspace, assert_same, contents, differences,
                         needs_program, random_pairs, read, write_pairs)

pytestmark = needs_program

PERSONAL = {"method": "fedpdpo", "lr_private": 0.01, "bottleneck": 4}
CASES: dict[str, dict[str, Any]] = {
    "local": {"method": "local"},
    "centralized": {"method": "centralized"},
    "fedavg": {"method": "fedavg", "eval_splits": "train,test"},
    "fedprox": {"method": "fedprox", "prox_mu": 0.5},
    "fedpdpo": PERSONAL,
    "fedpdpo, gpt2": PERSONAL | {"model": GPT2},
    "alternate": PERSONAL | {"schedule": "alternate", "steps": 4, "moments": "reset"},
    "gated, lowrank, mean": PERSONAL | {
        "bottleneck_kind": "gated", "head": "lowrank", "head_rank": 3, "reward_pool": "mean",
        "reward_gradient": "private"},
    "some take part": PERSONAL | {"participation": 0.5, "rounds": 5, "eval_every": 2},
    "refit, dropout": PERSONAL | {"refit": 2, "lora_dropout": 0.2, "lr_schedule": "cosine", "warmup_rounds": 1},
    "three clients": PERSONAL | {"clients": 3, "partition": "quantity", "flip_clients": 0.4},
    "short passes": PERSONAL | {"micro_rows": 40, "batch": 6},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_any_number_of_ranks_gives_the_same_file(space: Workspace, request: pytest.FixtureRequest,
                                                 options: dict[str, Any]) -> None:
    name = request.node.callspec.id.replace(" ", "-").replace(",", "")
    # A cache each: the reference is computed on that number of ranks as well.
    runs = [space.run(f"{name}-{ranks}", ranks=ranks, reference_cache=space.folder / f"{name}-cache-{ranks}", **options)
            for ranks in (1, 2, 4)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
    # Something was computed: training moved the numbers, and the file holds margins of every test pair.
    loss = read(runs[0], "rounds/test/after/loss")
    assert math.isfinite(loss[-1]) and loss[-1] != loss[0]
    assert read(runs[0], "final/test/margin").size == read(runs[0], "partition/test/pair").size > 0


@pytest.mark.parametrize("model", [MISTRAL, QWEN2, QWEN3, GPT_NEOX], ids=lambda model: model.name)
def test_every_family_runs_the_same_on_one_rank_and_on_two(space: Workspace, model: Path) -> None:
    """Mistral's window is as long as the pairs may be, 64 tokens."""
    runs = [space.run(f"{model.name}-{ranks}", ranks=ranks, model=model,
                      reference_cache=space.folder / f"cache-{ranks}", **PERSONAL) for ranks in (1, 2)]
    assert_same(*runs)
    loss = read(runs[0], "rounds/test/after/loss")
    assert math.isfinite(loss[-1]) and loss[-1] != loss[0]
    assert np.abs(read(runs[0], "final/test/margin")).max() > 1e-3


@pytest.mark.parametrize("groups", ["domain", "all"])
def test_domains_on_any_number_of_ranks(space: Workspace, groups: str) -> None:
    """Two files: clients 0, 1 are of the first, 2, 3 of the second."""
    data = [write_pairs(space.folder / f"{groups}-{name}.h5", random_pairs(60, seed=seed, domain=name))
            for seed, name in enumerate(("animals", "plants"))]
    runs = [space.run(f"{groups}-{ranks}", ranks=ranks, data=data, groups=groups, **PERSONAL) for ranks in (1, 2, 4)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])
    assert read(runs[0], "partition/client_domain").tolist() == [0, 0, 1, 1]


def test_groups_matter(space: Workspace) -> None:
    """With a LoRA a domain, what the other domain holds has no influence; with one LoRA for all it has."""
    def runs(groups: str) -> list[Any]:
        other = [random_pairs(60, seed=1, domain="plants"), random_pairs(60, seed=9, domain="plants")]
        first = write_pairs(space.folder / "first.h5", random_pairs(60, domain="animals"))
        seconds = [write_pairs(space.folder / f"second-{i}.h5", pairs) for i, pairs in enumerate(other)]
        paths = [space.run(f"matter-{groups}-{i}", data=[first, second], groups=groups)
                 for i, second in enumerate(seconds)]
        return [read(path, "clients/test/after/loss")[:, :2] for path in paths]

    one, two = runs("domain")
    np.testing.assert_array_equal(one, two)
    one, two = runs("all")
    assert (one[-1] != two[-1]).all()


def test_another_seed_gives_another_file(space: Workspace) -> None:
    """The comparison of the tests above can fail."""
    changed = differences(contents(space.run("seed-1", seed=1)), contents(space.run("seed-2", seed=2)))
    assert {"config@seed", "clients/test/after/loss", "partition/train/pair", "final/test/margin"} <= set(changed)


def test_fast_sums_are_close_to_exact_ones(space: Workspace) -> None:
    exact = space.run("exact", ranks=2, **PERSONAL)
    fast = space.run("fast", ranks=2, reduce="fast", **PERSONAL)
    assert np.abs(read(exact, "final/test/margin")).max() > 1e-3
    for name in ("final/test/margin", "clients/test/after/loss", "clients/train/loss"):
        np.testing.assert_allclose(read(fast, name), read(exact, name), rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_node", [2, 3])
def test_sums_by_way_of_the_nodes_are_the_same(space: Workspace, per_node: int) -> None:
    flat = space.run(f"flat-{per_node}", ranks=4, **PERSONAL)
    by_nodes = space.run(f"nodes-{per_node}", ranks=4, reduce_route="hierarchical", ranks_per_node=per_node, **PERSONAL)
    assert differences(contents(flat), contents(by_nodes)) == ["config@ranks-per-node", "config@reduce-route"]


def test_a_cohort_computes_what_its_clients_would_alone(space: Workspace) -> None:
    alone = space.run("alone", refit=2, **PERSONAL)
    together = space.run("together", refit=2, cohort=4, **PERSONAL)
    for name in ("final/test/margin", "clients/test/after/loss", "clients/train/loss"):
        np.testing.assert_allclose(read(together, name), read(alone, name), rtol=0, atol=1e-4)


def test_threads_change_nothing(space: Workspace) -> None:
    """A run may be resumed with another number of them."""
    one, two = (contents(space.run(f"threads-{n}", threads=n, **PERSONAL)) for n in (1, 2))
    assert differences(one, two) == ["config@threads"]
