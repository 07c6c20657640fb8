"""Clients whose state does not fit on the device at once, cohorts, and what is chosen where the options leave it open.

On the CPU clients are swapped only where that is asked for, which computes the same. The emulated device is
$FEDPDPO_EMULATED_BIN, else build/tests/fedpdpo_emulated; without it its tests are skipped. It is slow, so its
federations are the smallest that say something.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import run_support
from run_support import ROOT, Workspace, checkpoints, contents, differences, manifest, needs_program, read

EMULATED = Path(os.environ.get("FEDPDPO_EMULATED_BIN", ROOT / "build" / "tests" / "fedpdpo_emulated"))

pytestmark = needs_program
needs_emulated = pytest.mark.skipif(not EMULATED.is_file(), reason=f"{EMULATED} has not been built")

SIX: dict[str, Any] = {"clients": 6, "rounds": 3, "lr_private": 0.01}
RUNS: dict[str, dict[str, Any]] = {
    "fedpdpo": {"method": "fedpdpo", "bottleneck": 4, "lora_dropout": 0.1},
    "scaffold": {"method": "scaffold"},
    "apfl": {"method": "apfl", "refit": 1},
    "feddpa": {"method": "feddpa", "new_clients": 2, "compress": "int8"},
    "alternate": {"method": "fedpdpo", "schedule": "alternate", "participation": 0.5, "refit": 1, "cross_eval": True},
    "moments": {"method": "fedpdpo", "moments": "reset", "participation": 4},
    "fedavg-ft": {"method": "fedavg-ft"},
    "flora": {"method": "flora", "lora_ranks": "2,1", "groups": "clusters:2", "cluster_labels": "0,1,0,1,0,1"},
    "centralized": {"method": "centralized"},
}


def facts(run: Path) -> dict[str, str]:
    """What cohorts, passes and residency came to."""
    with h5py.File(run) as file:
        attributes = file["environment"].attrs
        return {name: str(attributes[name]) for name in ("cohort", "micro_rows", "resident_clients")}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_swapping_changes_nothing(space: Workspace, request: pytest.FixtureRequest, options: dict[str, Any]) -> None:
    name = request.node.callspec.id
    still, two, one = space.run_several({
        f"{name}-still": SIX | options, f"{name}-two": SIX | options | {"resident": 2},
        f"{name}-one": SIX | options | {"resident": 1, "ranks": 2}})
    assert differences(contents(still), contents(two)) == ["config@resident"]
    assert differences(contents(still), contents(one)) == ["config@resident"]
    assert facts(still) == {"cohort": "1", "micro_rows": "1024", "resident_clients": "6"}
    assert facts(two)["resident_clients"] == "2"
    assert facts(one)["resident_clients"] == "1 1"


def test_cohorts_are_swapped(space: Workspace) -> None:
    """Six clients in cohorts of at most four are three and three; the second is announced as far as there is room."""
    runs = [space.run(f"cohort-{n}", cohort=4, resident=n, refit=1, **SIX | RUNS["fedpdpo"]) for n in (4, 5, 6)]
    for run, resident in zip(runs, (4, 5, 6), strict=True):
        assert facts(run) == {"cohort": "4", "micro_rows": "1024", "resident_clients": str(resident)}
        assert differences(contents(run), contents(runs[-1])) == ([] if resident == 6 else ["config@resident"])
    alone = space.run("cohort-alone", refit=1, **SIX | RUNS["fedpdpo"])
    np.testing.assert_allclose(read(runs[0], "final/test/margin"), read(alone, "final/test/margin"), atol=1e-4)
    # Models that share the passes of an evaluation keep their bits; at the start they are the same in both runs.
    for name in ("margin", "logp_chosen", "loss"):
        assert (read(runs[0], f"clients/test/after/{name}")[0] == read(alone, f"clients/test/after/{name}")[0]).all()


@pytest.mark.parametrize("name", ["fedpdpo", "scaffold", "apfl"])
def test_resumed_with_other_residency(space: Workspace, name: str) -> None:
    """Checkpoints hold clients wherever their state is; results do not depend on it."""
    options = SIX | RUNS[name] | {"rounds": 4}
    whole = space.run(f"{name}-whole", **options)
    saved = space.run(f"{name}-saved", resident=2, checkpoint_every=2, ranks=2, **options)
    assert differences(contents(whole), contents(saved)) == ["config@resident"]
    saved.unlink()
    middle, end = checkpoints(saved.with_suffix(".ckpt"))
    assert manifest(middle)["facts"] | {"cohort": "1", "micro-rows": "1024"} == manifest(middle)["facts"]
    shutil.rmtree(end)
    again = space.run(f"{name}-saved", resident=3, checkpoint_every=2, resume="auto", **options)
    assert differences(contents(whole), contents(again)) == ["config@resident"]
    assert facts(again)["resident_clients"] == "3"


def test_a_run_goes_on_in_its_cohorts_only(space: Workspace) -> None:
    options = SIX | {"checkpoint_every": 3}
    space.run("cohorts", cohort=2, **options).unlink()
    outcome = space.attempt("cohorts", cohort=3, resume="auto", **options)
    assert outcome.code == 2
    assert "--cohort: expected 2 as it was begun with, found 3" in outcome.error_lines[0]


def test_residency_holds_a_cohort(space: Workspace) -> None:
    outcome = space.attempt("narrow", cohort=3, resident=2, **SIX)
    assert outcome.code == 2
    assert outcome.error_lines == ["fedpdpo: error: --resident: expected at least the 3 clients of --cohort, found 2"]
    for option in ("cohort", "micro_rows", "resident"):
        outcome = space.attempt("zero", **SIX | {option: 0})
        assert outcome.code == 2 and "expected auto or an integer >= 1, found 0" in outcome.err


def test_plan_says_what_would_be_done(space: Workspace) -> None:
    options = {"method": "fedpdpo", "clients": 6, "min_train": 2, "alpha": 1}
    outcome = space.call(*space.arguments("plan", **options))
    assert "cohort        one client at a time, 1024 rows a pass, 6 of 6 clients' state in place at once" in outcome.out
    assert "of host memory for the clients that are swapped" not in outcome.out
    outcome = space.call(*space.arguments("plan", cohort=3, resident=4, micro_rows=300, **options))
    assert "cohort        up to 3 clients in lock-step, 300 rows a pass, 4 of 6 clients' state in place at once on the" \
        in outcome.out
    # values and two moments of four clients, and a gradient at each of their slots
    state = float(re.search(r"memory .*: 4 clients ([\d.]+) KiB", outcome.out)[1])
    gradients = float(re.search(r"gradients ([\d.]+) KiB", outcome.out)[1])
    assert state == pytest.approx(3 * gradients, rel=1e-2)
    assert f"{state * 6 / 4:.1f} KiB of host memory for the clients that are swapped" in outcome.out


# On the emulated device

SMALL = {"method": "fedpdpo", "bottleneck": 4, "lr_private": 0.01, "clients": 6, "rounds": 2, "steps": 1, "batch": 2,
         "max_test": 2, "eval_splits": "test", "device": "cuda", "lora_targets": "q_proj", "refit": 1}


@pytest.fixture
def device(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Runs on the emulated device."""
    monkeypatch.setattr(run_support, "PROGRAM", EMULATED)
    emulated = Workspace(space.folder, dict(space.settings))
    emulated.settings["FEDPDPO_CACHE"] = str(space.folder / "cache-emulated")
    return emulated


@needs_emulated
@pytest.mark.parametrize("method", ["fedpdpo", "scaffold", "apfl"])
def test_swapping_beside_the_work_changes_nothing(device: Workspace, method: str) -> None:
    """Streams run as late as events allow, or copies as early: a wait that is missing gives other numbers.

    apfl's exchange brings clients to the device, group by group, whose results must not be looked for where they were.
    """
    options = SMALL | {"method": method, "cohort": 2, "micro_rows": 200}
    if method != "fedpdpo":
        options["bottleneck"] = None
    if method == "scaffold":
        options["refit"] = None  # which takes a private module
    if method == "apfl":
        options |= {"groups": "clusters:2", "cluster_labels": "1,0,1,0,1,0", "aggregation_error_every": 0}
    still = device.run(f"{method}-device", **options)
    assert facts(still) == {"cohort": "2", "micro_rows": "200", "resident_clients": "6"}
    for resident, early in ((2, False), (4, False), (4, True), (3, True)):
        if early:
            device.settings["FEDPDPO_EMULATED_EARLY_COPIES"] = "1"
        run = device.run(f"{method}-device-{resident}-{early}", resident=resident, **options)
        assert differences(contents(still), contents(run)) == ["config@resident"]
        assert facts(run)["resident_clients"] == str(resident)


def kib(pattern: str, text: str) -> float:
    """A number of bytes of `plan`, whose number and unit the pattern's groups are."""
    number, unit = re.search(pattern + r" ([\d.]+) ([KMG])iB", text).groups()
    return float(number) * 1024 ** "KMG".index(unit)


@needs_emulated
def test_auto_takes_what_fits_and_tries_again_with_less(device: Workspace) -> None:
    """All that fits; then a device that says it has much but has room for three of six clients; then that run goes on
    where there is room for all, in the cohorts that it began with."""
    options = SMALL | {"micro_rows": 200, "bottleneck": 64}
    ample = device.run("auto-ample", **options)
    assert facts(ample) == {"cohort": "6", "micro_rows": "200", "resident_clients": "6"}
    plan = device.call(*device.arguments("plan", **options | {"min_train": 2, "alpha": 1, "seed": 1})).out
    assert "up to 6 clients in lock-step, 200 rows a pass, 6 of 6 clients' state on the device at once" in plan
    clients, passes = kib("6 clients", plan) + kib("gradients", plan), kib("activations for 250 rows", plan)
    used = 1024 ** 2 - kib(r"(?m:^) +", plan[plan.index("memory"):])
    assert used > 0 and "are free on its device" in plan

    device.settings["FEDPDPO_EMULATED_MEMORY"] = f"{used + 1.1 * passes + 0.6 * clients:.0f}+{40 * 1024}"
    options["checkpoint_every"] = 1
    scarce = device.attempt("auto-scarce", **options)
    assert scarce.code == 0, scarce.err
    run = device.folder / "auto-scarce.h5"
    taken = facts(run)
    assert 1 < int(taken["cohort"]) < 6 and int(taken["cohort"]) <= int(taken["resident_clients"]) < 6
    warnings = [line for line in scarce.err.splitlines() if "warning: " in line]
    assert warnings and all("no room for a cohort of" in line and "out of device memory" in line for line in warnings)
    assert f"{taken['resident_clients']} of 6 clients' state on the device at once" in scarce.err

    del device.settings["FEDPDPO_EMULATED_MEMORY"]
    kept = contents(run)
    middle, end = checkpoints(run.with_suffix(".ckpt"))
    assert manifest(middle)["facts"]["cohort"] == taken["cohort"]
    run.unlink()
    shutil.rmtree(end)
    again = device.run("auto-scarce", resume="auto", **options)
    assert facts(again) == taken | {"resident_clients": "6"}
    assert differences(kept, contents(again)) == []
