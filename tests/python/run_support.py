"""What the end-to-end tests share: pairs with a rule to learn, runs of the real program under mpirun, comparisons.

The program is $FEDPDPO_BIN, else build/fedpdpo; without it, or without mpirun, the tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("FEDPDPO_BIN", ROOT / "build" / "fedpdpo"))
GOLDEN = ROOT / "tests" / "golden"
LLAMA, GPT2 = GOLDEN / "tiny_llama", GOLDEN / "tiny_gpt2"
MISTRAL, QWEN2, QWEN3, GPT_NEOX = (GOLDEN / f"tiny_{family}" for family in ("mistral", "qwen2", "qwen3", "gpt_neox"))
VOCABULARY, POSITIONS = 96, 128
GOOD, BAD = range(10, 22), range(60, 72)
PARTS = ("prompt", "chosen", "rejected")
# What may differ between two runs that must compute the same: where things are, and how often they are saved.
PLACES = {"out", "command_line", "checkpoint-dir", "checkpoint-every", "reference-cache", "resume", "overwrite"}

# Warnings of options without effect: one set of options serves many methods and numbers of ranks here.
ADVICE = r"has no effect with --method|more ranks than the|no epsilon holds"

needs_program = pytest.mark.skipif(not PROGRAM.is_file() or shutil.which("mpirun") is None,
                                   reason=f"{PROGRAM} has not been built (FEDPDPO_BIN), or there is no mpirun")

MPI_SETTINGS = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_hwloc_base_binding_policy": "none", "OMP_WAIT_POLICY": "passive",
}


# Pairs


def tokenizer_hash(model: Path = LLAMA) -> str:
    return hashlib.sha256((model / "tokenizer.json").read_bytes()).hexdigest()


@dataclass
class PairLists:
    """The contents of a pairs.h5, as lists."""

    prompt: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]
    label: list[int]
    split: list[int]
    label_names: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


def random_pairs(count: int = 90, categories: int = 3, seed: int = 0, domain: str = "toys") -> PairLists:
    """Random tokens with a rule: what is peculiar to a chosen response is of GOOD tokens, to a rejected one of BAD.

    A response starts like its rival in every third pair; prompts of different categories begin
    differently; 60 % are train pairs, 20 % each validation and test.
    """
    draw = np.random.default_rng(seed)
    pairs = PairLists([], [], [], [], [], [f"kind{i}" for i in range(categories)])
    for i in range(count):
        label = i % categories
        prompt = [1, 3 + label, *draw.integers(3, VOCABULARY, draw.integers(2, 9)).tolist()]
        common = draw.integers(3, VOCABULARY, 2).tolist() if i % 3 == 0 else []
        pairs.prompt.append(prompt)
        pairs.chosen.append([*common, *draw.choice(GOOD, draw.integers(1, 6)).tolist(), 2])
        pairs.rejected.append([*common, *draw.choice(BAD, draw.integers(1, 6)).tolist(), 2])
        pairs.label.append(label)
        pairs.split.append((0, 0, 0, 1, 2)[i // categories % 5])
    pairs.attributes = {
        "format": "fedpdpo-pairs", "version": np.int64(1), "domain": domain, "tokenizer": "tiny",
        "tokenizer_sha256": tokenizer_hash(), "vocab_size": np.int64(VOCABULARY), "max_length": np.int64(64),
        "source": "random numbers", "license": "none", "synthetic": np.int64(1), "report": "{}",
    }
    return pairs


def write_pairs(path: Path, pairs: PairLists) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in pairs.attributes.items():
            file.attrs[name] = value
        for part in PARTS:
            lists = getattr(pairs, part)
            file[f"{part}/tokens"] = np.array([token for tokens in lists for token in tokens], np.uint32)
            file[f"{part}/offsets"] = np.cumsum([0, *map(len, lists)]).astype(np.uint64)
        file["label"] = np.array(pairs.label, np.int32)
        file.create_dataset("label_names", data=pairs.label_names, dtype=h5py.string_dtype())
        file["split"] = np.array(pairs.split, np.uint8)
    return path


# Runs


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
    return kept | MPI_SETTINGS | {"FEDPDPO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("fedpdpo: error:")]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.005)
    raise AssertionError(f"waited {seconds} s for {what}")


def process_tree(pid: int) -> list[int]:
    """The process and its descendants, itself first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def is_running(pid: int) -> bool:
    """False for a process that ended, also where nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def catches(pid: int, number: int) -> bool:
    """True once the process has a handler for the signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


class Job:
    """A run under way, in a session of its own."""

    def __init__(self, command: Sequence[str], folder: Path, settings: dict[str, str]) -> None:
        self.process = subprocess.Popen(command, cwd=folder, env=environment(folder) | settings, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def ranks(self) -> list[int]:
        """Process ids of the program itself."""
        found = []
        for pid in process_tree(self.process.pid):
            try:
                if Path(os.readlink(f"/proc/{pid}/exe")) == PROGRAM.resolve():
                    found.append(pid)
            except OSError:
                continue
        return found

    def kill_all(self) -> None:
        """SIGKILL to mpirun and all that it started: nobody has time for anything."""
        for pid in process_tree(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.finish()

    def finish(self, seconds: float = 120.0) -> Outcome:
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for pid in process_tree(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            raise
        return Outcome(self.process.returncode, out, err)


@dataclass
class Workspace:
    """A folder with pairs.h5, in which the program is run.

    Options are keywords: a list is several values, True is a switch, None leaves the option out. ranks 0 is without
    mpirun.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)  # environment variables beside those of all runs

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.h5"

    def arguments(self, subcommand: str, *, model: Path | None = None, data: Any = None, **options: Any) -> list[str]:
        given: dict[str, Any] = {"model": model or LLAMA, "data": data or self.pairs}
        given |= {name.replace("_", "-"): value for name, value in options.items()}
        words = [subcommand]
        for name, value in given.items():
            if value is None:
                continue
            values = value if isinstance(value, (list, tuple)) else [] if value is True else [value]
            words += [f"--{name}", *map(str, values)]
        return words

    @staticmethod
    def command(arguments: Sequence[str], ranks: int) -> list[str]:
        return [*(["mpirun", "-n", str(ranks)] if ranks else []), str(PROGRAM), *arguments]

    def call(self, *arguments: Any, ranks: int = 0) -> Outcome:
        command = self.command([str(argument) for argument in arguments], ranks)
        return Job(command, self.folder, self.settings).finish()

    def options(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Those of a small federation, unless told otherwise."""
        small = {"method": "fedavg", "clients": 4, "alpha": 1, "rounds": 3, "steps": 2, "batch": 4, "min_train": 2,
                 "lora_rank": 2, "lr_shared": 0.01, "seed": 1, "out": self.folder / f"{name}.h5"}
        if "partition" in options:
            small.pop("alpha")
        return small | options

    def start(self, name: str, *, ranks: int = 0, **options: Any) -> Job:
        command = self.command(self.arguments("run", **self.options(name, options)), ranks)
        return Job(command, self.folder, self.settings)

    def attempt(self, name: str, *, ranks: int = 0, **options: Any) -> Outcome:
        return self.start(name, ranks=ranks, **options).finish()

    def run(self, name: str, *, ranks: int = 0, **options: Any) -> Path:
        return self.finished(name, options, self.attempt(name, ranks=ranks, **options))

    def run_several(self, runs: Mapping[str, dict[str, Any]], at_once: int = 3) -> list[Path]:
        """Runs by name, their options with `ranks` among them; a few at a time, as most of a short run is waiting."""
        names = list(runs)
        paths = []
        for begin in range(0, len(names), at_once):
            jobs = {name: self.start(name, **runs[name]) for name in names[begin:begin + at_once]}
            outcomes = {name: job.finish() for name, job in jobs.items()}
            paths += [self.finished(name, runs[name], outcome) for name, outcome in outcomes.items()]
        return paths

    def finished(self, name: str, options: dict[str, Any], outcome: Outcome) -> Path:
        assert outcome.code == 0, outcome.err
        warnings = [line for line in outcome.err.splitlines() if "warning" in line]
        assert [line for line in warnings if not re.search(ADVICE, line)] == [], outcome.err
        path = self.options(name, options)["out"]
        assert path.is_file()
        assert not path.with_name(path.name + ".partial").exists()
        return path


# Run files


def contents(path: Path) -> dict[str, Any]:
    """Everything that is a function of options and input: datasets as (type, shape, bytes), attributes as they are."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if name.split("/")[0] in ("timings", "environment"):
                return
            for key, value in item.attrs.items():
                if name != "config" or key not in PLACES:
                    found[f"{name}@{key}"] = value
            if isinstance(item, h5py.Dataset):
                values = item.asstr()[:].tolist() if h5py.check_string_dtype(item.dtype) else item[...].tobytes()
                found[name] = (str(item.dtype), item.shape, values)

        add("", file)
        file.visititems(add)
    assert any(name.startswith("clients/") for name in found) and "config@method" in found
    return found


def metrics(path: Path) -> dict[str, Any]:
    """The datasets of rounds, clients and final margins only."""
    return {name: value for name, value in contents(path).items()
            if "@" not in name and name.startswith(("rounds/", "clients/", "final/"))}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def assert_same(first: Path, second: Path) -> None:
    assert differences(contents(first), contents(second)) == []


def read(path: Path, name: str) -> np.ndarray:
    with h5py.File(path) as file:
        return file[name][...]


def last_round(path: Path) -> int:
    """The last round that a run file, finished or partial, has numbers of; -1 before the first."""
    with h5py.File(path) as file:
        done = np.flatnonzero(~np.isnan(file["rounds/train/steps"][...]))
    return int(done[-1]) if done.size else -1


def checkpoints(folder: Path) -> list[Path]:
    """Valid ones (with a manifest), oldest first."""
    return sorted(path.parent for path in folder.glob("round-*/manifest.json"))


def manifest(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "manifest.json").read_text())


def group_values(run: Path, group: int = 0) -> np.ndarray:
    """What the server of a group holds at the newest checkpoint of a run."""
    return load_file(checkpoints(run.with_suffix(".ckpt"))[-1] / f"group-{group:05}.safetensors")["values"]


def client_arrays(run: Path, client: int) -> dict[str, np.ndarray]:
    """A client's state at the newest checkpoint of a run."""
    return load_file(checkpoints(run.with_suffix(".ckpt"))[-1] / f"client-{client:05}.safetensors")


def run_everywhere(space: Workspace, name: str, **options: Any) -> Path:
    """Four rounds on 1, 2 and 4 ranks, and broken off: the same file each time.

    The run on two ranks saves after rounds 2 and 4. Without its file and the later checkpoint it is taken up on one.
    """
    options = {"rounds": 4, "steps": 3, **options}
    one, four, saved = space.run_several({
        f"{name}-one": options, f"{name}-four": options | {"ranks": 4},
        f"{name}-saved": options | {"ranks": 2, "checkpoint_every": 2}})
    assert_same(one, four)
    assert_same(one, saved)
    saved.unlink()
    middle, end = checkpoints(saved.with_suffix(".ckpt"))
    assert manifest(middle)["round"] == 3  # the one that is next
    shutil.rmtree(end)
    assert_same(one, space.run(f"{name}-saved", checkpoint_every=2, resume="auto", **options))
    assert read(one, "rounds/train/loss")[4] != read(one, "rounds/train/loss")[2]
    return one


def program_methods() -> list[str]:
    """The methods that the program's help names; none where there is no program."""
    if not PROGRAM.is_file():
        return []
    done = subprocess.run([PROGRAM, "run", "--help"], env=os.environ | MPI_SETTINGS, capture_output=True, text=True,
                          check=True)
    listed = done.stdout.split("\nMethods, ", 1)[1].split("\n\n", 1)[0]
    return re.findall(r"^  ([a-z][a-z0-9-]*) ", listed, re.MULTILINE)


def analysis(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "analysis", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, check=False)
