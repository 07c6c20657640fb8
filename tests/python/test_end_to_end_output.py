"""What a run finds where it is going to write: nothing of an earlier run is lost, and nothing is taken for this run's."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import h5py
import pytest
from run_support import Workspace, checkpoints, contents, needs_program, random_pairs, wait_for, write_pairs

pytestmark = needs_program


def refused(space: Workspace, name: str, *parts: str, **options) -> None:
    outcome = space.attempt(name, **options)
    (line,) = outcome.error_lines
    assert outcome.code == 2 and all(part in line for part in parts), outcome.err


def test_checkpoints_of_another_run_are_not_this_runs(space: Workspace) -> None:
    folder = space.folder / "again.ckpt"
    path = space.run("again", rounds=5, checkpoint_every=1)
    before = path.read_bytes()
    refused(space, "again", "again.h5", "--overwrite", rounds=3, checkpoint_every=1)
    path.unlink()
    names = [checkpoint.name for checkpoint in checkpoints(folder)]
    refused(space, "again", "again.ckpt", "--resume auto", "--overwrite", f"found {names[-1]}", rounds=3, checkpoint_every=1)
    assert [checkpoint.name for checkpoint in checkpoints(folder)] == names
    # A run that ends before its first round leaves them, too.
    path.write_bytes(before)
    refused(space, "again", "--head-rank", rounds=3, overwrite=True, head="lowrank", head_rank=0)
    assert [checkpoint.name for checkpoint in checkpoints(folder)] == names and path.read_bytes() == before
    (folder / "notes.txt").write_text("mine")
    space.run("again", rounds=3, checkpoint_every=1, overwrite=True)
    assert {checkpoint.name[:11] for checkpoint in checkpoints(folder)} <= {"round-00003", "round-00004"}
    assert (folder / "notes.txt").read_text() == "mine"
    # Without checkpoints of its own, none of another run's is left beside it.
    space.run("again", rounds=2, overwrite=True)
    assert not checkpoints(folder)


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_complete_run_has_nothing_to_do(space: Workspace, ranks: int) -> None:
    name = f"complete-{ranks}"
    path = space.run(name, ranks=ranks, checkpoint_every=1)
    before = path.read_bytes()
    outcome = space.attempt(name, ranks=ranks, checkpoint_every=2, resume="auto")
    assert outcome.code == 0 and "is complete: nothing to do" in outcome.err and path.read_bytes() == before
    refused(space, name, f"{name}.h5: --rounds: expected 3 as it was made with (or --overwrite), found 4", ranks=ranks,
            rounds=4, resume="auto")
    other = write_pairs(space.folder / "other.h5", random_pairs(90, seed=5))
    refused(space, name, f"{name}.h5: --data: expected ", ranks=ranks, resume="auto", data=other)
    moved = shutil.copy(space.pairs, space.folder / "moved.h5")
    assert space.attempt(name, ranks=ranks, resume="auto", data=moved).code == 0
    path.write_bytes(b"something else")
    refused(space, name, f"{name}.h5", ranks=ranks, resume="auto")
    assert path.read_bytes() == b"something else"


def test_two_runs_do_not_write_one_file(space: Workspace) -> None:
    long = {"rounds": 400, "steps": 20, "seed": 7}
    first = space.start("twice", **long)
    lock = space.folder / "twice.h5.lock"
    try:
        wait_for(lambda: (space.folder / "twice.h5.partial").exists(), "the first run's file")
        refused(space, "twice", "twice.h5: --out: expected a file that no other process is writing", overwrite=True)
        assert first.process.poll() is None and lock.exists()
    finally:
        first.kill_all()
    # What a killed run leaves is in nobody's way.
    space.run("twice")
    assert not lock.exists()


def test_a_run_names_its_input(space: Workspace) -> None:
    other = write_pairs(space.folder / "more.h5", random_pairs(60, seed=3, domain="plants"))
    paths = [space.run("named", data=[space.pairs, other]), space.run("named-again", data=[space.pairs, other], seed=2)]
    facts = []
    for path in paths:
        with h5py.File(path) as file:
            facts.append({key: file["environment"].attrs[key] for key in ("model_sha256", "data_sha256")})
    assert facts[0] == facts[1] and len(facts[0]["model_sha256"]) == hashlib.sha256().digest_size * 2
    assert len(set(facts[0]["data_sha256"].split())) == 2
    assert contents(paths[0]) != contents(paths[1])
    with h5py.File(space.run("named-one", data=other)) as file:
        assert file["environment"].attrs["data_sha256"] == facts[0]["data_sha256"].split()[1]
