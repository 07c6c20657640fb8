"""Tables of a study: methods x settings, how the worst clients fare, what travels, and paired comparisons.

Numbers are of the last evaluated round after the exchange, on test pairs: every column first for each seed by itself
(mean, worst tenth and standard deviation over clients), then mean over seeds ± sample standard deviation over seeds.
Two bag-of-words classifiers on the same partitions stand below the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TextIO

import numpy as np

from .bag_of_words import PENALTIES, bag_of_words
from .grouping import Row, Table, is_method_option, method_rank
from .runfile import Run, RunFileError, load
from .stats import BOOTSTRAP_SAMPLES, Query, choose_round, client_values, compare, mean_sd, nan_mean, tail_mean
from .tables import NO_VALUE, align, markdown_table

QUERY = Query()
RATES = ("lr-shared", "lr-private", "server-lr")
NEEDED = [*QUERY.needed, "clients/train/bytes_up", "final/test"]
BAG_NAMES = {"local": "bag of words, local", "pooled": "bag of words, pooled"}


@dataclass
class Line:
    """A method, or a bag of words, in one setting: values by seed."""

    accuracy: list[float]
    worst: list[float]
    spread: list[float]
    bytes_up: list[float] = field(default_factory=list)
    row: Row | None = None


@dataclass
class Setting:
    title: str
    table: Table
    lines: dict[str, Line]


@dataclass
class Study:
    settings: list[Setting]
    names: list[str]  # rows, in order
    references: list[str]
    notes: list[str]


def study(tables: Sequence[Table], references: Sequence[str], bags: bool) -> Study:
    """`references`: methods whose difference to every other one is shown; `bags`: fit the bags of words too."""
    notes: list[str] = []
    settings = [Setting(title_of(table), table, {row.label: _line(row) for row in table.rows}) for table in tables]
    rows = {row.label: method_rank(row.method) for table in tables for row in table.rows}
    names = sorted(rows, key=lambda label: (rows[label], label))
    notes += _missing(settings, names)
    for setting in settings:
        notes += [f"{setting.title}: {note}" for note in setting.table.notes if _worth_saying(note)]
        if bags:
            notes += _add_bags(setting)
    names += [name for name in BAG_NAMES.values() if any(name in setting.lines for setting in settings)]
    return Study(settings, names, list(references), notes)


def _worth_saying(note: str) -> bool:
    """Of the options in which methods differ by their nature or by choice, only the rates."""
    option = note.partition(":")[0]
    return not is_method_option(option) or option in RATES


def title_of(table: Table) -> str:
    """The settings without those that have no effect: alpha where nothing is skewed, a share of 0 flipped clients."""
    first = table.rows[0].runs[0].config
    shown = dict(table.settings)
    if first.get("partition", "dirichlet") != "dirichlet":
        shown.pop("alpha", None)
    if float(first.get("flip-clients", "0")) == 0:
        shown.pop("flip-clients", None)
    parts = [shown.pop("partition")] if "partition" in shown else []
    return ", ".join([*parts, *(f"{key} {value}" for key, value in shown.items())]) or "all runs"


def _line(row: Row) -> Line:
    line = Line([], [], [], [], row)
    for run in row.runs:
        values = client_values(run, QUERY)
        line.accuracy.append(nan_mean(values))
        line.worst.append(_recorded(run, "accuracy_worst_decile", tail_mean(values, 0.1, True)))
        line.spread.append(_recorded(run, "accuracy_spread", mean_sd(values)[1]))
        line.bytes_up.append(nan_mean(run.clients["train/bytes_up"][1:].astype(float))
                             if "train/bytes_up" in run.clients else float("nan"))
    return line


def _recorded(run: Run, name: str, computed: float) -> float:
    """A number over clients as the run recorded it, else as computed here."""
    recorded = run.rounds.get(f"test/after/{name}")
    value = float("nan") if recorded is None else float(recorded[choose_round(run, QUERY)])
    return value if isfinite(value) else computed


def _add_bags(setting: Setting) -> list[str]:
    """Fits on the partition of one run of each seed; what could not be done is the answer."""
    runs = {run.seed: run for run in setting.table.runs}
    lines = {name: Line([], [], []) for name in BAG_NAMES}
    try:
        for seed in sorted(runs):
            fitted = bag_of_words(load(runs[seed].path, ["partition"]))
            for name, line in lines.items():
                values = fitted[name].accuracy
                line.accuracy.append(nan_mean(values))
                line.worst.append(tail_mean(values, 0.1, True))
                line.spread.append(mean_sd(values)[1])
    except RunFileError as error:
        return [f"{setting.title}: no bag of words: {error}"]
    setting.lines.update({BAG_NAMES[name]: line for name, line in lines.items()})
    return []


def _missing(settings: Sequence[Setting], names: Sequence[str]) -> list[str]:
    """Methods without a run, and seeds that other rows have, by setting."""
    seeds = {run.seed for setting in settings for run in setting.table.runs}
    notes = []
    for setting in settings:
        methods = {row.method for row in setting.table.rows}
        labels = {row.label: row for row in setting.table.rows}
        absent = [name for name in names if name not in labels and name.split()[0] not in methods]
        if absent:
            notes.append(f"{setting.title}: missing: {', '.join(absent)}")
        for label, row in labels.items():
            left = seeds - {run.seed for run in row.runs}
            if left:
                notes.append(f"{setting.title}: {label}: missing seed {', '.join(map(str, sorted(left)))}")
    return notes


def overview_cells(result: Study) -> list[list[str]]:
    """Rows x settings: accuracy; and what a client sends in a round, the same in every setting or as a range."""
    rows = [["method", *(setting.title for setting in result.settings), "kB up"]]
    most = max((len(line.accuracy) for s in result.settings for line in s.lines.values()), default=0)
    for name in result.names:
        lines = [setting.lines.get(name) for setting in result.settings]
        accuracy = [spread_text(line.accuracy, most) if line else NO_VALUE for line in lines]
        rows.append([name, *accuracy, _kilobytes([b for line in lines if line for b in line.bytes_up])])
    return rows


def setting_cells(setting: Setting, names: Sequence[str], references: Sequence[str]) -> list[list[str]]:
    """One setting: accuracy, worst tenth, spread, and each reference's difference to the row."""
    known = [r for r in references if sum(row.method == r for row in setting.table.rows) == 1]
    rows = [["method", "accuracy", "worst decile", "spread", *(f"{r} minus it" for r in known)]]
    most = max((len(line.accuracy) for line in setting.lines.values()), default=0)
    for name in (name for name in names if name in setting.lines):
        line = setting.lines[name]
        numbers = [spread_text(values, most) for values in (line.accuracy, line.worst, line.spread)]
        rows.append([name, *numbers, *(_difference(setting, reference, line.row) for reference in known)])
    return rows


def _difference(setting: Setting, reference: str, row: Row | None) -> str:
    base = next(r for r in setting.table.rows if r.method == reference)
    if row is None or row is base:
        return NO_VALUE
    result = compare(base, row)
    return NO_VALUE if result.problem else f"{result.difference:+.3f} [{result.low:+.3f}, {result.high:+.3f}]"


def spread_text(values: Sequence[float], usual: int) -> str:
    """0.812 ± 0.004, with the number of seeds where it is not the usual one."""
    mean, sd, count = mean_sd(np.asarray(values))
    if count == 0:
        return NO_VALUE
    text = f"{mean:.3f} ± {sd:.3f}" if isfinite(sd) else f"{mean:.3f}"
    return text if count == usual else f"{text} (n={count})"


def _kilobytes(values: Sequence[float]) -> str:
    finite = [value / 1000 for value in values if isfinite(value)]
    if not finite:
        return NO_VALUE
    low, high = f"{min(finite):.1f}", f"{max(finite):.1f}"
    return low if low == high else f"{low} to {high}"


def write_study(result: Study, out: TextIO, markdown: bool) -> None:
    layout: Callable[[Sequence[Sequence[str]]], str] = markdown_table if markdown else align
    blocks = [
        "Test accuracy after the exchange of the last evaluated round: mean over clients and seeds ± standard "
        "deviation over seeds; kB up: what a client sends in a round.",
        layout(overview_cells(result)),
    ]
    for setting in result.settings:
        blocks.append(f"**{setting.title}**" if markdown else f"== {setting.title} ==")
        blocks.append(layout(setting_cells(setting, result.names, result.references)))
    notes = [
        "worst decile: mean of the lowest tenth of the clients; spread: standard deviation over clients; minus it: "
        "difference of the final models' accuracy with its 95 % interval, paired by seed and test pair (percentile "
        f"bootstrap over test pairs, {BOOTSTRAP_SAMPLES} samples)",
        *result.notes,
    ]
    if any(name in setting.lines for setting in result.settings for name in BAG_NAMES.values()):
        notes.insert(1, "bag of words: logistic regression on token counts, on all train pairs of the partition, its "
                     f"penalty chosen by validation from {', '.join(f'{p:g}' for p in PENALTIES)}")
    blocks.append("\n".join(("- " if markdown else "  ") + note for note in notes))
    out.write("\n\n".join(blocks) + "\n")
