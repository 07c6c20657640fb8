"""Every method: the same run file on 1, 2 and 4 ranks, also when it is taken up from a checkpoint on another number of
ranks, and what the methods promise about what moves and what travels."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_support import (ROOT, Workspace, client_arrays, group_values, needs_program, program_methods, random_pairs,
                         read, run_everywhere, write_pairs)

pytestmark = needs_program

# What a method is run with beside its own defaults; one that is not here runs with these.
OPTIONS: dict[str, dict[str, Any]] = {
    "local-pdpo": {"bottleneck": 4}, "private-only": {"bottleneck": 4}, "fedpdpo": {"bottleneck": 4},
    "fedconcord": {"bottleneck": 4}, "fedprox": {"prox_mu": 0.5}, "fedavg-ft": {"refit": 2},
    "scaffold": {"participation": 0.75}, "fedavgm": {"server_momentum": 0.5}, "fedadagrad": {"server_tau": 0.01},
    "fedyogi": {"server_beta2": 0.9}, "ditto": {"lr_private": 0.01}, "apfl": {"lr_private": 0.01},
    "feddpa": {"lr_private": 0.01, "personal_samples": 5},
}  # fmt: skip
METHODS = program_methods()
VARIANTS: dict[str, dict[str, Any]] = {
    "flora, ranks that differ": {"method": "flora", "lora_ranks": "2,1"},
    "fedex-lora, some take part": {"method": "fedex-lora", "participation": 0.5},
    "apfl, some take part": {"method": "apfl", "participation": 0.5, "lr_private": 0.01, "refit": 1},
}
CASES = {method: {"method": method, **OPTIONS.get(method, {})} for method in METHODS} | VARIANTS


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_resume(space: Workspace, case: str) -> None:
    run_everywhere(space, case.replace(", ", "-").replace(" ", "-"), **CASES[case])


def test_no_method_is_left_out(space: Workspace) -> None:
    """The list above against the registry and the one that an error names; and nothing above is out of date."""
    outcome = space.attempt("unknown", method="qqqqqqqq")
    assert outcome.code == 2
    listed = outcome.err.split("expected", 1)[1].split("found", 1)[0]
    named = {word.strip(" ,.:;()") for word in listed.replace(" or ", " ").split()}
    assert len(METHODS) >= 24 and set(METHODS) <= named, outcome.err
    registered = (ROOT / "src" / "fed" / "registry.cpp").read_text()
    assert re.findall(r'^ +\{"([a-z-]+)",', registered, re.MULTILINE) == METHODS
    assert set(OPTIONS) <= set(METHODS)


@pytest.fixture(scope="module")
def trained(space: Workspace) -> dict[str, Path]:
    """Every method on the same pairs, long enough to learn the rule."""
    data = write_pairs(space.folder / "more.h5", random_pairs(150))
    long = {"data": data, "rounds": 6, "steps": 4, "batch": 8, "lora_rank": 4, "lr_private": 0.01}
    server = {"server_lr": 0.05}
    more = {"fedadagrad": server, "fedyogi": server, "fedadam": server, "fedprox": {"prox_mu": 0.1},
            "fedavgm": {"server_momentum": 0.5}}
    return dict(zip(METHODS, space.run_several({
        f"trained-{method}": {"method": method, **long, **more.get(method, {})} for method in METHODS})))


def test_bytes_by_method(trained: dict[str, Path]) -> None:
    """Control variates double what travels, one half of LoRA is less than both, and nothing is nothing."""
    up = {method: read(run, "clients/train/bytes_up")[1:] for method, run in trained.items()}
    assert all((up[method] == 0).all() for method in ("local", "local-pdpo", "private-only"))
    assert (up["scaffold"] == 2 * up["fedavg"]).all()
    assert (up["ffa-lora"] + up["fedsa-lora"] == up["fedavg"]).all()
    np.testing.assert_array_equal(up["rolora"][0], up["ffa-lora"][0])
    np.testing.assert_array_equal(up["rolora"][1], up["fedsa-lora"][1])


def test_bytes_of_methods_that_move_the_backbone(space: Workspace) -> None:
    """Down comes what the weights change by, as all factors or as it is; a smaller rank sends less."""
    cases = {"fedavg": {"lora_rank": 8}, "flora-ranks": {"method": "flora", "lora_rank": 8, "lora_ranks": "4,1,2"}}
    for method in ("fedex-lora", "flora"):
        cases |= {f"{method}-{rank}": {"method": method, "lora_rank": rank} for rank in (8, 2)}
    runs = space.run_several({f"bytes-{name}": {"rounds": 1, **options} for name, options in cases.items()})
    sent, received = ({name: read(run, f"clients/train/bytes_{way}")[1] for name, run in zip(cases, runs)}
                      for way in ("up", "down"))
    up, down = sent["fedavg"], received["fedavg"]
    weights = 4 * 2 * (32 * 32 + 16 * 32 + 16 * 32 + 32 * 32 + 48 * 32 + 48 * 32 + 32 * 48)  # tiny_llama's linears
    assert (4 * up > weights).all()
    for method, extra in (("fedex-lora", down), ("flora", 0)):
        for rank, change in ((8, weights), (2, up)):
            np.testing.assert_array_equal(sent[f"{method}-{rank}"], up * rank / 8)
            np.testing.assert_array_equal(received[f"{method}-{rank}"], extra * rank / 8 + change)
    np.testing.assert_array_equal(sent["flora-ranks"], up * [0.5, 0.125, 0.25, 0.5])
    np.testing.assert_array_equal(received["flora-ranks"], up * 1.375)


def test_fedsa_keeps_b_with_its_client(space: Workspace) -> None:
    """A is the same for all, B is each one's own: none leaks into another."""
    run = space.run("fedsa", method="fedsa-lora", rounds=3, checkpoint_every=3)
    one, two = (client_arrays(run, client)["values"] for client in (0, 1))
    shared = int(read(run, "clients/train/bytes_up")[1, 0]) // 4
    np.testing.assert_array_equal(one[:shared], two[:shared])
    both_moved = (one[shared:] != 0) & (two[shared:] != 0)
    assert both_moved.any()
    assert (one[shared:][both_moved] != two[shared:][both_moved]).mean() > 0.99


def test_ffa_keeps_a_common(space: Workspace) -> None:
    """A never moves and B is averaged: clients differ in nothing, and each of their products is averaged exactly."""
    run = space.run("ffa", method="ffa-lora", rounds=3, checkpoint_every=1)
    one, two = (client_arrays(run, client)["values"] for client in (0, 1))
    np.testing.assert_array_equal(one, two)
    shared = int(read(run, "clients/train/bytes_up")[1, 0]) // 4
    plain = space.run("ffa-less", method="ffa-lora", rounds=1, checkpoint_every=1)
    np.testing.assert_array_equal(one[shared:], client_arrays(plain, 0)["values"][shared:])
    assert (one[:shared] != group_values(plain)).mean() > 0.99


def test_fine_tuning_does_not_enter_the_next_round(space: Workspace) -> None:
    """fedavg-ft evaluates other models than fedavg, but its averages are fedavg's as long as Adam starts anew."""
    options = {"rounds": 3, "moments": "reset", "checkpoint_every": 3}
    plain = space.run("plain", method="fedavg", **options)
    tuned = space.run("tuned", method="fedavg-ft", refit=3, **options)
    assert (read(plain, "rounds/test/after/loss")[1:] != read(tuned, "rounds/test/after/loss")[1:]).all()
    assert read(plain, "rounds/test/before/loss")[1] == read(tuned, "rounds/test/before/loss")[1]


def test_scaffold_with_all_controls_zero_begins_as_fedavg(space: Workspace) -> None:
    """In round 1 every control variate is zero: the first average is fedavg's."""
    runs = [space.run(name, method=name, rounds=2) for name in ("fedavg", "scaffold")]
    losses = [read(run, "rounds/test/after/loss") for run in runs]
    assert losses[0][1] == losses[1][1]
    assert losses[0][2] != losses[1][2]


def test_aggregation_error(trained: dict[str, Path]) -> None:
    """Averaging A and B apart leaves an error; with one of them the same for all, or kept private, there is none.

    Nor is there where the server adds products up.
    """
    errors = {method: read(run, "rounds/lora_aggregation_error") for method, run in trained.items()}
    for method in ("fedavg", "scaffold", "fedadam", "fedpdpo", "ditto"):
        assert errors[method].shape == (7, 2) and (errors[method][1:] > 0).all()
    np.testing.assert_array_equal(errors["ditto"][1], errors["fedavg"][1])  # of what is shared
    assert (errors["rolora"][1:] < 1e-9).all()
    for method in ("local", "ffa-lora", "fedsa-lora", "fedex-lora", "flora"):
        assert np.isnan(errors[method]).all()
    assert np.isnan(errors["fedavg"][0]).all()


def test_scaffold_leaves_lora_alone_in_the_private_phase(space: Workspace) -> None:
    """With everything in the private phase, nothing that travels moves, control variates or not."""
    options = {"head": "full", "schedule": "alternate", "private_share": 1.0, "rounds": 3}
    runs = [space.run(f"private-phase-{name}", method=name, **options) for name in ("fedavg", "scaffold")]
    losses = [read(run, "rounds/test/after/loss") for run in runs]
    np.testing.assert_array_equal(*losses)
    assert losses[0][-1] != losses[0][0]


# Every method against the others


def test_every_method_learns(trained: dict[str, Path]) -> None:
    """30 test pairs: chance is .5 with a standard deviation of .09."""
    accuracy = {method: read(run, "rounds/test/after/accuracy")[-1] for method, run in trained.items()}
    assert min(accuracy.values()) > 0.7, accuracy


def test_no_two_methods_are_the_same(trained: dict[str, Path]) -> None:
    margins = {method: read(run, "final/test/margin").tobytes() for method, run in trained.items()}
    twins = [{one, other} for one, other in combinations(margins, 2) if margins[one] == margins[other]]
    assert twins == [{"fedconcord", "fedpdpo"}]  # where nobody contradicts


# Exact aggregation


def test_fedex_and_flora_are_exact(space: Workspace) -> None:
    """In round 1 all methods train alike. These two then hold the mean of the clients' products, fedavg does not."""
    runs = {method: space.run(f"exact-{method}", method=method, rounds=1) for method in
            ("fedavg", "fedex-lora", "flora")}
    before = [read(run, "clients/test/before/loss")[1] for run in runs.values()]
    np.testing.assert_array_equal(before[0], before[1])
    np.testing.assert_array_equal(before[0], before[2])
    plain, fedex, flora = (read(run, "final/test/margin") for run in runs.values())
    np.testing.assert_allclose(fedex, flora, atol=1e-6)
    assert np.abs(plain - flora).max() > 1e-4


@pytest.mark.parametrize("method", ["fedex-lora", "flora"])
def test_the_exact_average_of_one_client_is_its_model(space: Workspace, method: str) -> None:
    options = {"method": method, "clients": 1, "rounds": 2}
    run = space.run(f"alone-{method}", **options)
    before, after = (read(run, f"clients/test/{point}/loss")[1:]
                     for point in ("before", "after"))
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_flora_of_full_ranks_is_flora(space: Workspace) -> None:
    plain, ranked, less = (read(space.run(f"ranks-{i}", method="flora", lora_ranks=ranks), "final/test/margin")
                           for i, ranks in enumerate((None, "2", "2,1")))
    np.testing.assert_array_equal(plain, ranked)
    assert (plain != less).all()


# A second, personal LoRA


def test_personal_loras_leave_the_shared_one_alone(space: Workspace) -> None:
    """What they send and average is fedavg's, bit for bit; their clients' models are others.

    The steps of a personal LoRA draw pairs as well, so each client has but one.
    """
    one_pair = {"min_train": 1, "max_train": 1, "batch": 1, "lora_dropout": 0, "checkpoint_every": 3}
    runs = space.run_several({f"beside-{method}": {"method": method, "lr_private": 0.02, **one_pair}
                              for method in ("fedavg", "ditto", "apfl", "feddpa")})
    for run in runs[1:]:
        np.testing.assert_array_equal(group_values(run), group_values(runs[0]))
        for name in ("bytes_up", "bytes_down", "update_norm"):
            np.testing.assert_array_equal(read(run, f"clients/train/{name}"),
                                          read(runs[0], f"clients/train/{name}"))
    losses = [read(run, "clients/test/after/loss")[-1] for run in runs]
    assert all((one != other).any() for one, other in combinations(losses, 2))


def test_apfl_learns_each_clients_share(space: Workspace) -> None:
    """Without a rate for what is private, the share stays; at 0 the client's model is the shared one."""
    learnt = space.run("apfl-learnt", method="apfl", lr_private=0.05, checkpoint_every=3)
    shares = np.array([client_arrays(learnt, client)["method.apfl.share"][0] for client in range(4)])
    assert ((shares >= 0) & (shares <= 1) & (shares != 0.5)).all() and len(set(shares)) == 4
    fixed = space.run("apfl-fixed", method="apfl", lr_private=0, personal_mix=0, checkpoint_every=3)
    assert client_arrays(fixed, 0)["method.apfl.share"][0] == 0
    after = client_arrays(fixed, 0)["values"]
    shared = group_values(fixed)
    np.testing.assert_array_equal(after[:shared.size], shared)
    np.testing.assert_array_equal(after[shared.size:], shared)


def test_ditto_is_drawn_to_the_average(space: Workspace) -> None:
    """The stronger the pull, the nearer are the clients' personal LoRAs to what the server sent."""
    distance = []
    for prox in (0, 1, 100):
        run = space.run(f"drawn-{prox}", method="ditto", lr_private=0.01, personal_prox=prox, checkpoint_every=3)
        shared = group_values(run)
        distance.append(max(np.linalg.norm(client_arrays(run, client)["values"][shared.size:] - shared)
                            for client in range(4)))
    assert distance[0] > distance[1] > distance[2] > 0
