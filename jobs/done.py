"""Which tasks are done: a run file, or a checkpoint, stands for its task only if it records the task's options.

Compared is what the grid and its config file give; an option that neither gives has a default that only the program
knows. Options that say how a run is executed are free, as they are to a checkpoint, and so is `auto`, in whose place a
run file records what it came to. Run files are read with h5py, which is needed once there is one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from gridfile import GridError, Task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# As is_execution_option in src/fed/options.cpp, but for model and data.
FREE = frozenset((
    "out", "overwrite", "resume", "checkpoint-every", "checkpoint-dir", "threads", "reference-cache", "config",
    "reduce-route", "ranks-per-node", "aggregation", "resident",
))  # fmt: skip
PATHS = ("model", "data")
UNORDERED = ("eval-splits", "lora-targets")


@dataclass
class Survey:
    """The tasks of a grid by what their run files say."""

    done: list[Task] = field(default_factory=list)
    waiting: list[Task] = field(default_factory=list)  # to be run
    stale: list[tuple[Task, str]] = field(default_factory=list)  # their run files are other runs', and why


def survey(tasks: list[Task], overwrite: bool = False) -> Survey:
    """Looks at all run files. With `overwrite`, stale tasks wait, too, and are marked to replace their files."""
    result = Survey()
    for task in tasks:
        if not task.out.exists():
            result.waiting.append(task)
        elif (reason := difference(task)) is None:
            result.done.append(task)
        elif overwrite:
            result.waiting.append(replace(task, overwrite=True))
        else:
            result.stale.append((task, f"not this task's run: {reason}; --overwrite runs it again"))
    return result


def difference(task: Task) -> str | None:
    """What tells the existing run file of a task from the one that the task would write, None where nothing does.

    Raises GridError where h5py is missing.
    """
    try:
        from analysis.runfile import RunFileError, load_config
    except ModuleNotFoundError as error:
        raise GridError(f"{task.out}: comparing its options with the grid's needs {error.name}; "
                        ".venv/bin/python has it") from None
    try:
        return compare(task, load_config(task.out))
    except RunFileError as error:
        return error.reason


def compare(task: Task, recorded: dict[str, str]) -> str | None:
    """`option: expected X, found Y`, for every given option that was recorded with another value."""
    parts = []
    for key, value in sorted(task.options().items()):
        found = recorded.get(key)
        if key in FREE or value == "auto" or found is None:
            continue
        if normal(key, value) != normal(key, found):
            parts.append(f"{key}: expected {value}, found {found}")
    return "; ".join(parts) or None


def normal(key: str, value: str) -> str:
    """One spelling for equal values of an option."""
    if key in PATHS:
        return " ".join(os.path.normpath(word) for word in value.split())
    items = re.sub(r"\s*,\s*", ",", value.strip()).split(",")
    return ",".join(canonical_number(item) for item in (sorted(items) if key in UNORDERED else items))


def canonical_number(text: str) -> str:
    try:
        return f"{float(text):.12g}" if not text.isdecimal() else str(int(text))
    except ValueError:
        return text


def discard_other_checkpoints(task: Task) -> bool:
    """Removes the checkpoints beside a task's run file if they belong to a run with other options.

    The program refuses to go on from such, and a new run's would count as older than they are. Returns whether there
    were any.
    """
    folder = Path(task.option("checkpoint-dir") or task.out.with_suffix(".ckpt"))
    manifests = sorted(folder.glob("round-*/manifest.json"))
    if not manifests:
        return False
    try:
        facts = json.loads(manifests[-1].read_text(encoding="utf-8"))["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # the program knows what to do with a damaged checkpoint
    recorded = {key.removeprefix("option."): value for key, value in facts.items() if key.startswith("option.")}
    if compare(task, recorded) is None:
        return False
    for manifest in manifests:
        shutil.rmtree(manifest.parent)
    return True
