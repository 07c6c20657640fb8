"""The command line: `summarize` and `study` print tables, `figures` draws pictures.

Exit codes: 0 done; 2 bad usage, no usable file, or some file that is not a sound run file (each is named in one line on
the error stream, and the others are still shown).
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from .grouping import InputsDiffer, Table, canonical, group, value_of
from .runfile import Run, RunFileError, find_files, load
from .stats import Query, choose_round
from .study import NEEDED, QUERY, study, write_study
from .summarize import summarize
from .tables import write_csv, write_text

OK = 0
BAD_INPUT = 2


class UsageError(Exception):
    """Something that the user asked for and that cannot be had; one line."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except UsageError as error:
        return _complain(str(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has seen enough
        return OK


def _complain(line: str) -> int:
    print(f"analysis: {line}", file=sys.stderr)
    return BAD_INPUT


def _round(text: str) -> str:
    if text in ("last", "best-validation") or text.isdecimal():
        return text
    raise argparse.ArgumentTypeError(f"'{text}' is neither last, best-validation nor a number")


def _condition(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form OPTION=VALUE")
    return key.lstrip("-"), canonical(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Tables and figures from run files.")
    commands = parser.add_subparsers(required=True, metavar="summarize|study|figures")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("paths", nargs="+", type=Path, metavar="DIR|FILE", help="run files, or folders of them")
    common.add_argument("--metric", default="accuracy", help="accuracy, loss, margin, ...; an unknown one is answered "
                        "with those that there are (default: %(default)s)")  # fmt: skip
    common.add_argument("--split", default="test", choices=("test", "validation", "train"))
    common.add_argument("--point", default="after", choices=("after", "before"), help="after or before averaging")
    common.add_argument("--round", default="last", type=_round, metavar="last|best-validation|N", help="round shown")
    common.add_argument("--by", metavar="OPTION,...", help="options that make tables or panels; others label rows")
    common.add_argument(
        "--where", action="append", default=[], type=_condition, metavar="OPTION=VALUE[,VALUE]", help="only these runs"
    )
    common.add_argument("--partial", action="store_true", help="also read unfinished runs (*.h5.partial)")

    tables = commands.add_parser("summarize", parents=[common], help="tables of methods by clients")
    tables.add_argument("--baseline", metavar="METHOD", help="compare each row with this one, test pair by test pair")
    tables.add_argument("--csv", type=Path, metavar="FILE", help="also write every number to FILE")
    tables.add_argument("--markdown", action="store_true", help="print Markdown")
    tables.set_defaults(run=_summarize)

    whole = commands.add_parser("study", help="methods by settings, with comparisons and bags of words")
    whole.add_argument("paths", nargs="+", type=Path, metavar="DIR|FILE", help="run files, or folders of them")
    whole.add_argument("--against", default="fedpdpo,fedconcord", metavar="METHOD,...",
                       help="compare these with every row, test pair by test pair (default: %(default)s)")  # fmt: skip
    whole.add_argument("--bag-of-words", default=True, action=argparse.BooleanOptionalAction,
                       help="fit bags of words on the runs' partitions (needs the pair files)")  # fmt: skip
    whole.add_argument("--markdown", action="store_true", help="print Markdown")
    whole.add_argument("--partial", action="store_true", help="also read unfinished runs (*.h5.partial)")
    whole.set_defaults(run=_study, where=[])

    pictures = commands.add_parser("figures", parents=[common], help="figures as PNG and SVG")
    pictures.add_argument("--out", type=Path, required=True, metavar="FIGDIR", help="folder to write to")
    pictures.set_defaults(run=_figures)
    return parser


def _collect(
    arguments: argparse.Namespace, only: Sequence[str], check: Callable[[Run], object]
) -> tuple[list[Run], bool]:
    """The usable runs, and whether every file was sound. Says on the error stream what is left out and why."""
    files = find_files(arguments.paths)
    problems = [RunFileError(path, "no such file or folder") for path in files.missing]
    paths = files.finished + (files.partial if arguments.partial else [])
    if files.partial and not arguments.partial:
        names = ", ".join(str(path) for path in files.partial[:3]) + (" ..." if len(files.partial) > 3 else "")
        print(f"analysis: {len(files.partial)} unfinished left out (see --partial): {names}", file=sys.stderr)
    runs: list[Run] = []
    left_out = 0
    for path in paths:
        try:
            run = load(path, only)
            if not _matches(run, arguments.where):
                left_out += 1
                continue
            if not run.complete and not arguments.partial:
                print(f"analysis: {path}: unfinished (status {run.status}), left out", file=sys.stderr)
                continue
            check(run)
            runs.append(run)
        except RunFileError as error:
            problems.append(error)
    # One line a file; but a mistyped metric would repeat itself for every file of a sweep.
    counts = Counter(error.reason for error in problems)
    for reason in counts:
        same = [error for error in problems if error.reason == reason]
        shown = same if len(same) <= 5 else same[:1]
        more = f" (and {len(same) - 1} files more)" if len(shown) < len(same) else ""
        for problem in shown:
            _complain(f"{problem}{more}")
    if not runs and not problems:
        if left_out:
            raise UsageError(f"no run matches --where ({left_out} looked at)")
        raise UsageError(f"no finished run files in {', '.join(map(str, arguments.paths))}")
    return runs, not problems


def _matches(run: Run, conditions: Sequence[tuple[str, str]]) -> bool:
    return all(value_of(run, key) in {canonical(v) for v in [value, *value.split(",")]} for key, value in conditions)


def _query(arguments: argparse.Namespace) -> Query:
    return Query(arguments.metric, arguments.split, arguments.point, arguments.round)


def _by(arguments: argparse.Namespace) -> list[str] | None:
    return None if arguments.by is None else [key.strip().lstrip("-") for key in arguments.by.split(",") if key.strip()]


def _tables(runs: Sequence[Run], by: Sequence[str] | None) -> list[Table]:
    try:
        return group(runs, by)
    except ValueError as error:
        raise UsageError(f"--by: {error}") from None
    except InputsDiffer as error:
        raise UsageError(str(error)) from None


def _check_baseline(tables: Sequence[Table], baseline: str) -> None:
    rows = [row for table in tables for row in table.rows]
    known = dict.fromkeys(name for row in rows for name in (row.method, row.label))
    if baseline not in known:
        raise UsageError(f"--baseline: expected one of {', '.join(known)}, found {baseline}")


def _summarize(arguments: argparse.Namespace) -> int:
    query = _query(arguments)
    only = [*query.needed, *(["final/test"] if arguments.baseline else [])]
    runs, sound = _collect(arguments, only, lambda run: choose_round(run, query))
    if not runs:
        return BAD_INPUT
    tables = _tables(runs, _by(arguments))
    if arguments.baseline is not None:
        _check_baseline(tables, arguments.baseline)
    summaries = [summarize(table, query, arguments.baseline) for table in tables]
    _print_utf8()
    write_text(summaries, sys.stdout, arguments.markdown)
    if arguments.csv:
        try:
            with open(arguments.csv, "w", encoding="utf-8", newline="") as out:
                write_csv(summaries, out)
        except OSError as error:
            raise UsageError(f"{arguments.csv}: cannot be written ({error.strerror})") from None
    return OK if sound else BAD_INPUT


def _print_utf8() -> None:
    """Batch jobs often run in the C locale, which has no ±."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _study(arguments: argparse.Namespace) -> int:
    runs, sound = _collect(arguments, NEEDED, lambda run: choose_round(run, QUERY))
    if not runs:
        return BAD_INPUT
    references = [method.strip() for method in arguments.against.split(",") if method.strip()]
    result = study(_tables(runs, None), references, arguments.bag_of_words)
    _print_utf8()
    write_study(result, sys.stdout, arguments.markdown)
    return OK if sound else BAD_INPUT


def _figures(arguments: argparse.Namespace) -> int:
    from .figures import draw_all, needed  # Matplotlib takes a second to load, which tables need not wait for

    query = _query(arguments)
    runs, sound = _collect(arguments, needed(query), lambda run: choose_round(run, query))
    if not runs:
        return BAD_INPUT
    tables = _tables(runs, _by(arguments))
    try:
        written = draw_all(tables, query, arguments.out)
    except OSError as error:
        raise UsageError(f"{arguments.out}: cannot be written ({error.strerror})") from None
    for path in written:
        print(path)
    return OK if sound else BAD_INPUT
