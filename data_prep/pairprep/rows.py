"""Reads preference rows from JSONL, gzipped JSONL and Parquet files, with the place each row came from.

Kinds of file are told by their first bytes, not by their names. Rows stream: no file is held in memory.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH_ROWS = 1024
FORMATS = "JSONL (one JSON object a line, also gzipped) or Parquet"


class InputError(Exception):
    """Input or usage that cannot be worked with; its text is the one line that the user sees."""


class FieldError(Exception):
    """A row whose field is not as expected; the caller knows the file and the line and adds them."""

    def __init__(self, field: str, expected: str, found: str) -> None:
        super().__init__(f"field '{field}': expected {expected}, found {found}")


@dataclass(frozen=True, slots=True)
class Row:
    """One input row: `values` is the parsed object, or None where `problem` says why there is none."""

    file_index: int
    line: int  # 1-based line of a text file, 1-based row of a Parquet file
    values: dict[str, Any] | None
    problem: str = ""


def describe(value: Any) -> str:
    """A short account of a value for an error message: its kind, and its beginning where that helps."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" if value else "an empty text"
    if isinstance(value, (bool, int, float)):
        return f"{type(value).__name__} {value}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with the fields {', '.join(sorted(map(str, value))[:8])}"
    return type(value).__name__


def read_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Yields the rows of all files in order; blank lines of text files are passed over but counted as lines.

    Raises InputError where a file as a whole cannot be read; a bad line is a Row with a problem instead.
    """
    for file_index, path in enumerate(paths):
        try:
            with path.open("rb") as stream:
                magic = stream.read(4)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        if magic == PARQUET_MAGIC:
            yield from _read_parquet(path, file_index)
        else:
            yield from _read_jsonl(path, file_index, compressed=magic.startswith(GZIP_MAGIC))


def _read_jsonl(path: Path, file_index: int, compressed: bool) -> Iterator[Row]:
    try:
        is_first = True
        # Bytes, not text: only "\n" ends a line of JSONL, and bad UTF-8 then spoils one row and not the file.
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    if is_first and not raw.lstrip().startswith(b"{"):
                        yield Row(file_index, number, None, f"expected {FORMATS}, found {_kind(raw)}")
                    else:
                        yield _parse_line(raw, file_index, number)
                    is_first = False
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read to its end: {error}") from error


def _kind(raw: bytes) -> str:
    """What the first line of a file that is not JSONL looks like."""
    start = raw.strip()[:40].decode("utf-8", "replace")
    if start.startswith("["):
        return "a JSON array (write one object a line)"
    fields = raw.strip().split(b"\t" if b"\t" in raw else b",")
    return f"CSV, which begins {start!r}" if len(fields) > 1 else f"a file that begins {start!r}"


def _parse_line(raw: bytes, file_index: int, number: int) -> Row:
    try:
        values = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Row(file_index, number, None, f"expected UTF-8 text, found byte {raw[error.start]:#04x}")
    except (ValueError, RecursionError) as error:
        return Row(file_index, number, None, f"expected one JSON object a line, found broken JSON ({error})")
    if not isinstance(values, dict):
        return Row(file_index, number, None, f"expected one JSON object a line, found {describe(values)}")
    return Row(file_index, number, values)


def _read_parquet(path: Path, file_index: int) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield Row(file_index, number, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as Parquet: {reason}") from error
