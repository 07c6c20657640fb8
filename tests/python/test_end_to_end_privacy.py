"""Client-level differential privacy: who takes part, what is clipped and added, and the epsilon that is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_support import (Workspace, client_arrays, differences, group_values, metrics, needs_program, read,
                         run_everywhere)

pytestmark = needs_program

PRIVATE = {"dp_clip": 0.05, "dp_noise": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "sampled": {"participation": 0.5, **PRIVATE},
    "personal": {"participation": 3, "method": "fedpdpo", "lr_private": 0.01, "bottleneck": 4, **PRIVATE},
    "server optimizer": {"participation": 0.5, "method": "fedadam", **PRIVATE},
    "groups, compressed": {"groups": "clusters:2", "cluster_labels": "0,1,1,1", "compress": "int8", **PRIVATE},
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_resume(space: Workspace, case: str) -> None:
    run = run_everywhere(space, case.replace(", ", "-").replace(" ", "-"), **CASES[case])
    epsilon = read(run, "rounds/privacy/epsilon")
    assert epsilon[0] == 0 and (np.diff(epsilon) > 0).all() and np.isfinite(epsilon).all()
    assert (read(run, "rounds/privacy/delta") == 1e-5).all()


def epsilon_of_all(rounds: int, noise: float, delta: float) -> float:
    """Everybody in every round: rdp = rounds alpha / (2 noise^2); the best of finely spaced orders."""
    alpha = 1 + np.geomspace(1e-3, 1e4, 200_001)
    rdp = rounds * alpha / (2 * noise**2)
    return (rdp + np.log1p(-1 / alpha) - (np.log(delta) + np.log(alpha)) / (alpha - 1)).min()


@pytest.mark.parametrize(("noise", "delta"), [(1.0, 1e-5), (4.0, 1e-3)])
def test_epsilon_without_sampling(space: Workspace, noise: float, delta: float) -> None:
    run = space.run(f"epsilon-{noise}", dp_clip=0.1, dp_noise=noise, dp_delta=delta, rounds=5)
    told = read(run, "rounds/privacy/epsilon")
    for rounds in range(1, 6):
        best = epsilon_of_all(rounds, noise, delta)
        assert best * (1 - 1e-9) <= told[rounds] <= 1.01 * best
    assert (read(run, "rounds/privacy/delta") == delta).all()
    assert (read(run, "clients/train/participated")[1:] == 1).all()


def test_sampling_and_noise_lower_epsilon(space: Workspace) -> None:
    runs = space.run_several({
        f"lower-{share}-{noise}": {"dp_clip": 0.1, "dp_noise": noise, "participation": share, "rounds": 2}
        for share, noise in ((1, 0), (1, 1), (0.5, 1), (0.25, 1), (0.25, 2))})
    last = [read(run, "rounds/privacy/epsilon")[-1] for run in runs]
    assert math.isinf(last[0]) and last == sorted(last, reverse=True) and len(set(last)) == 5


MANY = {"participation": 0.5, "rounds": 24, "steps": 1, "batch": 1, "eval_every": 24}


@pytest.fixture(scope="module")
def poisson(space: Workspace) -> Path:
    return space.run("poisson", **PRIVATE, **MANY)


def test_each_client_is_drawn_on_its_own(space: Workspace, poisson: Path) -> None:
    """Rounds differ in how many take part, also none; without privacy all have as many."""
    drawn = read(poisson, "clients/train/participated")[1:]
    assert {0, 1, 2, 3} <= set(drawn.sum(axis=1)) and 0.3 < drawn.mean() < 0.7
    assert (read(space.run("fixed", **MANY), "clients/train/participated")[1:].sum(axis=1) == 2).all()


def test_a_round_without_clients_is_noise_alone(space: Workspace, poisson: Path) -> None:
    """The noise tells nobody that it was so: the server moves, by noise / (expected number) a value."""
    counts = read(poisson, "clients/train/participated").sum(axis=1)
    empty = int(np.flatnonzero(counts[2:] == 0)[0]) + 2
    before, after = space.run_several({
        f"silent-{end}": PRIVATE | MANY | {"rounds": end, "checkpoint_every": end} for end in (empty - 1, empty)})
    moved = group_values(after) - group_values(before)
    assert moved.std() == pytest.approx(0.5 * 0.05 / 2, rel=0.06) and abs(moved.mean()) < 0.1 * moved.std()
    assert np.isnan(read(poisson, "rounds/train/update_norm")[empty])


def test_the_noise_is_as_large_as_told(space: Workspace) -> None:
    """Of one round, all clients in it: N(0, (noise clip / clients)^2) on every shared value, the same everywhere."""
    options = {"rounds": 1, "checkpoint_every": 1, "dp_clip": 0.2}
    plain = space.run("without-noise", dp_noise=0, **options)
    for noise in (0.5, 3.0):
        run = space.run(f"noise-{noise}", dp_noise=noise, **options)
        added = (group_values(run) - group_values(plain)) / (noise * 0.2 / 4)
        assert added.size == 1856
        assert added.std() == pytest.approx(1, rel=0.06) and abs(added.mean()) < 0.1
        assert np.abs(added).max() < 6
        for client in range(4):
            np.testing.assert_array_equal(client_arrays(run, client)["values"][:1856], group_values(run))


def test_updates_are_clipped(space: Workspace) -> None:
    """Without noise the server's step is at most the clip, and the norms before clipping are recorded."""
    options = {"rounds": 1, "checkpoint_every": 1}
    start = group_values(space.run("still", lr_shared=0, **options))
    free, clipped = (space.run(f"clip-{clip}", dp_clip=clip, **options) for clip in (1e6, 0.01))
    norms = read(free, "clients/train/update_norm")[1]
    assert (norms > 0.01).all()
    np.testing.assert_array_equal(norms, read(clipped, "clients/train/update_norm")[1])
    assert np.linalg.norm(group_values(free) - start) > 0.01
    moved = np.linalg.norm(group_values(clipped).astype(float) - start)
    assert 0.001 < moved <= 0.01


def test_a_clip_that_holds_nothing_back_changes_nothing(space: Workspace) -> None:
    """Where clients have as many pairs each, weights are alike: fedavg, bit for bit."""
    options = {"max_train": 2, "batch": 2, "rounds": 4}
    plain, private = space.run("plain", **options), space.run("loose", dp_clip=1e6, **options)
    assert differences(metrics(plain), metrics(private)) == ["rounds/privacy/delta", "rounds/privacy/epsilon"]
    assert np.isinf(read(private, "rounds/privacy/epsilon")[1:]).all()
