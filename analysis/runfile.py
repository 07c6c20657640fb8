"""Run files: finding them, opening one, and checking that it is what it claims to be.

`load` gives a `Run` of plain NumPy arrays; nothing stays open behind it. Shape letters: R rounds (arrays have R+1
entries, entry 0 is the state before training), C clients, L categories, P test pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

FORMAT = "fedpdpo-run"
VERSION = 1
FINISHED_SUFFIX = ".h5"
PARTIAL_SUFFIX = ".h5.partial"
T = TypeVar("T")


class RunFileError(Exception):
    """A file that cannot be used; `str` gives one line with the file and the reason."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


@dataclass
class Run:
    """One run. Keys of the dictionaries are the paths below the group of that name in the file."""

    path: Path
    status: str  # "complete", or "running" for a file that its run has not finished
    config: dict[str, str]  # every resolved option
    environment: dict[str, Any]
    rounds: dict[str, np.ndarray]  # "round" (R+1), "test/after/accuracy" (R+1), ...
    clients: dict[str, np.ndarray]  # "test/after/accuracy" (R+1, C), "train/loss" (R+1, C), ...
    partition: dict[str, np.ndarray]  # "client_names" (C), "label_histogram" (C, 3, L), "flipped" (C), ...
    final: dict[str, np.ndarray]  # "test/client", "test/file", "test/pair", "test/margin", ... (P)
    timings: dict[str, np.ndarray]  # "train" (R+1) seconds, ...
    units: dict[str, str] = field(default_factory=dict)  # by full path in the file: "rounds/bytes_up" -> "bytes"
    client_datasets: list[str] = field(default_factory=list)  # keys that `clients` has when everything is read

    @property
    def method(self) -> str:
        return self.config["method"]

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def client_names(self) -> list[str]:
        return [str(name) for name in self.partition["client_names"]]

    @property
    def complete(self) -> bool:
        return self.status == "complete"


@dataclass
class Files:
    """What a search for run files found, each list sorted by path."""

    finished: list[Path] = field(default_factory=list)
    partial: list[Path] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)  # arguments that do not exist or cannot be run files


def find_files(arguments: Iterable[Path | str]) -> Files:
    """Run files among `arguments`: files as they are, directories searched through all their levels."""
    finished: set[Path] = set()
    partial: set[Path] = set()
    missing: set[Path] = set()
    for argument in map(Path, arguments):
        if argument.is_dir():
            finished.update(path for path in argument.rglob("*" + FINISHED_SUFFIX) if path.is_file())
            partial.update(path for path in argument.rglob("*" + PARTIAL_SUFFIX) if path.is_file())
        elif not argument.is_file():
            missing.add(argument)
        elif argument.name.endswith(PARTIAL_SUFFIX):
            partial.add(argument)
        else:
            finished.add(argument)
    return Files(sorted(finished), sorted(partial), sorted(missing))


def load(path: Path | str, only: Sequence[str] | None = None) -> Run:
    """Reads a run file.

    `only`: paths in the file ("clients/test/after/accuracy", "final/test"); datasets of /clients, /final, /timings
    and the index lists of /partition that are neither one of these nor below one are then not read, which keeps a
    sweep of many large runs in memory. Everything is read when it is left out.

    Raises RunFileError for anything that is not a readable, consistent run file.
    """
    run = _open(path, lambda path, file: _read(path, file, only))
    _check(run)
    return run


def load_config(path: Path | str) -> dict[str, str]:
    """The options that a run file records, and nothing else of it. Raises RunFileError."""
    return _open(path, _config)


def partition_digest(path: Path | str) -> str:
    """The same for runs whose clients hold the same pairs: a hash of all in /partition. Raises RunFileError."""

    def read(path: Path, file: h5py.File) -> str:
        _require_groups(path, file, "partition")
        digest = hashlib.sha256()

        def add(name: str, item: h5py.HLObject) -> None:
            if isinstance(item, h5py.Dataset):
                is_text = h5py.check_string_dtype(item.dtype) is not None
                digest.update(f"{name} {item.dtype} {item.shape}".encode())
                digest.update(repr(item.asstr()[()].tolist()).encode() if is_text else item[()].tobytes())

        file["partition"].visititems(add)
        return digest.hexdigest()

    return _open(path, read)


def _open(path: Path | str, read: Callable[[Path, h5py.File], T]) -> T:
    path = Path(path)
    try:
        # A writer may still hold the lock of an unfinished file; every round of it is flushed, so reading is safe.
        locking = not path.name.endswith(PARTIAL_SUFFIX)
        with h5py.File(path, "r", locking=locking) as file:
            return read(path, file)
    except FileNotFoundError:
        raise RunFileError(path, "no such file") from None
    except PermissionError:
        raise RunFileError(path, "permission denied") from None
    except (OSError, RuntimeError) as error:
        if not h5py.is_hdf5(path):
            raise RunFileError(path, "not an HDF5 file") from None
        raise RunFileError(path, f"damaged HDF5 file ({str(error).splitlines()[0]})") from None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, bytes):
        return _text(value)
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and np.size(value) == 1 else value


def _config(path: Path, file: h5py.File) -> dict[str, str]:
    found = _text(_scalar(file.attrs["format"])) if "format" in file.attrs else None
    if found != FORMAT:
        what = "has no 'format' attribute" if found is None else f"has format '{found}'"
        raise RunFileError(path, f"not a run file: {what}, expected '{FORMAT}'")
    version = _scalar(file.attrs.get("version", 0))
    if version != VERSION:
        raise RunFileError(path, f"run file version {version}, expected {VERSION}")
    _require_groups(path, file, "config")
    return {key: _text(_scalar(value)) for key, value in file["config"].attrs.items()}


def _require_groups(path: Path, file: h5py.File, *names: str) -> None:
    for name in names:
        if not isinstance(file.get(name), h5py.Group):
            raise RunFileError(path, f"has no group /{name}")


def _read(path: Path, file: h5py.File, only: Sequence[str] | None) -> Run:
    config = _config(path, file)
    _require_groups(path, file, "rounds", "clients", "partition")
    units: dict[str, str] = {}

    def wanted(name: str) -> bool:
        # Names and histogram of the partition are small and always of use; its index lists are as long as the data.
        small = name.startswith("rounds/") or (name.startswith("partition/") and name.count("/") == 1)
        return only is None or small or any(name == o or name.startswith(o + "/") for o in only)

    def datasets(group: str) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}

        def visit(name: str, item: h5py.HLObject) -> None:
            full = f"{group}/{name}"
            if isinstance(item, h5py.Dataset) and wanted(full):
                is_text = h5py.check_string_dtype(item.dtype) is not None
                arrays[name] = np.asarray(item.asstr()[()] if is_text else item[()])
                units[full] = _text(_scalar(item.attrs.get("units", "")))

        if isinstance(file.get(group), h5py.Group):
            file[group].visititems(visit)
        return arrays

    names: list[str] = []
    file["clients"].visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    environment = file["environment"].attrs if "environment" in file else {}
    return Run(
        path=path,
        status=_text(_scalar(file.attrs.get("status", "unknown"))),
        config=config,
        environment={key: _scalar(value) for key, value in environment.items()},
        rounds=datasets("rounds"),
        clients=datasets("clients"),
        partition=datasets("partition"),
        final=datasets("final"),
        timings=datasets("timings"),
        units=units,
        client_datasets=sorted(names),
    )


def _check(run: Run) -> None:
    """What the tools rely on, so that a wrong file fails here with its reason and not later with a traceback."""
    for key in ("method", "seed"):
        if key not in run.config:
            raise RunFileError(run.path, f"/config has no attribute '{key}'")
    try:
        int(run.config["seed"])
    except ValueError:
        raise RunFileError(run.path, f"/config seed is '{run.config['seed']}', expected an integer") from None
    if "round" not in run.rounds:
        raise RunFileError(run.path, "has no dataset /rounds/round")
    if "client_names" not in run.partition:
        raise RunFileError(run.path, "has no dataset /partition/client_names")
    expected = (run.rounds["round"].size, run.partition["client_names"].size)
    if expected[0] == 0 or expected[1] == 0:
        raise RunFileError(run.path, f"holds {expected[0]} rounds of {expected[1]} clients")
    for name, values in run.clients.items():
        if values.shape != expected:
            raise RunFileError(run.path, f"/clients/{name} has shape {values.shape}, expected {expected}")
    lengths = {name: values.shape for name, values in run.final.items() if name.startswith("test/")}
    if len(set(lengths.values())) > 1:
        raise RunFileError(run.path, f"the datasets of /final/test differ in length: {lengths}")
