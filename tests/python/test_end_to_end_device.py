"""Where sums over clients are made: the program on the emulated device, which has a device for every rank or one for all.

The program is $FEDPDPO_EMULATED_BIN, else build/tests/fedpdpo_emulated; without it the tests are skipped. It is slow, so
the federations are the smallest that say something.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import pytest
import run_support
from export_support import assert_close_scores, evaluate, folder_of, scores_of
from run_support import ROOT, Workspace, contents, differences, needs_program, read

EMULATED = Path(os.environ.get("FEDPDPO_EMULATED_BIN", ROOT / "build" / "tests" / "fedpdpo_emulated"))

pytestmark = [needs_program, pytest.mark.skipif(not EMULATED.is_file(), reason=f"{EMULATED} has not been built")]

SMALL = {"method": "fedpdpo", "lr_private": 0.01, "bottleneck": 4, "rounds": 2, "steps": 1, "batch": 2, "max_test": 3,
         "eval_splits": "test", "device": "cuda", "lora_targets": "q_proj"}
METHODS: dict[str, dict[str, Any]] = {
    "fedpdpo": {},
    # A second array of the clients is averaged; nobody looks at single clients' results on the host.
    "scaffold": {"method": "scaffold", "bottleneck": None, "aggregation_error_every": 0},
    # The server gets single clients' results, too.
    "fedex-lora": {"method": "fedex-lora", "bottleneck": None},
    # A over everybody, B within groups found from the results.
    "fedconcord": {"method": "fedconcord", "aggregation_error_every": 0},
}


@pytest.fixture
def devices(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Runs on the emulated device, two of which there are."""
    monkeypatch.setattr(run_support, "PROGRAM", EMULATED)
    space.settings["FEDPDPO_EMULATED_DEVICES"] = "2"
    return space


def route(run: Path) -> str:
    with h5py.File(run) as file:
        return str(file["environment"].attrs["aggregation"])


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_nccl_and_the_host_give_the_same_file(devices: Workspace, request: pytest.FixtureRequest,
                                              options: dict[str, Any]) -> None:
    name = request.node.callspec.id
    alone, host, nccl = devices.run_several({
        f"{name}-alone": {**SMALL, **options},
        f"{name}-host": {**SMALL, **options, "ranks": 2, "aggregation": "host"},
        f"{name}-nccl": {**SMALL, **options, "ranks": 2, "aggregation": "nccl"},
    }, at_once=1)
    assert route(alone).startswith("device (one rank)")
    assert route(host) == "host (--aggregation host)"
    assert "nccl 2.28.9" in route(nccl)
    assert differences(contents(host), contents(nccl)) == ["config@aggregation"]
    assert differences(contents(alone), contents(nccl)) == ["config@aggregation"]
    loss = read(nccl, "rounds/test/after/loss")
    assert loss[-1] != loss[0]


def test_the_route_is_chosen_and_said(devices: Workspace) -> None:
    outcome = devices.attempt("own", ranks=2, **SMALL)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("aggregation: nccl 2.28.9") == 1
    devices.settings["FEDPDPO_EMULATED_DEVICES"] = "1"
    outcome = devices.attempt("shared", ranks=2, **SMALL)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("aggregation: host (ranks 0 and 1 share the device 0000:10:00.0)") == 1
    assert differences(contents(devices.folder / "own.h5"), contents(devices.folder / "shared.h5")) == []


@pytest.mark.parametrize(("options", "reason"), [
    ({"ranks": 2}, "host (ranks 0 and 1 share the device 0000:10:00.0)"),
    ({"dp_clip": 1}, "host (--dp-clip is done on the host)"),
    ({"compress": "int8"}, "host (--compress int8 is done on the host)"),
], ids=["one device", "privacy", "compression"])
def test_nccl_that_cannot_be_had_is_an_error(devices: Workspace, options: dict[str, Any], reason: str) -> None:
    devices.settings["FEDPDPO_EMULATED_DEVICES"] = "1"
    outcome = devices.attempt("never", aggregation="nccl", **SMALL | options)
    assert outcome.code == 2, outcome.err
    assert outcome.error_lines == [
        f"fedpdpo: error: --aggregation: expected auto or host, found nccl, but only this is possible: {reason}"]


@pytest.mark.parametrize("method", ["fedpdpo", "fedex-lora"])
def test_eval_on_a_device(devices: Workspace, method: str) -> None:
    """A checkpoint's models, one of them on moved weights, score as on the CPU."""
    run = devices.run(f"saved-{method}", **SMALL | METHODS[method] | {"checkpoint_every": 9, "clients": 3})
    there, here = (evaluate(devices, device, "--checkpoint", folder_of(run), "--device", device)
                   for device in ("cuda", "cpu"))
    for client in there["models"]:
        assert_close_scores(scores_of(there, client), scores_of(here, client))
