"""What a run must show whatever the data: its start, learning, and methods that are others in disguise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from run_support import (GPT2, GPT_NEOX, LLAMA, QWEN3, Workspace, analysis, assert_same, differences, metrics,
                         needs_program, random_pairs, read, write_pairs)

pytestmark = needs_program

LEARNING = {"rounds": 6, "steps": 6, "batch": 8, "lora_rank": 4, "lr_shared": 0.01}
PERSONAL = LEARNING | {"method": "fedpdpo", "lr_private": 0.01}


@pytest.fixture(scope="module")
def learnt(space: Workspace) -> Iterator[dict[str, Path]]:
    """Runs on more pairs, long enough to learn the rule; "flipped": every client prefers what the data rejects."""
    data = write_pairs(space.folder / "more.h5", random_pairs(300))
    yield {
        "fedavg": space.run("learnt-fedavg", data=data, **LEARNING),
        "fedpdpo": space.run("learnt-fedpdpo", data=data, **PERSONAL),
        "fedpdpo, gpt2": space.run("learnt-gpt2", data=data, model=GPT2, **PERSONAL),
        "flipped": space.run("learnt-flipped", data=data, flip_clients=1, **PERSONAL),
        "flipped fedavg": space.run("learnt-flipped-fedavg", data=data, flip_clients=1, **LEARNING),
    }


# Start


def accuracy(margin: np.ndarray) -> float:
    return float(((margin > 0) + 0.5 * (margin == 0)).mean())


@pytest.mark.parametrize("model", [LLAMA, GPT2, QWEN3, GPT_NEOX], ids=lambda model: model.name)
def test_at_the_start_the_policy_is_the_reference(space: Workspace, model: Path) -> None:
    path = space.run(f"start-{model.name}", model=model, method="fedpdpo", rounds=0)
    for name in ("margin", "margin_implicit", "margin_explicit"):
        assert np.abs(read(path, f"final/test/{name}")).max() < 1e-4
    for split in ("validation", "test"):
        assert np.abs(read(path, f"clients/{split}/after/margin_implicit")[0]).max() < 1e-4
        assert np.abs(read(path, f"clients/{split}/after/kl_to_reference")[0]).max() < 1e-5
    client, margin = read(path, "final/test/client"), read(path, "final/test/margin")
    recorded = read(path, "clients/test/after/accuracy")[0]
    for c in range(4):
        own = margin[client == c]
        assert recorded[c] == accuracy(own)
        assert abs(recorded[c] - 0.5) <= 0.5 * (own != 0).mean()  # where the sums round alike, exactly one half
    # -log sigmoid(0) of the preference and, with mu one half, of the reward
    np.testing.assert_allclose(read(path, "clients/test/after/loss")[0], 1.5 * np.log(2), atol=1e-5)


def test_pairs_of_two_equal_responses_count_one_half_for_ever(space: Workspace) -> None:
    pairs = random_pairs(90)
    blank = [i for i, split in enumerate(pairs.split) if split == 2]
    for i in blank:
        pairs.rejected[i] = list(pairs.chosen[i])
    data = write_pairs(space.folder / "equal-responses.h5", pairs)
    path = space.run("blank", data=data, method="fedpdpo", lr_private=0.01)
    for name in ("margin", "margin_implicit", "margin_explicit"):
        assert (read(path, f"final/test/{name}") == 0).all()
    assert (read(path, "clients/test/after/accuracy") == 0.5).all()
    assert (read(path, "clients/validation/after/margin")[-1] != 0).any()  # where responses differ, margins moved


def test_a_flip_swaps_the_two_responses(learnt: dict[str, Path]) -> None:
    plain, flipped = learnt["fedpdpo"], learnt["flipped"]
    assert read(plain, "partition/flipped").tolist() == [0] * 4
    assert read(flipped, "partition/flipped").tolist() == [1] * 4
    for split in ("validation", "test"):
        for point in ("before", "after"):
            group = f"clients/{split}/{point}"
            sum_ = read(plain, f"{group}/accuracy")[0] + read(flipped, f"{group}/accuracy")[0]
            np.testing.assert_allclose(sum_, 1.0, atol=1e-12)
            chosen, rejected = (read(plain, f"{group}/logp_{part}")[0] for part in ("chosen", "rejected"))
            np.testing.assert_allclose(read(flipped, f"{group}/logp_rejected")[0], chosen, rtol=1e-6)
            np.testing.assert_allclose(read(flipped, f"{group}/logp_chosen")[0], rejected, rtol=1e-6)
            assert (chosen != rejected).all()


# Learning


@pytest.mark.parametrize("name", ["fedavg", "fedpdpo", "fedpdpo, gpt2", "flipped", "flipped fedavg"])
def test_the_rule_is_learnt(learnt: dict[str, Path], name: str) -> None:
    """60 test pairs: chance is .5 with a standard deviation of .065."""
    pooled = accuracy(read(learnt[name], "final/test/margin"))
    assert pooled > 0.85, pooled
    loss = read(learnt[name], "rounds/train/loss")
    assert loss[-1] < 0.8 * loss[1]
    np.testing.assert_allclose(read(learnt[name], "rounds/test/after/accuracy")[-1],
                               read(learnt[name], "clients/test/after/accuracy")[-1].mean(), rtol=1e-12)


def test_final_margins_are_sums_of_their_parts(learnt: dict[str, Path]) -> None:
    implicit, explicit, margin = (read(learnt["fedpdpo"], f"final/test/{name}")
                                  for name in ("margin_implicit", "margin_explicit", "margin"))
    np.testing.assert_allclose(margin, implicit + explicit, atol=1e-6)
    assert np.abs(explicit).max() > 1e-3 and np.abs(implicit).max() > 1e-3


def test_a_quantity_has_one_unit(learnt: dict[str, Path]) -> None:
    """Margins of pairs and their means; so of whatever else has one name in several places."""
    for path in learnt.values():
        units: dict[str, set[str]] = {}

        def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset) and name.startswith(("rounds/", "clients/", "final/test/")):
                units.setdefault(name.split("/")[-1], set()).add(item.attrs["units"])

        with h5py.File(path) as file:
            file.visititems(add)
        for name in ("margin", "margin_implicit", "margin_explicit"):
            assert units[name] == {"nat"}
        assert {name: found for name, found in units.items() if len(found) > 1} == {}


def test_every_dataset_has_units_and_a_description(learnt: dict[str, Path]) -> None:
    bare: list[str] = []
    with h5py.File(learnt["fedpdpo"]) as file:
        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset) and not (item.attrs.get("units") and item.attrs.get("description")):
                bare.append(name)

        file.visititems(visit)
        assert file.attrs["status"] == "complete" and file.attrs["format"] == "fedpdpo-run"
    assert bare == []


# Identities, bit for bit


IDENTITIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fedpdpo without its modules is fedavg": (
        {"method": "fedpdpo", "head": "frozen", "bottleneck": 0, "reward_head": "off"}, {"method": "fedavg"}),
    "fedprox with mu 0 is fedavg": ({"method": "fedprox", "prox_mu": 0}, {"method": "fedavg"}),
    "one client: fedavg is local": ({"method": "fedavg", "clients": 1}, {"method": "local", "clients": 1}),
}


@pytest.mark.parametrize(("one", "other"), IDENTITIES.values(), ids=IDENTITIES)
def test_identities(space: Workspace, request: pytest.FixtureRequest, one: dict[str, Any],
                    other: dict[str, Any]) -> None:
    name = request.node.callspec.id.split(":")[0].replace(" ", "-")
    runs = [space.run(f"{name}-{i}", rounds=4, lora_dropout=0.1, **options) for i, options in enumerate((one, other))]
    first, second = (metrics(run) for run in runs)
    changed = differences(first, second)
    if other["method"] == "local":  # which sends and averages nothing, and that is all
        sent = [f"{group}/train/{name}" for group in ("clients", "rounds")
                for name in ("bytes_down", "bytes_up", "update_norm")]
        assert changed == sorted([*sent, "rounds/lora_aggregation_error"])
        assert (read(runs[0], "rounds/lora_aggregation_error")[1:] == 0).all()
    else:
        assert changed == []


def test_a_proximal_term_holds_back(space: Workspace) -> None:
    """The identity with mu 0 is not because mu does nothing."""
    free = space.run("free", method="fedprox", prox_mu=0)
    held = space.run("held", method="fedprox", prox_mu=100)
    assert (read(free, "clients/test/before/loss")[-1] != read(held, "clients/test/before/loss")[-1]).any()


def test_a_cache_filled_by_others_changes_nothing(space: Workspace) -> None:
    cold, warm = space.folder / "cold", space.folder / "warm"
    first = space.run("cold", reference_cache=cold, method="fedpdpo")
    space.run("fills", reference_cache=warm, method="local", clients=2, seed=7, max_train=5)
    assert_same(first, space.run("warm", reference_cache=warm, method="fedpdpo"))


# Analysis


def test_analysis_reads_these_files(learnt: dict[str, Path], tmp_path: Path) -> None:
    chosen = [learnt["fedavg"], learnt["fedpdpo"]]
    done = analysis("summarize", *chosen, "--baseline", "fedavg")
    assert done.returncode == 0, done.stderr
    for path, method in zip(chosen, ("fedavg", "fedpdpo")):
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{method} "))
        clients = read(path, "clients/test/after/accuracy")[-1]
        assert [f"{value:.3f}" for value in [*clients, clients.mean(), clients.min()]] == line.split()[2:]
    done = analysis("figures", *chosen, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert {"accuracy-by-round.png", "accuracy-by-round.svg", "partition.png", "captions.md"} <= names
    assert all(path.stat().st_size > 500 for path in tmp_path.glob("*.png"))
