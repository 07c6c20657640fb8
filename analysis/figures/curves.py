"""A metric by communication round: a line a method, a band of one standard deviation over seeds.

`by_setting` draws a panel a setting (alpha, number of clients, ...), `by_domain` a panel a domain, each as the mean
over the clients in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..grouping import Row, Table
from ..runfile import Run
from ..stats import Query, client_means, series
from .style import (
    COLUMN_WIDTH,
    Drawing,
    LineStyle,
    axis_label,
    chance_line,
    label_ends,
    legend_below,
    panels,
    pretty,
    row_styles,
    rows_of,
    spacing,
)

Reader = Callable[[Run], np.ndarray]  # run -> (R+1) values
MOST_DIRECT_LABELS = 9
LONGEST_DIRECT_LABEL = 16


def over_seeds(row: Row, read: Reader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds, mean and sample standard deviation over seeds (0 for one seed) where any seed has a value."""
    by_round: dict[int, list[float]] = {}
    for run in row.runs:
        for index, value in zip(run.rounds["round"], read(run)):
            if np.isfinite(value):
                by_round.setdefault(int(index), []).append(float(value))
    rounds = np.array(sorted(by_round))
    mean = np.array([np.mean(by_round[r]) for r in rounds])
    sd = np.array([np.std(by_round[r], ddof=1) if len(by_round[r]) > 1 else 0.0 for r in rounds])
    return rounds, mean, sd


def draw_row(axis: Axes, row: Row, read: Reader, style: LineStyle) -> tuple[float, float] | None:
    """Line and band; returns the line's end."""
    rounds, mean, sd = over_seeds(row, read)
    if rounds.size == 0:
        return None
    every = max(1, -(-rounds.size // 8))
    # Lines of one panel carry their markers at different rounds, so that close lines stay readable.
    start = sum(map(ord, row.method)) % every
    axis.fill_between(rounds, mean - sd, mean + sd, color=style.color, alpha=0.13, linewidth=0, zorder=2)
    axis.plot(
        rounds,
        mean,
        color=style.color,
        linestyle=style.dashes,
        marker=style.marker,
        markevery=(start, every),
        markeredgecolor="white",
        markeredgewidth=0.3,
        zorder=4 if row.method == "fedpdpo" else 3,
    )
    return float(rounds[-1]), float(mean[-1])


def handle(label: str, style: LineStyle) -> Line2D:
    return Line2D(
        [], [], color=style.color, linestyle=style.dashes, marker=style.marker, markeredgecolor="white",
        markeredgewidth=0.3, label=label,
    )  # fmt: skip


def y_label(query: Query) -> str:
    return f"{query.split} {axis_label(query.metric)}"


def _units(runs: Sequence[Run], query: Query) -> str:
    """The unit for the axis, unless it is a plain number."""
    units = next((u for run in runs if (u := run.units.get(f"clients/{query.dataset}"))), "")
    return "" if units in ("", "1", "none", "fraction", "ratio", "share", "dimensionless") else f" ({units})"


def finish(axes: Sequence[Axes], columns: int, label: str, is_accuracy: bool) -> None:
    for index, axis in enumerate(axes):
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.margins(x=0.02)
        if index % columns == 0:
            axis.set_ylabel(label)
        if index + columns >= len(axes):
            axis.set_xlabel("communication round")
        if is_accuracy:
            chance_line(axis, label=index == 0)


def columns_of(axes: Sequence[Axes]) -> int:
    spec = axes[0].get_subplotspec()
    assert spec is not None
    return spec.get_gridspec().ncols


def _band(tables: Sequence[Table]) -> str:
    most = max(len(row.runs) for table in tables for row in table.rows)
    return f" Bands: ± one sample standard deviation over up to {most} seeds." if most > 1 else " One seed each."


def by_setting(tables: Sequence[Table], query: Query) -> list[Drawing]:
    styles = row_styles(tables)
    rows = rows_of(tables)

    def read(run: Run) -> np.ndarray:
        return client_means(series(run, query))

    label = y_label(query) + _units([run for table in tables for run in table.runs], query)
    is_accuracy = query.metric.startswith("accuracy")
    short = max(len(row.label) for row in rows) <= LONGEST_DIRECT_LABEL
    direct = len(tables) == 1 and len(rows) <= MOST_DIRECT_LABELS and short
    if direct:
        figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 2.2), layout="constrained")
        axes = [axis]
    else:
        figure, axes = panels(len(tables), columns=_grid_columns(tables))
    ends: list[tuple[float, float, str, str]] = []
    for axis, table in zip(axes, tables):
        for row in table.rows:
            end = draw_row(axis, row, read, styles[row.label])
            if end is not None:
                ends.append((*end, row.label, styles[row.label].color))
        if table.title:
            axis.set_title(pretty(table.title, 34))
    finish(axes, columns_of(axes), label, is_accuracy)
    if direct:
        # Room for the longest label, then the places: they depend on the final size of the axes.
        longest = max(len(text) for _, _, text, _ in ends)
        spacing(figure, rect=(0, 0, 1 - (0.047 * longest + 0.1) / COLUMN_WIDTH, 1))
        figure.canvas.draw()
        label_ends(axes[0], ends)
    else:
        legend_below(figure, [handle(row.label, styles[row.label]) for row in rows])
    caption = f"{y_label(query).capitalize()} by communication round, mean over clients."
    return [Drawing(f"{query.metric}-by-round", figure, caption + _band(tables))]


def _grid_columns(tables: Sequence[Table]) -> int | None:
    """Two settings that differ make a full grid: the second one across, where all combinations are there."""
    keys = list(tables[0].settings)
    if len(keys) != 2 or len(tables) < 4:
        return None
    across = len({table.settings[keys[1]] for table in tables})
    down = len({table.settings[keys[0]] for table in tables})
    return across if across * down == len(tables) and across <= 4 else None


def by_domain(tables: Sequence[Table], query: Query) -> list[Drawing]:
    drawings = []
    for table in tables:
        domains = domain_members(table)
        if len(domains) < 2:
            continue
        styles = row_styles([table])
        figure, axes = panels(len(domains))
        for axis, (domain, members) in zip(axes, domains.items()):

            def read(run: Run, members: list[int] = members, clients: int = len(table.client_names)) -> np.ndarray:
                values = series(run, query)
                if values.shape[1] != clients:
                    return np.full(len(values), np.nan)  # pooled over all domains
                return client_means(values[:, members])

            for row in table.rows:
                draw_row(axis, row, read, styles[row.label])
            count = len(members)
            axis.set_title(domain if count == 1 else f"{domain} ({count} clients)")
        finish(axes, columns_of(axes), y_label(query) + _units(table.runs, query), query.metric.startswith("accuracy"))
        legend_below(figure, [handle(row.label, styles[row.label]) for row in rows_of([table])])
        caption = f"{y_label(query).capitalize()} by communication round, a panel a domain, mean over its clients."
        at = f" {pretty(table.title)}." if table.title else ""
        name = f"{query.metric}-by-round-domains-{table.title}"
        drawings.append(Drawing(name, figure, caption + at + _band([table])))
    return drawings


def domain_members(table: Table) -> dict[str, list[int]]:
    """Clients by domain name; empty where the runs do not say or do not agree."""
    full = [run for run in table.runs if len(run.client_names) == len(table.client_names)]
    if not full or any("client_domain" not in r.partition or "domain_names" not in r.partition for r in full):
        return {}
    of_client = full[0].partition["client_domain"]
    if any(not np.array_equal(of_client, run.partition["client_domain"]) for run in full):
        return {}
    names = [str(name) for name in full[0].partition["domain_names"]]
    members: dict[str, list[int]] = {}
    for client, domain in enumerate(of_client):
        members.setdefault(names[int(domain)], []).append(client)
    return members
