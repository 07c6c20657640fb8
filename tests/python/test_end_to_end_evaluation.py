"""What a paper needs beside means: new clients, every model on everybody's pairs, the worst, the spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from run_support import (Workspace, assert_same, checkpoints, contents, differences, needs_program, random_pairs, read,
                         run_everywhere, write_pairs)

pytestmark = needs_program

PERSONAL = {"method": "fedpdpo", "lr_private": 0.01, "bottleneck": 4}
CASES: dict[str, dict[str, Any]] = {
    "new": {"new_clients": 1, "cross_eval": True, "participation": 0.5, **PERSONAL},
    "new, clusters": {"new_clients": 2, "groups": "clusters:2", "new_client_steps": 3, "method": "fedsa-lora"},
    "new, moved weights": {"new_clients": 1, "method": "fedex-lora", "cross_eval": True, "head": "full",
                           "groups": "clusters:2"},
    "new, personal LoRA": {"new_clients": 1, "method": "ditto", "cross_eval": True},
    "new, weighed": {"new_clients": 1, "method": "feddpa", "cross_eval": True},
    "new, private": {"new_clients": 1, "dp_clip": 0.1, "dp_noise": 1, "participation": 0.5, **PERSONAL},
    "cross, mixed": {"cross_eval": True, "method": "apfl", "lr_private": 0.01},
    "cross, fresh adapters": {"cross_eval": True, "method": "flora", "lora_ranks": "2,1"},
}


def check_cross(run: Path) -> np.ndarray:
    """Rows of clients that trained, whose own pairs are on the diagonal."""
    cross, own = read(run, "final/cross/accuracy"), read(run, "clients/test/after/accuracy")[-1]
    assert cross.shape == (4, 4)
    np.testing.assert_array_equal(np.diag(cross), own)
    new = read(run, "partition/is_new") == 1
    assert np.isnan(cross[new]).all()
    assert ((cross[~new] >= 0) & (cross[~new] <= 1)).all()
    return cross


def check_new(run: Path, count: int) -> None:
    new = np.flatnonzero(read(run, "partition/is_new"))
    assert read(run, "final/new_clients/client").tolist() == new.tolist() and new.size == count
    group = read(run, "final/new_clients/group")
    assert np.isin(group, read(run, "clients/train/group")[-1]).all() and (group >= 0).all()
    for name in ("accuracy_received", "accuracy_fitted", "loss_fitted"):
        assert np.isfinite(read(run, f"final/new_clients/{name}")).all()
    with h5py.File(run) as file:
        for name in ("participated", "left_out", "steps", "pairs", "tokens", "bytes_up", "bytes_down"):
            assert (file[f"clients/train/{name}"][:, new] == 0).all()
        assert (file["clients/train/group"][:, new] == -1).all()
        assert all(np.isnan(file[f"clients/train/{name}"][:, new]).all() for name in ("loss", "update_norm"))
        assert np.isnan(file["clients/test/after/accuracy"][:, new]).all()
        assert not np.isin(file["final/test/client"][...], new).any()


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_resume(space: Workspace, case: str) -> None:
    run = run_everywhere(space, case.replace(", ", "-").replace(" ", "-"), **CASES[case])
    if "cross_eval" in CASES[case]:
        check_cross(run)
    if "new_clients" in CASES[case]:
        check_new(run, CASES[case]["new_clients"])


@pytest.mark.parametrize("case", ["new, clusters", "new, moved weights", "new, weighed", "cross, mixed"])
def test_resume_after_the_end_gives_the_file_again(space: Workspace, case: str) -> None:
    options = {"checkpoint_every": 3, "rounds": 3, **CASES[case]}
    name = "ended-" + case.replace(", ", "-").replace(" ", "-")
    run = space.run(name, **options)
    assert len(checkpoints(run.with_suffix(".ckpt"))) == 1
    kept = run.rename(run.with_name(f"kept-{run.name}"))
    assert_same(kept, space.run(name, ranks=2, resume="auto", **options))


# Clients that never trained


@pytest.fixture(scope="module")
def newcomers(space: Workspace) -> dict[int, Path]:
    """Two of six clients, by the steps of their fitting."""
    data = write_pairs(space.folder / "more.h5", random_pairs(240))
    return {steps: space.run(f"newcomers-{steps}", data=data, clients=6, new_clients=2, new_client_steps=steps,
                             rounds=4, steps=4, batch=8, method="fedper", lr_private=0.01) for steps in (0, 1, 30)}


def test_new_clients_are_fitted_for_so_many_steps(newcomers: dict[int, Path]) -> None:
    received = [read(run, "final/new_clients/accuracy_received") for run in newcomers.values()]
    np.testing.assert_array_equal(received[0], received[1])
    np.testing.assert_array_equal(received[0], received[2])
    assert (received[0] > 0.7).all()  # of pairs that they never saw
    np.testing.assert_array_equal(read(newcomers[0], "final/new_clients/accuracy_fitted"), received[0])
    losses = [read(run, "final/new_clients/loss_fitted") for run in newcomers.values()]
    assert (losses[0] > losses[1]).all() and (losses[1] > losses[2]).all()
    for steps, run in newcomers.items():
        with h5py.File(run) as file:
            assert file["final/new_clients"].attrs["steps"] == steps


def test_fitting_new_clients_touches_nobody_else(newcomers: dict[int, Path]) -> None:
    changed = differences(contents(newcomers[0]), contents(newcomers[30]))
    assert set(changed) - {"final/new_clients/accuracy_fitted"} == {
        "config@new-client-steps", "final/new_clients/loss_fitted", "final/new_clients@steps"}


def test_new_clients_keep_their_pairs(space: Workspace, newcomers: dict[int, Path]) -> None:
    """Who is new changes nothing in who has which pairs, and what a new client has reaches nobody."""
    whole = space.run("whole", data=newcomers[0].with_name("more.h5"), clients=6, rounds=0, method="fedper")
    changed = differences(contents(newcomers[0]), contents(whole))
    assert [name for name in changed if name.startswith("partition/")] == ["partition/is_new"]
    new = read(newcomers[0], "partition/is_new")
    assert new.sum() == 2 and read(whole, "partition/is_new").sum() == 0


def test_a_new_client_of_a_domain_receives_its_adapter(space: Workspace) -> None:
    data = [write_pairs(space.folder / f"data-{name}.h5", random_pairs(90, seed=seed, domain=name))
            for seed, name in enumerate(("animals", "plants"))]
    run = space.run("new-of-domains", data=data, groups="domain", clients=6, new_clients=2, method="fedavg")
    domain = read(run, "partition/client_domain")
    new = read(run, "final/new_clients/client")
    np.testing.assert_array_equal(read(run, "final/new_clients/group"), domain[new])


def test_a_new_client_receives_the_adapter_of_its_side(space: Workspace) -> None:
    """Where half of the clients prefer what the others reject, its train pairs tell which of the two it is given."""
    data = write_pairs(space.folder / "many.h5", random_pairs(300))
    run = space.run("new-of-sides", data=data, clients=10, new_clients=3, partition="iid", flip_clients=0.5, batch=8,
                    steps=4, rounds=4, groups="clusters:2", method="fedavg")
    flipped, group = read(run, "partition/flipped"), read(run, "clients/train/group")[-1]
    old = read(run, "partition/is_new") == 0
    side = {flag: group[old & (flipped == flag)] for flag in (0, 1)}
    assert all(np.unique(side[flag]).size == 1 for flag in (0, 1)) and side[0][0] != side[1][0]
    new = read(run, "final/new_clients/client")
    assert read(run, "final/new_clients/group").tolist() == [side[flipped[client]][0] for client in new]
    assert (read(run, "final/new_clients/accuracy_received") > 0.8).all()


# Everybody's model on everybody's pairs


def test_cross_evaluation(space: Workspace) -> None:
    """With one model for all, rows are equal; models of the two sides are wrong about each other's pairs."""
    data = write_pairs(space.folder / "some.h5", random_pairs(200))
    options = {"data": data, "partition": "iid", "flip_clients": 0.5, "cross_eval": True, "steps": 6, "batch": 8}
    same = check_cross(space.run("cross-same", method="fedavg", **options))
    np.testing.assert_array_equal(same, np.tile(same[0], (4, 1)))
    run = space.run("cross-own", method="local", **options)
    cross, flipped = check_cross(run), read(run, "partition/flipped")
    friends = flipped[:, None] == flipped[None, :]
    assert cross[friends].mean() > 0.7 and cross[~friends].mean() < 0.3
    silent = space.run("cross-none", method="local", **options | {"cross_eval": None})
    changed = differences(contents(run), contents(silent))
    assert {name.partition("@")[0] for name in changed} == {"config", "final/cross/accuracy"}


# Over clients


def test_worst_decile_and_spread(space: Workspace) -> None:
    """Of 12 clients the worst two; of fewer than ten the worst."""
    data = write_pairs(space.folder / "spread.h5", random_pairs(240))
    for clients, worst in ((12, 2), (4, 1)):
        run = space.run(f"spread-{clients}", data=data, clients=clients, method="local")
        for split in ("validation", "test"):
            for point in ("before", "after"):
                own = np.sort(read(run, f"clients/{split}/{point}/accuracy"), axis=1)
                mean, decile, spread = (read(run, f"rounds/{split}/{point}/accuracy{suffix}")
                                        for suffix in ("", "_worst_decile", "_spread"))
                np.testing.assert_allclose(mean, own.mean(axis=1), rtol=1e-12)
                np.testing.assert_allclose(decile, own[:, :worst].mean(axis=1), rtol=1e-12)
                np.testing.assert_allclose(spread, own.std(axis=1, ddof=1), rtol=1e-9, atol=1e-12)
                assert (decile <= mean).all() and (spread[1:] > 0).all()
