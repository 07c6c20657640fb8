"""Writes summaries as aligned text for a terminal, as Markdown, and as tidy CSV (one number a line)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from math import isfinite
from typing import TextIO

from .grouping import is_ignored, value_of
from .stats import BOOTSTRAP_SAMPLES, Comparison, Query
from .summarize import Cell, Summary

NO_VALUE = "-"


def number(value: float, metric: str) -> str:
    if not isfinite(value):
        return NO_VALUE
    return f"{value:.3f}" if metric.startswith("accuracy") else f"{value:.4g}"


def cell_text(cell: Cell, metric: str) -> str:
    if not isfinite(cell.sd):
        return number(cell.mean, metric)
    return f"{number(cell.mean, metric)} ± {number(cell.sd, metric)}"


def heading(query: Query) -> str:
    """What the numbers are, in one line."""
    where = {"last": "last evaluated round", "best-validation": "round of the best mean validation accuracy"}
    point = "" if query.split == "train" else f", {query.point} averaging"
    chosen = where.get(query.round, f"round {query.round}")
    return f"{query.split} {query.metric}{point}, {chosen}; mean over seeds ± sample standard deviation"


def summary_cells(summary: Summary) -> list[list[str]]:
    metric = summary.query.metric
    rows = [["method", "seeds", *summary.columns]]
    for line in summary.lines:
        cells = [cell_text(cell, metric) for cell in line.cells]
        # A client without test pairs in one seed has fewer values than the row has seeds: that must show.
        cells = [
            f"{text} (n={cell.seeds})" if 0 < cell.seeds < len(line.row.runs) else text
            for text, cell in zip(cells, line.cells)
        ]
        rows.append([line.row.label, str(len(line.row.runs)), *cells])
    return rows


def comparison_cells(summary: Summary) -> list[list[str]]:
    rows = [[f"against {summary.baseline}", "seeds", "pairs", "difference", "95% interval", "better", "worse", "p"]]
    for c in summary.comparisons or []:
        if c.problem:
            rows.append([c.label, *[NO_VALUE] * 7])
        else:
            interval = f"[{c.low:+.3f}, {c.high:+.3f}]"
            counts = [str(c.wins), str(c.losses), p_text(c)]
            rows.append([c.label, str(c.seeds), str(c.pairs), f"{c.difference:+.3f}", interval, *counts])
    return rows


def p_text(comparison: Comparison) -> str:
    return "<0.0001" if comparison.p_value < 1e-4 else f"{comparison.p_value:.4f}"


def comparison_notes(summary: Summary) -> list[str]:
    explained = (
        "difference of correctness on the test pairs of /final/test (final models), mean over clients and seeds; "
        f"interval: percentile bootstrap over test pairs ({BOOTSTRAP_SAMPLES} samples); better, worse: test pairs "
        "right in more or in fewer seeds; p: exact two-sided sign test of these (McNemar's for one seed)"
    )
    return [explained] + [f"{c.label} not compared: {c.problem}" for c in summary.comparisons or [] if c.problem]


def align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [escaped[0], rule, *escaped[1:]])


def write_text(summaries: Sequence[Summary], out: TextIO, markdown: bool = False) -> None:
    layout = markdown_table if markdown else align
    blocks = [heading(summaries[0].query) + ("." if markdown else "")]
    for summary in summaries:
        if summary.table.title:
            blocks.append(f"**{summary.table.title}**" if markdown else f"== {summary.table.title} ==")
        blocks.append(layout(summary_cells(summary)))
        if summary.notes:
            blocks.append(_notes(summary.notes, markdown))
        if summary.comparisons:
            blocks.append(layout(comparison_cells(summary)))
            blocks.append(_notes(comparison_notes(summary), markdown))
    out.write("\n\n".join(blocks) + "\n")


def _notes(notes: Sequence[str], markdown: bool) -> str:
    return "\n".join(("- " if markdown else "  ") + note for note in notes)


def write_csv(summaries: Sequence[Summary], out: TextIO) -> None:
    """One line a number. Every option that differs between rows has a column; comparisons fill low, high and p."""
    runs = [run for summary in summaries for run in summary.table.runs]
    options = [
        option
        for option in sorted({option for run in runs for option in run.config})
        if not is_ignored(option) and len({value_of(run, option) for run in runs}) > 1
    ]
    fixed = ["table", "row", "method", "metric", "split", "point", "round", "column", "mean", "sd", "seeds"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fixed, "low", "high", "p", *options])
    for summary in summaries:
        title = summary.table.title
        query = summary.query
        point = "" if query.split == "train" else query.point
        by_label = {line.row.label: line.row for line in summary.lines}
        for line in summary.lines:
            own = [value_of(line.row.runs[0], option) for option in options]
            start = [title, line.row.label, line.row.method, query.metric, query.split, point, query.round]
            for column, cell in zip(summary.columns, line.cells):
                writer.writerow([*start, column, _plain(cell.mean), _plain(cell.sd), cell.seeds, "", "", "", *own])
        for c in summary.comparisons or []:
            own = [value_of(by_label[c.label].runs[0], option) for option in options]
            start = [title, c.label, by_label[c.label].method, "correctness", "test", "", "final"]
            name = f"difference to {summary.baseline}"
            interval = [_plain(c.low), _plain(c.high), _plain(c.p_value)]
            writer.writerow([*start, name, _plain(c.difference), "", c.seeds, *interval, *own])


def _plain(value: float) -> str:
    return repr(float(value)) if isfinite(value) else ""
