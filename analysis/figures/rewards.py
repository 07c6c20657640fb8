"""Accuracy of the implicit and of the explicit reward alone beside that of their sum, by communication round.

A panel for every row that has an explicit reward; the method's colour, and the line's kind for the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from ..grouping import Row, Table, method_rank
from ..runfile import Run
from ..stats import Query, client_means, series
from .curves import columns_of, finish, over_seeds
from .style import CHANCE, TEXT, Drawing, legend_below, method_style, panels, pretty

_KINDS: tuple[tuple[str, str, Any, float], ...] = (
    ("accuracy", "both", "-", 1.3),
    ("accuracy_implicit", "implicit reward", (0, (4, 1.5)), 1.0),
    ("accuracy_explicit", "explicit reward", (0, (1.2, 1.2)), 1.2),
)


def queries(query: Query) -> list[Query]:
    if query.split == "train":
        query = replace(query, split="test")  # rewards are recorded at evaluations only
    return [replace(query, metric=metric) for metric, _, _, _ in _KINDS]


def has_explicit(row: Row, query: Query) -> bool:
    """Whether any run's explicit reward ever decides anything: a missing or untrained head ties every pair."""
    for run in row.runs:
        if all(q.dataset in run.clients for q in queries(query)):
            values = series(run, queries(query)[-1])
            if np.any(np.abs(values[np.isfinite(values)] - CHANCE) > 1e-12):
                return True
    return False


def draw(tables: Sequence[Table], query: Query) -> list[Drawing]:
    shown = [(table, row) for table in tables for row in table.rows if has_explicit(row, query)]
    if not shown:
        return []
    # A line of panels a method, a column a setting, where every method has every setting.
    shown.sort(key=lambda pair: (method_rank(pair[1].method), pair[1].label))
    labels = {row.label for _, row in shown}
    complete = len(shown) == len(labels) * len(tables) and 2 <= len(tables) <= 4
    figure, axes = panels(len(shown), columns=len(tables) if complete else None)
    for axis, (table, row) in zip(axes, shown):
        color, _ = method_style(row.method)
        for wanted, (_, _, dashes, width) in zip(queries(query), _KINDS):

            def read(run: Run, wanted: Query = wanted) -> np.ndarray:
                missing = np.full(run.rounds["round"].size, np.nan)
                return client_means(series(run, wanted)) if wanted.dataset in run.clients else missing

            rounds, mean, sd = over_seeds(row, read)
            axis.fill_between(rounds, mean - sd, mean + sd, color=color, alpha=0.12, linewidth=0)
            axis.plot(rounds, mean, color=color, linestyle=dashes, linewidth=width)
        texts = [text for text in (row.label, pretty(table.title, 34)) if text]
        axis.set_title((", " if sum(map(len, texts)) <= 32 else "\n").join(texts))
    split = queries(query)[0].split
    finish(axes, columns_of(axes), f"{split} accuracy", True)
    legend_below(
        figure,
        [Line2D([], [], color=TEXT, linestyle=dashes, linewidth=w, label=label) for _, label, dashes, w in _KINDS],
    )
    caption = (
        f"{split.capitalize()} accuracy of both rewards together and of each alone by communication round, mean over "
        "clients; bands: ± one sample standard deviation over seeds."
    )
    return [Drawing("reward-accuracy-by-round", figure, caption)]
