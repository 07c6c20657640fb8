"""Every method: the same run file on 1, 2 and 4 ranks, also when it is taken up from a checkpoint on another number of
ranks, and what the methods promise about what moves and what travels."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_support import ROOT, Workspace, assert_same, checkpoints, needs_program, read
from safetensors.numpy import load_file

pytestmark = needs_program

METHODS: dict[str, dict[str, Any]] = {
    "local": {}, "local-pdpo": {"bottleneck": 4}, "private-only": {"bottleneck": 4}, "centralized": {}, "fedavg": {},
    "fedprox": {"prox_mu": 0.5}, "fedper": {}, "fedpdpo": {"bottleneck": 4}, "fedavg-ft": {"refit": 2},
    "fedrep": {}, "scaffold": {"participation": 0.75}, "fedavgm": {"server_momentum": 0.5},
    "fedadagrad": {"server_tau": 0.01}, "fedyogi": {"server_beta2": 0.9}, "fedadam": {}, "ffa-lora": {},
    "fedsa-lora": {}, "rolora": {},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_ranks_and_resume(space: Workspace, method: str) -> None:
    """One run with checkpoints is broken off after its third round by taking the later checkpoints away."""
    options = {"method": method, "rounds": 4, "steps": 3, **METHODS[method]}
    one = space.run(f"{method}-one", **options)
    assert_same(one, space.run(f"{method}-four", ranks=4, **options))
    saved = space.run(f"{method}-saved", ranks=2, checkpoint_every=1, **options)
    assert_same(one, saved)
    saved.unlink()
    folders = checkpoints(saved.with_suffix(".ckpt"))
    assert len(folders) == 2
    shutil.rmtree(folders[-1])
    assert_same(one, space.run(f"{method}-saved", checkpoint_every=1, resume="auto", **options))
    assert read(one, "rounds/train/loss")[-1] != read(one, "rounds/train/loss")[1]


def client_values(run: Path, client: int) -> np.ndarray:
    folder = checkpoints(run.with_suffix(".ckpt"))[-1]
    return load_file(folder / f"client-{client:05}.safetensors")["values"]


def test_no_method_is_left_out(space: Workspace) -> None:
    """The list above against the one that the program names."""
    outcome = space.attempt("unknown", method="qqqqqqqq")
    assert outcome.code == 2
    listed = outcome.err.split("expected", 1)[1].split("found", 1)[0]
    named = {word.strip(" ,.:;()") for word in listed.replace(" or ", " ").split()}
    assert set(METHODS) <= named, outcome.err
    registered = (ROOT / "src" / "fed" / "registry.cpp").read_text()
    assert set(re.findall(r'^ +\{"([a-z-]+)",', registered, re.MULTILINE)) == set(METHODS)


def test_bytes_by_method(space: Workspace) -> None:
    """Control variates double what travels, one half of LoRA is less than both, and nothing is nothing."""
    up = {}
    for method in ("local", "fedavg", "scaffold", "ffa-lora", "fedsa-lora", "rolora"):
        run = space.run(f"bytes-{method}", method=method, rounds=2)
        up[method] = read(run, "clients/train/bytes_up")[1:]
    assert (up["local"] == 0).all()
    assert (up["scaffold"] == 2 * up["fedavg"]).all()
    assert (up["ffa-lora"] + up["fedsa-lora"] == up["fedavg"]).all()
    np.testing.assert_array_equal(up["rolora"][0], up["ffa-lora"][0])
    np.testing.assert_array_equal(up["rolora"][1], up["fedsa-lora"][1])


def test_fedsa_keeps_b_with_its_client(space: Workspace) -> None:
    """A is the same for all, B is each one's own: none leaks into another."""
    run = space.run("fedsa", method="fedsa-lora", rounds=3, checkpoint_every=3)
    one, two = client_values(run, 0), client_values(run, 1)
    shared = int(read(run, "clients/train/bytes_up")[1, 0]) // 4
    np.testing.assert_array_equal(one[:shared], two[:shared])
    both_moved = (one[shared:] != 0) & (two[shared:] != 0)
    assert both_moved.any()
    assert (one[shared:][both_moved] != two[shared:][both_moved]).mean() > 0.99


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


def test_aggregation_error(space: Workspace) -> None:
    """Averaging A and B apart leaves an error; with one of them the same for all, or kept private, there is none."""
    errors = {method: read(space.run(f"error-{method}", method=method, rounds=3), "rounds/lora_aggregation_error")
              for method in ("local", "fedavg", "ffa-lora", "fedsa-lora", "rolora", "scaffold")}
    assert (errors["fedavg"][1:] > 0).all() and (errors["scaffold"][1:] > 0).all()
    assert (errors["rolora"][1:] < 1e-9).all()
    for method in ("local", "ffa-lora", "fedsa-lora"):
        assert np.isnan(errors[method]).all()
    assert np.isnan(errors["fedavg"][0]).all()


def test_scaffold_leaves_lora_alone_in_the_private_phase(space: Workspace) -> None:
    """With everything in the private phase, nothing that travels moves, control variates or not."""
    options = {"head": "full", "schedule": "alternate", "private_share": 1.0, "rounds": 3}
    runs = [space.run(f"private-phase-{name}", method=name, **options) for name in ("fedavg", "scaffold")]
    losses = [read(run, "rounds/test/after/loss") for run in runs]
    np.testing.assert_array_equal(*losses)
    assert losses[0][-1] != losses[0][0]
