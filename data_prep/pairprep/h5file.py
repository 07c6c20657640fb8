"""Writes pairs.h5, the training program's input: ragged token ids, categories, splits, and where all came from.

The file appears under its name only when whole (temporary name, fsync, rename), and the same pairs give the
same bytes.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT = "fedpdpo-pairs"
VERSION = 1


@dataclass
class Ragged:
    """Token lists of varying length, end to end; lengths has one entry a list."""

    tokens: array = field(default_factory=lambda: array("I"))
    lengths: array = field(default_factory=lambda: array("I"))

    def append(self, ids: list[int]) -> None:
        self.tokens.extend(ids)
        self.lengths.append(len(ids))

    def select(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens uint32 (total), offsets uint64 (n+1)) of the given rows, in their order."""
        lengths = np.frombuffer(self.lengths, dtype=np.uint32) if self.lengths else np.zeros(0, np.uint32)
        tokens = np.frombuffer(self.tokens, dtype=np.uint32) if self.tokens else np.zeros(0, np.uint32)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.uint64)]).astype(np.int64)
        counts = lengths[rows].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        # Position of every chosen token: the start of its list plus its place in it.
        index = np.repeat(starts[:-1][rows] - offsets[:-1].astype(np.int64), counts) + np.arange(int(offsets[-1]))
        return tokens[index], offsets


@dataclass
class PairFile:
    """Everything that pairs.h5 holds. tokens maps prompt, chosen and rejected to (tokens, offsets)."""

    attributes: dict[str, str | int]
    tokens: dict[str, tuple[np.ndarray, np.ndarray]]
    label: np.ndarray
    label_names: list[str]
    split: np.ndarray
    source_line: np.ndarray
    source_file: np.ndarray


def write_pairs(path: Path, content: PairFile) -> None:
    """Writes the file and renames it into place; an existing file of that name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            _fill(file, content)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _fill(file: h5py.File, content: PairFile) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["version"] = np.int64(VERSION)
    for name, value in content.attributes.items():
        file.attrs[name] = np.int64(value) if isinstance(value, int) else value
    for part, (tokens, offsets) in content.tokens.items():
        group = file.create_group(part)
        _dataset(group, "tokens", tokens, np.uint32, "token id", f"{part} token ids of all pairs, end to end")
        _dataset(group, "offsets", offsets, np.uint64, "tokens",
                 f"pair i's {part} is tokens[offsets[i] : offsets[i + 1]]")
    _dataset(file, "label", content.label, np.int32, "index", "category of each pair, an index into label_names")
    names = file.create_dataset("label_names", data=content.label_names, dtype=h5py.string_dtype("utf-8"),
                                track_times=False)
    _describe(names, "name", "names of the categories")
    _dataset(file, "split", content.split, np.uint8, "code", "0 train, 1 validation, 2 test")
    _dataset(file, "source_line", content.source_line, np.uint64, "line",
             "1-based line (Parquet: row) of the input file that the pair came from")
    _dataset(file, "source_file", content.source_file, np.uint32, "index",
             "input file of each pair, an index into the list 'files' of the report attribute")


def _dataset(parent: h5py.Group, name: str, data: np.ndarray, dtype: Any, units: str, description: str) -> None:
    dataset = parent.create_dataset(name, data=np.asarray(data, dtype=dtype), track_times=False)
    _describe(dataset, units, description)


def _describe(dataset: h5py.Dataset, units: str, description: str) -> None:
    dataset.attrs["units"] = units
    dataset.attrs["description"] = description
