"""Computes the summary tables: for every row a cell a client, the mean over clients, and how the worst fare.

Every column is first computed for each seed by itself and then averaged over seeds, so that the spread of "mean" and
"worst" is the spread of these very numbers and not of the clients that happen to be in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .grouping import Row, Table
from .runfile import Run, partition_digest
from .stats import Comparison, Query, choose_round, client_values, compare, mean_sd, nan_mean, tail_mean

MOST_CLIENT_COLUMNS = 12


@dataclass
class Cell:
    mean: float
    sd: float  # NaN for a single seed
    seeds: int


@dataclass
class Line:
    row: Row
    cells: list[Cell]  # one a column of the summary
    rounds: list[int]  # the round shown, by seed


@dataclass
class Summary:
    table: Table
    query: Query
    columns: list[str]
    lines: list[Line]
    baseline: str = ""
    comparisons: list[Comparison] | None = None
    notes: list[str] = field(default_factory=list)


def clients_correspond(runs: Sequence[Run]) -> bool:
    """Whether a client's name means the same in all runs: it holds the same pairs, or is the only one of its domain."""
    if len(runs) < 2:
        return True
    first = runs[0]

    def same(name: str) -> bool:
        return all(np.array_equal(run.partition.get(name, 0), first.partition.get(name, 0)) for run in runs)

    domains = first.partition.get("client_domain", np.zeros(len(first.client_names)))
    if len(set(domains.tolist())) == domains.size and same("client_domain") and same("flipped") and same("is_new"):
        return True
    return len({partition_digest(run.path) for run in runs}) == 1


def column_names(query: Query, client_names: Sequence[str], by_client: bool = True) -> list[str]:
    if len(client_names) > MOST_CLIENT_COLUMNS:
        return ["mean", "std over clients", "worst decile", "best decile"]
    if len(client_names) == 1:
        return [*client_names]
    return [*(client_names if by_client else ()), "mean", "worst client"]


def column_values(run: Run, query: Query, client_names: Sequence[str], by_client: bool = True) -> np.ndarray:
    """One seed's value of each column; NaN for clients that a pooled run does not tell apart."""
    values = client_values(run, query)
    mean, _, _ = mean_sd(values)
    low_is_bad = not query.lower_is_better
    pooled = values.size != len(client_names)
    if len(client_names) > MOST_CLIENT_COLUMNS:
        if pooled:
            return np.array([mean, np.nan, np.nan, np.nan])
        _, spread, _ = mean_sd(values)
        return np.array([mean, spread, tail_mean(values, 0.1, low_is_bad), tail_mean(values, 0.1, not low_is_bad)])
    if len(client_names) == 1:
        return values
    shown = values if by_client else []
    if pooled:
        return np.array([*[np.nan] * (len(client_names) if by_client else 0), mean, np.nan])
    return np.array([*shown, mean, tail_mean(values, 0.0, low_is_bad)])


def summarize(table: Table, query: Query, baseline: str | None = None) -> Summary:
    """`baseline`: a row's label or, where it has one row only, its method; left out, nothing is compared."""
    clients = len(table.client_names)
    full = [run for run in table.runs if len(run.client_names) == clients]
    by_client = clients > MOST_CLIENT_COLUMNS or clients == 1 or clients_correspond(full)
    columns = column_names(query, table.client_names, by_client)
    lines: list[Line] = []
    for row in table.rows:
        # (seeds, columns)
        by_seed = np.array([column_values(run, query, table.client_names, by_client) for run in row.runs])
        cells = [Cell(*mean_sd(by_seed[:, i])) for i in range(len(columns))]
        shown = [int(run.rounds["round"][choose_round(run, query)]) for run in row.runs]
        lines.append(Line(row, cells, shown))
    summary = Summary(table, query, columns, lines, notes=[*table.notes, *_round_notes(query, lines)])
    if not by_client:
        summary.notes.append("the runs' partitions differ: no columns by client, whose names stand for other clients "
                             "in each; --where seed=N shows one seed")  # fmt: skip
    pooled = [row.label for row in table.rows if any(len(run.client_names) < clients for run in row.runs)]
    if pooled:
        summary.notes.append(f"mean over the pooled data, not over clients: {', '.join(pooled)}")
    if baseline is not None:
        _add_comparisons(summary, baseline)
    return summary


def _round_notes(query: Query, lines: Sequence[Line]) -> list[str]:
    if query.round == "best-validation":
        listed = "; ".join(f"{line.row.label} {' '.join(map(str, line.rounds))}" for line in lines)
        return [f"chosen rounds, by seed: {listed}"]
    shown = {r for line in lines for r in line.rounds}
    if len(shown) < 2:
        return []
    usual = max(shown)
    listed = "; ".join(
        f"{line.row.label} {' '.join(map(str, line.rounds))}" for line in lines if set(line.rounds) != {usual}
    )
    return [f"not all runs were evaluated in round {usual}; their last evaluated rounds, by seed: {listed}"]


def _add_comparisons(summary: Summary, baseline: str) -> None:
    rows = summary.table.rows
    found = [row for row in rows if row.label == baseline] or [row for row in rows if row.method == baseline]
    if len(found) != 1:
        if not found:
            summary.notes.append(f"no comparison: no row of this table is '{baseline}'")
        else:
            labels = ", ".join(f"'{row.label}'" for row in found)
            summary.notes.append(f"no comparison: several rows are '{baseline}', name one: {labels}")
        return
    summary.baseline = found[0].label
    summary.comparisons = [compare(row, found[0]) for row in rows if row is not found[0]]


def overall(run: Run, query: Query) -> float:
    """The mean over clients in the chosen round, the number that most tables lead with."""
    return nan_mean(client_values(run, query))
