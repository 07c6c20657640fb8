"""Grid files: one small text file that stands for many runs.

    # comment
    config = intra_domain.cfg                      a config file of fedpdpo, beside the grid file
    out = runs/intra/{method}-a{alpha}-s{seed}.h5  the run file of a task; {option} is replaced by its value
    method = local fedavg fedpdpo                  an axis: values separated by blanks, "..." holds blanks together
    alpha = 0.1 1
    seed = 1 2 3
    rounds = 20                                    one value: the same in every task

    [method=fedpdpo]                               only in tasks where method is fedpdpo
    lr-private = 0.01
    [method=fedavg,fedprox alpha=0.1]              several values: any of them; several conditions: all of them
    lr-shared = 0.003

Keys are fedpdpo's long option names. The tasks are the Cartesian product of the axes, the last one varying fastest; a
later section wins over an earlier one. Paths other than `config` and `trials` are relative to where the sweep is
started. `trials = NAME.trials`, a file beside the grid file, says what tune.py may choose from (see trials.py).
"""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

REFUSED = {
    "overwrite": "a sweep skips what is done; its own --overwrite runs again what was made with other options",
    "help": "not an option of a run",
    "version": "not an option of a run",
}
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_PLACEHOLDER = re.compile(r"\{([a-z0-9-]+)\}")


class GridError(Exception):
    """A grid file that cannot be used; `str` gives one line with file, line and reason."""


@dataclass
class Task:
    """One run."""

    index: int
    values: dict[str, str]  # options by long name, without config and out
    out: Path
    config: Path | None = None
    several: frozenset[str] = frozenset({"data"})  # options whose value is a list of words
    point: dict[str, str] = field(default_factory=dict)  # the axes with several values
    trials: Path | None = None
    overwrite: bool = False  # replaces a run file

    def arguments(self) -> list[str]:
        """The options for `fedpdpo run`."""
        words = ["--config", str(self.config)] if self.config else []
        for key, value in self.values.items():
            words += [f"--{key}", *(value.split() if key in self.several else [value])]
        return [*words, "--out", str(self.out), *(["--overwrite"] if self.overwrite else [])]

    def options(self) -> dict[str, str]:
        """All options that a run of this task gets from the grid or its config file; the grid wins."""
        return {**(config_values(self.config) if self.config else {}), **self.values}

    def option(self, key: str) -> str | None:
        """The value that a run of this task gets for `key` from the grid or its config file, if any."""
        return self.options().get(key)


@dataclass
class Section:
    """Settings for the tasks that meet all conditions."""

    conditions: dict[str, list[str]]
    values: dict[str, str] = field(default_factory=dict)

    def matches(self, point: dict[str, str]) -> bool:
        return all(point[key] in allowed for key, allowed in self.conditions.items())


def read_grid(path: Path) -> list[Task]:
    """The tasks of a grid file."""
    axes, sections = _parse(path)
    config = axes.pop("config", [None])
    trials = axes.pop("trials", [None])
    out = axes.pop("out", [])
    for key, files in (("config", config), ("trials", trials)):
        if len(files) != 1:
            raise GridError(f"{path}: {key}: expected one file, found {len(files)}")
    if len(out) != 1:
        raise GridError(f"{path}: out: expected one name such as runs/{{method}}-s{{seed}}.h5, found {len(out)}")
    config_path = path.parent / config[0] if config[0] else None
    trials_path = path.parent / trials[0] if trials[0] else None
    for key, file in (("config", config_path), ("trials", trials_path)):
        if file and not file.is_file():
            raise GridError(f"{path}: {key}: {file}: no such file")
    _check_sections(path, axes, sections)

    tasks = []
    for index, choice in enumerate(itertools.product(*axes.values())):
        point = dict(zip(axes, choice))
        values = dict(point)
        for section in sections:
            if section.matches(point):
                values.update(section.values)
        names = {key: _as_name(key, value) for key, value in values.items()}
        values = {key: _fill(path, key, value, names) for key, value in values.items()}
        several = {key: value for key, value in point.items() if len(axes[key]) > 1}
        tasks.append(Task(index, values, Path(_fill(path, "out", out[0], names)), config_path, point=several,
                          trials=trials_path))
    _check_distinct(path, tasks, [key for key, words in axes.items() if len(words) > 1])
    return tasks


def config_values(path: Path) -> dict[str, str]:
    """All values in a config file of fedpdpo; those of a key that stands several times are put together."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GridError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = re.sub(r"(^|\s)#.*|^\s*;.*", "", line).partition("=")
        if equals:
            key, value = name.strip(), value.strip().strip('"')
            values[key] = f"{values[key]} {value}" if key in values else value
    return values


def check_inputs(path: Path, tasks: list[Task]) -> None:
    """Before anything is started: models and pair files of all tasks are there. Raises GridError."""
    kinds = {"model": ("folder", Path.is_dir), "data": ("file", Path.is_file)}
    missing: dict[str, str] = {}
    for task in tasks:
        options = task.options()
        for key, (kind, is_there) in kinds.items():
            value = options.get(key, "")
            for word in value.split() if key in task.several else filter(None, [value]):
                if word not in missing and not is_there(Path(word)):
                    missing[word] = f"{key}: {word}: no such {kind}"
    if missing:
        raise GridError(f"{path}: {'; '.join(missing.values())}")


def _parse(path: Path) -> tuple[dict[str, list[str]], list[Section]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GridError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    axes: dict[str, list[str]] = {}
    sections: list[Section] = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            if line.strip().startswith("["):
                sections.append(Section(_conditions(line.partition("#")[0].strip(), where)))
                continue
            if not line.strip() or line.strip().startswith(("#", ";")):
                continue
            key, equals, text = (part.strip() for part in line.partition("="))
            if not equals or not _KEY.fullmatch(key):
                raise GridError(f"{where}: expected 'key = value ...' or [key=value], found {line.strip()!r}")
            words = shlex.split(text, comments=True)
        except ValueError as error:
            raise GridError(f"{where}: {error}") from None
        if key in REFUSED:
            raise GridError(f"{where}: {key}: {REFUSED[key]}")
        if not words:
            raise GridError(f"{where}: {key}: expected a value, found nothing")
        target = sections[-1].values if sections else axes
        if key in target:
            raise GridError(f"{where}: {key}: given twice")
        if not sections:
            if len(set(words)) < len(words):
                raise GridError(f"{where}: {key}: a value stands twice")
            axes[key] = words
        elif key in ("config", "trials", "out"):
            raise GridError(f"{where}: {key}: cannot be set in a section")
        elif len(words) > 1:
            raise GridError(f"{where}: {key}: expected one value in a section (axes stand above all sections)")
        else:
            sections[-1].values[key] = words[0]
    return axes, sections


def _conditions(text: str, where: str) -> dict[str, list[str]]:
    conditions: dict[str, list[str]] = {}
    for word in text.strip("[]").split():
        key, equals, values = word.partition("=")
        if not equals or not key or not all(values.split(",")):
            raise GridError(f"{where}: expected [key=value key=value,value], found {text!r}")
        conditions[key] = values.split(",")
    if not conditions or not text.endswith("]"):
        raise GridError(f"{where}: expected [key=value], found {text!r}")
    return conditions


def _check_sections(path: Path, axes: dict[str, list[str]], sections: list[Section]) -> None:
    for section in sections:
        for key, allowed in section.conditions.items():
            if key not in axes:
                raise GridError(f"{path}: section on {key}: the grid has no such key")
            for value in allowed:
                if value not in axes[key]:
                    raise GridError(f"{path}: section {key}={value}: expected one of {' '.join(axes[key])}")
        for key in section.values:
            if len(axes.get(key, ())) > 1:
                raise GridError(f"{path}: {key}: is an axis and cannot be set in a section too")


def _as_name(key: str, value: str) -> str:
    """A value as part of a file name: of paths only the last part without its suffix."""
    return "+".join(Path(word).stem for word in value.split()) if key in ("data", "model") else value


def _fill(path: Path, key: str, text: str, names: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise GridError(f"{path}: {key}: {{{match[1]}}} is no key of the grid")
        return names[match[1]]

    return _PLACEHOLDER.sub(value, text)


def _check_distinct(path: Path, tasks: list[Task], axes: list[str]) -> None:
    seen: dict[Path, Task] = {}
    for task in tasks:
        other = seen.setdefault(task.out, task)
        if other is not task:
            keys = [key for key in axes if task.values[key] != other.values[key]]
            raise GridError(f"{path}: out: {task.out} would be written by several tasks; add " +
                            " or ".join(f"{{{key}}}" for key in keys))
