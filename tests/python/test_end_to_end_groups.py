"""Aggregation groups by the clients' labels, by the directions of their updates, and by their agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_support import (Workspace, contents, differences, group_values, metrics, needs_program, random_pairs, read,
                         run_everywhere, write_pairs)

pytestmark = needs_program

PERSONAL = {"method": "fedpdpo", "lr_private": 0.01, "bottleneck": 4}
# Half of the clients prefer what the others reject.
OPPOSED = {"clients": 8, "partition": "iid", "flip_clients": 0.5, "batch": 8}
CASES: dict[str, dict[str, Any]] = {
    "found": {"groups": "clusters:2"},
    "found, some take part": {"groups": "clusters:2", "participation": 0.5, "lora_dropout": 0.1, **PERSONAL},
    "found, three clients": {"groups": "clusters:2", "clients": 3, "method": "scaffold"},
    "labels": {"groups": "clusters:2", "cluster_labels": "0,1,1,0", "method": "scaffold"},
    "labels, moved weights": {"groups": "clusters:3", "cluster_labels": "0,1,1,2", "method": "fedex-lora"},
    "found, fresh adapters": {"groups": "clusters:2", "method": "flora"},
    "agreement": {"groups": "agreement", "agreement_errors": 1, **OPPOSED},
    "agreement, moments of a server": {"groups": "agreement", "participation": 0.75, "method": "fedadam", **OPPOSED},
    "concord": {"method": "fedconcord", "agreement_errors": 1, "bottleneck": 4, **OPPOSED},
    "agreement, personal": {"groups": "agreement", "agreement_errors": 0, "refit": 1, **PERSONAL, **OPPOSED},
    "hierarchical": {"groups": "clusters:2", "reduce_route": "hierarchical", "ranks_per_node": 2, **PERSONAL},
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_resume(space: Workspace, case: str) -> None:
    run = run_everywhere(space, case.replace(", ", "-").replace(" ", "-"), **CASES[case])
    wanted = CASES[case].get("groups", "agreement").partition(":")[2]
    group = read(run, "clients/train/group")
    assert (group >= 0).all()
    if wanted:
        assert np.unique(group[-1]).tolist() == list(range(int(wanted)))
        assert (group[1:] == group[-1]).all()
    else:
        assert group[1:].max() > 0


@pytest.fixture(scope="module")
def opposed(space: Workspace) -> dict[str, Path]:
    data = write_pairs(space.folder / "many.h5", random_pairs(300))
    kinds = ("all", "clusters:2", "agreement")
    return dict(zip(kinds, space.run_several({
        f"opposed-{groups[:8]}": {"groups": groups, "data": data, "rounds": 4, "steps": 4, **OPPOSED}
        for groups in kinds})))


def test_opposed_clients_part(opposed: dict[str, Path]) -> None:
    """Directions tell who prefers what: one average of all learns nothing, one for each side learns the rule."""
    accuracy = {groups: read(run, "rounds/test/after/accuracy")[-1] for groups, run in opposed.items()}
    assert accuracy["all"] < 0.7
    flipped = read(opposed["all"], "partition/flipped")
    assert flipped.sum() == 4
    for groups in ("clusters:2", "agreement"):
        group = read(opposed[groups], "clients/train/group")
        assert (group[0] == 0).all()
        assert ((group[1:] == group[1:, :1]) == (flipped == flipped[0])).all()
        assert accuracy[groups] > 0.9


def test_clients_that_agree_stay_together(space: Workspace, opposed: dict[str, Path]) -> None:
    data = opposed["all"].with_name("many.h5")
    run = space.run("agreed", groups="agreement", data=data, steps=4, **OPPOSED | {"flip_clients": 0})
    assert (read(run, "clients/train/group") == 0).all()


def test_fedconcord_averages_a_over_everybody(opposed: dict[str, Path], space: Workspace) -> None:
    """And B within the groups."""
    data = opposed["all"].with_name("many.h5")
    run = space.run("concord-a", method="fedconcord", data=data, rounds=1, checkpoint_every=1, steps=4, **OPPOSED)
    flipped = read(run, "partition/flipped")
    np.testing.assert_array_equal(read(run, "clients/train/group")[1] == 0, flipped == flipped[0])
    one, two = group_values(run, 0), group_values(run, 1)
    size = 2 * 2 * (6 * 32 + 48)  # of A, rank 2, in two layers
    np.testing.assert_array_equal(one[:size], two[:size])
    assert (one[size:] != two[size:]).mean() > 0.99


def test_labels_are_groups(space: Workspace) -> None:
    """The other group has no influence: its clients' pairs are others in the second run."""
    other = [random_pairs(60, seed=seed, domain="plants") for seed in (1, 9)]
    first = write_pairs(space.folder / "first.h5", random_pairs(60, domain="animals"))
    seconds = [write_pairs(space.folder / f"second-{i}.h5", pairs) for i, pairs in enumerate(other)]
    options = {"groups": "clusters:2", "cluster_labels": "0,0,1,1", "rounds": 3, "checkpoint_every": 3}
    one, two = (space.run(f"apart-{i}", data=[first, second], **options) for i, second in enumerate(seconds))
    assert read(one, "clients/train/group").tolist() == [[0, 0, 1, 1]] * 4
    losses = [read(run, "clients/test/after/loss") for run in (one, two)]
    np.testing.assert_array_equal(losses[0][:, :2], losses[1][:, :2])
    assert (losses[0][1:, 2:] != losses[1][1:, 2:]).all()
    np.testing.assert_array_equal(group_values(one, 0), group_values(two, 0))
    assert (group_values(one, 1) != group_values(two, 1)).any()
    domains = space.run("by-domain", data=[first, seconds[0]], **options | {"groups": "domain", "cluster_labels": None})
    assert differences(metrics(domains), metrics(one)) == []


IDENTITIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one cluster is all": ({"groups": "clusters:1"}, {}),
    "one label is all": ({"groups": "clusters:1", "cluster_labels": "0,0,0,0"}, {}),
    "without a conflict agreement is all": ({"groups": "agreement", "agreement_errors": 1e9}, {}),
    "where nobody contradicts fedconcord is fedpdpo": (
        {**PERSONAL, "method": "fedconcord", "agreement_errors": 1e9}, PERSONAL),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_identities(space: Workspace, case: str) -> None:
    runs = space.run_several({f"{case.replace(' ', '-')}-{i}": {"rounds": 4, "lora_dropout": 0.1, **options}
                              for i, options in enumerate(IDENTITIES[case])})
    assert differences(metrics(runs[0]), metrics(runs[1])) == []


def test_every_client_a_cluster_is_local(space: Workspace) -> None:
    """But for what it sends."""
    apart = space.run("apart", groups="clusters:4", rounds=4)
    local = space.run("local", method="local", rounds=4)
    changed = differences(metrics(apart), metrics(local))
    assert {name.split("/", 1)[1] for name in changed} == {
        "train/bytes_up", "train/bytes_down", "train/group", "train/update_norm", "lora_aggregation_error"}
    assert (read(apart, "rounds/lora_aggregation_error")[1:] == 0).all()


@pytest.mark.parametrize(("per_node", "method"), [(2, "scaffold"), (3, "fedex-lora"), (1, "rolora")])
def test_groups_by_way_of_the_nodes_are_the_same(space: Workspace, per_node: int, method: str) -> None:
    options = {"ranks": 4, "groups": "clusters:2", "method": method}
    flat = space.run(f"flat-{method}", **options)
    by_nodes = space.run(f"nodes-{method}", reduce_route="hierarchical", ranks_per_node=per_node, **options)
    assert differences(contents(flat), contents(by_nodes)) == ["config@ranks-per-node", "config@reduce-route"]
