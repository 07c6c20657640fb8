"""Trial files: the settings that each method may choose from, the same number for every method.

    # comment
    [local fedavg]                     methods
    lr-shared = 0.001 0.003 0.01       three trials, one a column
    [fedpdpo]
    lr-shared  = 0.003 0.01  0.003
    lr-private = 0.01  0.001 0.003

Keys are fedpdpo's long option names; the n-th values of all keys of a section together make trial n.
"""

from __future__ import annotations

import re
from pathlib import Path

from gridfile import REFUSED, GridError

_KEY = re.compile(r"[a-z][a-z0-9-]*")
_NOT_TRIED = {**REFUSED, **dict.fromkeys(("method", "seed", "config", "trials", "out"), "stands in the grid file")}


def read_trials(path: Path) -> dict[str, list[dict[str, str]]]:
    """By method its trials, each a setting of options. Raises GridError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise GridError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    sections: list[tuple[list[str], dict[str, list[str]]]] = []
    seen: set[str] = set()
    number_of_trials = 0
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        if line.startswith("["):
            methods = line.strip("[]").split()
            if not methods or not line.endswith("]"):
                raise GridError(f"{where}: expected [method method], found {line!r}")
            for method in methods:
                if method in seen:
                    raise GridError(f"{where}: {method}: stands twice")
                seen.add(method)
            sections.append((methods, {}))
            continue
        key, equals, text = (part.strip() for part in line.partition("="))
        if not equals or not _KEY.fullmatch(key):
            raise GridError(f"{where}: expected 'key = value ...' or [method], found {line!r}")
        if not sections:
            raise GridError(f"{where}: {key}: expected a [method] above it, found none")
        if key in _NOT_TRIED:
            raise GridError(f"{where}: {key}: {_NOT_TRIED[key]}")
        if key in sections[-1][1]:
            raise GridError(f"{where}: {key}: given twice")
        values = text.split()
        number_of_trials = number_of_trials or len(values)
        if not values or len(values) != number_of_trials:
            expected = f"{number_of_trials} values as above" if number_of_trials else "a value"
            raise GridError(f"{where}: {key}: expected {expected}, found {len(values)}")
        sections[-1][1][key] = values
    for methods, keys in sections:
        if not keys:
            raise GridError(f"{path}: [{' '.join(methods)}]: expected a key, found none")
    return {
        method: [{key: values[t] for key, values in keys.items()} for t in range(number_of_trials)]
        for methods, keys in sections
        for method in methods
    }
