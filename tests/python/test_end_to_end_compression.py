"""Compressed updates: what they save, what they leave out, and that error feedback sends it later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from run_support import Workspace, client_arrays, needs_program, read, run_everywhere

pytestmark = needs_program

PERSONAL = {"method": "fedpdpo", "lr_private": 0.01, "bottleneck": 4}
CASES: dict[str, dict[str, Any]] = {
    "int8": {"compress": "int8", **PERSONAL},
    "topk": {"compress": "topk", "compress_share": 0.1, "participation": 0.75},
    "topk, controls": {"compress": "topk", "compress_share": 0.1, "method": "scaffold", "error_feedback": "off"},
    "int8, exact products": {"compress": "int8", "method": "fedex-lora", "participation": 0.5},
    "topk, clusters": {"compress": "topk", "compress_share": 0.2, "groups": "clusters:2", "method": "fedavgm"},
}
SIZE, BLOCKS = 1856, 28  # A and B of rank 2 at seven linears of two layers


@pytest.mark.parametrize("case", CASES)
def test_ranks_and_resume(space: Workspace, case: str) -> None:
    run = run_everywhere(space, case.replace(", ", "-").replace(" ", "-"), **CASES[case])
    took_part = read(run, "clients/train/participated") == 1
    error = read(run, "clients/train/compression_error")[took_part]
    assert (error > 0).all() and (error < 1).all()


def sent(run: Any) -> np.ndarray:
    return read(run, "clients/train/bytes_up")[1:]


def test_bytes(space: Workspace) -> None:
    """A byte a number and a scale a matrix; or a number and its place for each of the largest."""
    shares = {0.01: 19, 0.25: 464, 1.0: SIZE}
    plain, int8, controls, b, a, *topk = space.run_several({
        "plain": {}, "int8": {"compress": "int8"}, "controls": {"method": "scaffold", "compress": "int8"},
        "b": {"method": "ffa-lora", "compress": "int8"}, "a": {"method": "fedsa-lora", "compress": "int8"},
        **{f"topk-{share}": {"compress": "topk", "compress_share": share} for share in shares}})
    assert (sent(plain) == 4 * SIZE).all() and (sent(int8) == SIZE + 4 * BLOCKS).all()
    for run, count in zip(topk, shares.values()):
        assert (sent(run) == 8 * count).all()
        np.testing.assert_array_equal(read(run, "clients/train/bytes_down"), read(plain, "clients/train/bytes_down"))
    assert (sent(controls) == SIZE + 4 * BLOCKS + 4 * SIZE).all()  # what is not an update goes as it is
    assert (sent(a) + sent(b) == sent(int8)).all()


def test_int8_is_close_and_topk_is_not(space: Workspace) -> None:
    runs = space.run_several({f"close-{i}": options for i, options in enumerate((
        {}, {"compress": "int8"}, {"compress": "topk", "compress_share": 1}, {"compress": "topk"}))})
    errors = [read(run, "clients/train/compression_error")[1:] for run in runs]
    assert (errors[0] == 0).all() and (errors[2] == 0).all()
    assert (errors[1] > 0).all() and (errors[1] < 0.02).all()
    assert (errors[3] > 0.5).all()
    plain, int8, everything, largest = (read(run, "final/test/margin") for run in runs)
    scale = np.abs(plain).max()
    np.testing.assert_allclose(everything, plain, rtol=0, atol=1e-5)
    assert 0 < np.abs(int8 - plain).max() < 0.1 * scale < np.abs(largest - plain).max()


def test_error_feedback_sends_later_what_was_left_out(space: Workspace) -> None:
    """In round 1 nothing is remembered yet; what is, is what the recorded error says."""
    options = {"compress": "topk", "compress_share": 0.1, "rounds": 2}
    on, off = (space.run(f"feedback-{switch}", error_feedback=switch, **options) for switch in ("on", "off"))
    losses = [read(run, "clients/test/after/loss") for run in (on, off)]
    np.testing.assert_array_equal(losses[0][1], losses[1][1])
    assert (losses[0][2] != losses[1][2]).all()
    first = space.run("feedback-first", checkpoint_every=1, **options | {"rounds": 1})
    error, norm = (read(first, f"clients/train/{name}")[1] for name in ("compression_error", "update_norm"))
    for client in range(4):
        memory = client_arrays(first, client)["method.compression.memory"]
        assert memory.shape == (SIZE,) and (memory == 0).sum() == 186
        whole = np.sqrt(np.linalg.norm(memory) ** 2 + norm[client] ** 2)  # what is left out and what is sent
        np.testing.assert_allclose(np.linalg.norm(memory), error[client] * whole, rtol=1e-5)


def test_means_are_of_those_who_sent(space: Workspace) -> None:
    run = space.run("sampled", compress="topk", participation=0.5)
    took_part = read(run, "clients/train/participated") == 1
    assert took_part.sum(axis=1).tolist() == [0, 2, 2, 2]
    for name in ("update_norm", "compression_error"):
        of_clients, of_round = read(run, f"clients/train/{name}"), read(run, f"rounds/train/{name}")
        np.testing.assert_array_equal(np.isnan(of_clients), ~took_part)
        assert np.isnan(of_round[0])
        np.testing.assert_allclose(of_round[1:], np.nanmean(of_clients[1:], axis=1), rtol=1e-12)
