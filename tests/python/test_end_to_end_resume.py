"""Stop and go: killed, signalled, or with damaged checkpoints, on other numbers of ranks: the same file in the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from run_support import (Job, Workspace, assert_same, catches, checkpoints, contents, differences, is_running,
                         last_round, manifest, needs_program, random_pairs, read, wait_for, write_pairs)

pytestmark = needs_program

REQUEUE = 75
# All that a checkpoint has to carry: private modules, moments, participation, dropout, evaluations not of every round.
LONG: dict[str, Any] = {
    "method": "fedpdpo", "lr_private": 0.01, "bottleneck": 4, "lora_dropout": 0.1, "participation": 0.5, "refit": 1,
    "rounds": 24, "steps": 6, "eval_every": 3,
}
# Few rounds of many steps: a signal falls in the middle of one.
WIDE = LONG | {"participation": 0.75, "rounds": 3, "steps": 150, "refit": 40}


@pytest.fixture(scope="module")
def domains(space: Workspace) -> list[Path]:
    return [write_pairs(space.folder / f"data-{name}.h5", random_pairs(60, seed=seed, domain=name))
            for seed, name in enumerate(("animals", "plants"))]


@pytest.fixture(scope="module")
def long_run(space: Workspace) -> Path:
    """LONG, uninterrupted and without checkpoints."""
    return space.run("long", **LONG)


@pytest.fixture(scope="module")
def wide_run(space: Workspace) -> Path:
    return space.run("wide", ranks=2, **WIDE)


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Jobs that must not outlive the test."""
    started: list[Job] = []
    yield started
    for job in started:
        if job.process.poll() is None:
            job.kill_all()


def checkpoint_folder(space: Workspace, name: str) -> Path:
    return space.folder / f"{name}.ckpt"


def kill_after_round(space: Workspace, jobs: list[Job], name: str, round_: int, ranks: int, **options: Any) -> None:
    job = space.start(name, ranks=ranks, checkpoint_every=1, resume="auto", **options)
    jobs.append(job)
    folder = checkpoint_folder(space, name)
    wait_for(lambda: job.process.poll() is not None or any(p.name > f"round-{round_:05}" for p in checkpoints(folder)),
             f"a checkpoint of round {round_}")
    job.kill_all()
    assert job.process.returncode == -signal.SIGKILL
    assert not (space.folder / f"{name}.h5").exists(), "the run was over before it was killed"


# SIGKILL


def test_killed_and_resumed_on_other_numbers_of_ranks(space: Workspace, jobs: list[Job], long_run: Path) -> None:
    for round_, ranks in ((2, 2), (7, 1), (13, 4)):
        kill_after_round(space, jobs, "killed", round_, ranks, **LONG)
    assert last_round(space.folder / "killed.h5.partial") >= 7
    outcome = space.attempt("killed", ranks=2, resume="auto", **LONG)
    assert outcome.code == 0 and "resumed in round" in outcome.err, outcome.err
    assert_same(space.folder / "killed.h5", long_run)
    assert not (space.folder / "killed.h5.partial").exists()
    steps = read(long_run, "clients/train/steps")
    assert (steps[1:].sum(axis=1) == 2 * 6 + 4 * 1).all()  # two of four clients a round; all refit, a step each


@pytest.mark.parametrize(("method", "ranks"), [("fedavg", (4, 1)), ("local", (1, 2)), ("centralized", (2, 3))])
def test_killed_and_resumed_with_domains(space: Workspace, jobs: list[Job], domains: list[Path], method: str,
                                         ranks: tuple[int, int]) -> None:
    options = {"method": method, "data": domains, "rounds": 20, "steps": 4}
    options |= {"groups": "domain"} if method == "fedavg" else {}
    whole = space.run(f"whole-{method}", ranks=ranks[1], **options)
    kill_after_round(space, jobs, f"domains-{method}", 3, ranks[0], **options)
    assert_same(space.run(f"domains-{method}", ranks=ranks[1], resume="auto", **options), whole)


def test_a_resumed_run_may_sum_by_another_route(space: Workspace, jobs: list[Job], long_run: Path) -> None:
    kill_after_round(space, jobs, "rerouted", 3, 4, reduce_route="hierarchical", ranks_per_node=2, **LONG)
    assert_same(space.run("rerouted", ranks=2, resume="auto", **LONG), long_run)


def test_resume_without_a_checkpoint_starts_at_the_beginning(space: Workspace) -> None:
    assert_same(space.run("nothing-to-resume", resume="auto"), space.run("afresh"))


def test_resume_after_the_end_gives_the_file_again(space: Workspace) -> None:
    first = space.run("ended", checkpoint_every=2, method="fedpdpo", rounds=4)
    kept = contents(first)
    first.unlink()
    assert differences(kept, contents(space.run("ended", resume="auto", ranks=2, method="fedpdpo", rounds=4))) == []


# Signals


def wait_for_handlers(job: Job, ranks: int, number: int) -> None:
    def ready() -> bool:
        pids = job.ranks()
        return len(pids) == ranks and all(catches(pid, number) for pid in pids)

    wait_for(lambda: job.process.poll() is not None or ready(), "the handlers of all ranks")


def stop(space: Workspace, jobs: list[Job], name: str, number: int, *, ranks: int, whom: str, after: float = 0.0,
         **options: Any) -> int:
    """Signals a run once its first round is written (resumed: once it catches signals); the exit code."""
    partial, folder = space.folder / f"{name}.h5.partial", checkpoint_folder(space, name)
    before = checkpoints(folder)
    partial.unlink(missing_ok=True)
    job = space.start(name, ranks=ranks, resume="auto", **options)
    jobs.append(job)
    if before or whom == "early":
        wait_for_handlers(job, max(ranks, 1), number)
    else:
        wait_for(lambda: job.process.poll() is not None or partial.exists(), "the first round")
    time.sleep(after)
    if job.process.poll() is None:
        os.kill(job.ranks()[-1] if whom == "one rank" else job.process.pid, number)
    outcome = job.finish(30)
    assert outcome.code in (0, REQUEUE), outcome.err
    if outcome.code == REQUEUE:
        assert "stopped by a signal in round" in outcome.err and str(folder) in outcome.err
        assert outcome.error_lines == []
        assert checkpoints(folder) and not (space.folder / f"{name}.h5").exists()
    return outcome.code


@pytest.mark.parametrize(("number", "ranks", "whom"), [
    (signal.SIGUSR1, 2, "job"),  # as Slurm does it: mpirun hands it on
    (signal.SIGUSR1, 2, "one rank"),
    (signal.SIGTERM, 0, "job"),
], ids=["usr1-to-mpirun", "usr1-to-one-rank", "term-without-mpirun"])
def test_signalled_in_the_middle_of_a_round(space: Workspace, jobs: list[Job], wide_run: Path, number: int, ranks: int,
                                            whom: str) -> None:
    name = f"stopped-{int(number)}-{ranks}-{whom[:3]}"
    assert stop(space, jobs, name, number, ranks=ranks, whom=whom, after=0.1, **WIDE) == REQUEUE
    where = manifest(checkpoints(checkpoint_folder(space, name))[-1])
    assert where["round"] in (1, 2, 3), where
    assert_same(space.run(name, ranks=1 if ranks else 4, resume="auto", **WIDE), wide_run)


@pytest.mark.parametrize("ranks", [0, 2])
def test_signalled_while_it_starts(space: Workspace, jobs: list[Job], wide_run: Path, ranks: int) -> None:
    name = f"early-{ranks}"
    assert stop(space, jobs, name, signal.SIGUSR1, ranks=ranks, whom="early", **WIDE) == REQUEUE
    assert manifest(checkpoints(checkpoint_folder(space, name))[-1])["round"] <= 1
    assert_same(space.run(name, ranks=1, resume="auto", **WIDE), wide_run)


def test_signalled_again_and_again(space: Workspace, jobs: list[Job], wide_run: Path) -> None:
    codes = [stop(space, jobs, "again", signal.SIGUSR1, ranks=ranks, whom="job", **WIDE) for ranks in (1, 3, 2)]
    assert codes[0] == REQUEUE
    path = space.folder / "again.h5"
    if codes[-1] == REQUEUE:
        space.run("again", ranks=2, resume="auto", **WIDE)
    assert_same(path, wide_run)


# What is under way beside LoRA and moments: long local training, or long refitting behind the exchange.
UNDER_WAY: dict[str, dict[str, Any]] = {
    "groups": {"method": "fedconcord", "agreement_errors": 1, "bottleneck": 4, "clients": 8, "partition": "iid",
               "flip_clients": 0.5, "steps": 5, "refit": 150},
    "moved weights": {"method": "fedex-lora", "groups": "clusters:2", "head": "full", "steps": 5, "refit": 300},
    "mixtures": {"method": "scaffold", "personal_lora": "apfl", "compress": "topk", "participation": 0.75,
                 "steps": 150},
    "noise": {"method": "fedadam", "dp_clip": 0.1, "dp_noise": 0.5, "participation": 0.75, "head": "full",
              "steps": 150, "refit": 40, "new_clients": 1, "new_client_steps": 2},
}


@pytest.mark.parametrize("case", UNDER_WAY)
def test_signalled_twice(space: Workspace, jobs: list[Job], case: str) -> None:
    options = {"rounds": 4, "lr_private": 0.01, **UNDER_WAY[case]}
    name = case.replace(" ", "-")
    whole = space.run(f"{name}-whole", **options)
    for ranks, after in ((2, 0.1), (1, 0.4)):
        if stop(space, jobs, name, signal.SIGUSR1, ranks=ranks, whom="job", after=after, **options) == 0:
            break
    path = space.folder / f"{name}.h5"
    if not path.exists():
        space.run(name, ranks=4, resume="auto", **options)
    assert_same(path, whole)


def test_cohorts_signalled_while_refitting(space: Workspace, jobs: list[Job]) -> None:
    """Those that are equally far go on together. On one rank: cohorts are made of the clients that a rank hosts."""
    options = {"method": "fedpdpo", "clients": 7, "cohort": 4, "rounds": 3, "lr_private": 0.01, "steps": 5,
               "lora_dropout": 0.1, "refit": 200}
    whole = space.run("refitting-whole", **options)
    codes = [stop(space, jobs, "refitting", signal.SIGUSR1, ranks=1, whom="job", after=after, **options)
             for after in (0.2, 0.5)]
    assert REQUEUE in codes
    path = space.folder / "refitting.h5"
    if not path.exists():
        space.run("refitting", resume="auto", **options)
    assert_same(path, whole)


# Damaged checkpoints


def flip_byte(folder: Path) -> None:
    path = folder / "client-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "history.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def tear_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])


DAMAGES = {
    "flipped byte": flip_byte, "truncated file": truncate, "torn manifest": tear_manifest,
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "missing file": lambda folder: (folder / "group-00000.safetensors").unlink(),
}


@pytest.fixture(scope="module")
def saved(space: Workspace) -> tuple[Path, dict[str, Any]]:
    """A run that kept its two newest checkpoints, and its options but for the folder of those."""
    options = {"method": "fedpdpo", "lr_private": 0.01, "rounds": 4, "participation": 0.5}
    path = space.run("saved", checkpoint_every=1, **options)
    assert len(checkpoints(checkpoint_folder(space, "saved"))) == 2
    return path, options


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(space: Workspace, saved: tuple[Path, dict[str, Any]],
                                             damage: str) -> None:
    whole, options = saved
    name = f"damaged-{damage.replace(' ', '-')}"
    folder = checkpoint_folder(space, name)
    folder.mkdir()
    for checkpoint in checkpoints(checkpoint_folder(space, "saved")):
        copy = folder / checkpoint.name
        copy.mkdir()
        for file in checkpoint.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    before, newest = checkpoints(folder)
    DAMAGES[damage](newest)
    outcome = space.attempt(name, ranks=2, resume="auto", **options)
    assert outcome.code == 0, outcome.err
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("fedpdpo: warning:")]
    assert str(newest) in warning and "passed over" in warning
    assert f"resumed in round {manifest(before)['round']} " in outcome.err
    assert_same(space.folder / f"{name}.h5", whole)


def test_without_a_whole_checkpoint_the_run_begins_again(space: Workspace, saved: tuple[Path, dict[str, Any]]) -> None:
    whole, options = saved
    folder = checkpoint_folder(space, "hopeless")
    for number in (3, 4):
        (folder / f"round-{number:05}-00").mkdir(parents=True)
        (folder / f"round-{number:05}-00" / "manifest.json").write_text("{}")
    outcome = space.attempt("hopeless", resume="auto", **options)
    assert outcome.code == 0 and outcome.err.count("is passed over") == 2 and "resumed" not in outcome.err
    assert_same(space.folder / "hopeless.h5", whole)


# While it runs


def test_the_partial_file_can_be_read_at_any_moment(space: Workspace, jobs: list[Job], long_run: Path) -> None:
    job = space.start("watched", ranks=2, **LONG)
    jobs.append(job)
    partial, path = space.folder / "watched.h5.partial", space.folder / "watched.h5"
    wait_for(lambda: job.process.poll() is not None or partial.exists(), "the partial file")
    seen: list[int] = []
    while job.process.poll() is None:
        try:
            with h5py.File(partial) as file:
                assert file.attrs["status"] in ("running", "complete")
                assert file["config"].attrs["method"] == "fedpdpo"
                assert file["clients/test/after/loss"].shape == (25, 4)
            seen.append(last_round(partial))
        except OSError:
            assert not partial.exists()  # it got its final name, perhaps while HDF5 was looking
            wait_for(path.exists, "the finished file", 10)
            break
    assert job.finish().code == 0
    assert seen == sorted(seen) and seen[0] >= 0 and len(set(seen)) >= 3
    assert_same(path, long_run)


def test_the_death_of_a_rank_ends_the_job(space: Workspace, jobs: list[Job]) -> None:
    job = space.start("death", ranks=3, steps=1_000_000, rounds=1)
    jobs.append(job)
    wait_for(lambda: job.process.poll() is not None or (space.folder / "death.h5.partial").exists(), "the first round")
    ranks = job.ranks()
    assert len(ranks) == 3
    begin = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    outcome = job.finish(30)
    wait_for(lambda: not any(map(is_running, ranks)), "the end of all ranks", 10)
    assert time.monotonic() - begin < 10
    assert outcome.code not in (0, 2, REQUEUE)
    assert not (space.folder / "death.h5").exists()
