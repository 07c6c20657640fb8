"""Heat maps of methods by clients: the mean over seeds in each cell, and the mean over clients apart on the right.

One figure a table, with one colour scale for all of them, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from ..grouping import Table
from ..stats import Query, client_values, mean_sd, nan_mean
from .curves import y_label
from .style import COLUMN_WIDTH, PAGE_WIDTH, TEXT, Drawing, compact_clients, pretty, spacing

MOST_NUMBERED = 32  # more clients than this leave no room for a number in a cell
_MAP = "YlGnBu"


def values_of(table: Table, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """(rows, C) mean over seeds, NaN for pooled runs, and (rows) mean over clients and seeds."""
    clients = len(table.client_names)
    cells = np.full((len(table.rows), clients), np.nan)
    means = np.full(len(table.rows), np.nan)
    for i, row in enumerate(table.rows):
        by_seed = [client_values(run, query) for run in row.runs]
        means[i] = mean_sd([nan_mean(values) for values in by_seed])[0]
        full = [values for values in by_seed if values.size == clients]
        if full:
            cells[i] = [mean_sd([values[c] for values in full])[0] for c in range(clients)]
    return cells, means


def draw(tables: Sequence[Table], query: Query) -> list[Drawing]:
    computed = [values_of(table, query) for table in tables]
    every = np.concatenate([np.concatenate([cells.ravel(), means]) for cells, means in computed])
    every = every[np.isfinite(every)]
    low, high = float(every.min()), float(every.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    return [_draw_table(table, query, cells, means, low, high) for table, (cells, means) in zip(tables, computed)]


def _draw_table(table: Table, query: Query, cells: np.ndarray, means: np.ndarray, low: float, high: float) -> Drawing:
    rows, clients = cells.shape
    labels = [row.label for row in table.rows]
    numbered = clients <= MOST_NUMBERED
    # Inches: cells wide enough for their number, labels, colour bar.
    cell = 0.36 if clients <= 12 else 0.29
    left = 0.061 * max(map(len, labels)) + 0.1
    wanted = left + cell * (clients + 1) + 0.75
    width = min(PAGE_WIDTH, max(COLUMN_WIDTH, wanted))
    cell = (width - left - 0.75) / (clients + 1)
    clients_shown = compact_clients(table.client_names)
    step = 1 if clients <= 40 else -(-clients // 20)
    slanted = max(map(len, clients_shown)) * 0.048 > step * cell - 0.02
    names = max(map(len, clients_shown)) * (0.045 if slanted else 0) + 0.2
    height = 0.21 * max(rows, 4) + names + 0.2 + (0.18 if table.title else 0)
    figure, (main, mean, bar) = plt.subplots(
        1, 3, figsize=(width, height), layout="constrained", width_ratios=[clients, max(1.0, 0.3 / cell), 0.09 / cell]
    )
    spacing(figure, w_pad=0.02, h_pad=0.03, wspace=0.0)
    image = _cells(main, cells, query, low, high, numbered)
    _cells(mean, means[:, None], query, low, high, True)
    main.set_yticks(range(rows), labels)
    mean.set_yticks([])
    shown = range(0, clients, step)
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    main.set_xticks(shown, [clients_shown[c] for c in shown], **turn)
    mean.set_xticks([0], ["mean"], fontweight="bold", **turn)
    if clients_shown != table.client_names:
        main.set_xlabel("client")
    if table.title:
        main.set_title(pretty(table.title, 60))
    figure.colorbar(image, cax=bar)
    bar.set_ylabel(y_label(query))
    bar.tick_params(length=2)
    bar.grid(False)
    for spine in bar.spines.values():
        spine.set_visible(False)
    seeds = max(len(row.runs) for row in table.rows)
    chosen = {"last": "last evaluated round", "best-validation": "round of the best mean validation accuracy"}
    when = chosen.get(query.round, f"round {query.round}")
    caption = f"{y_label(query).capitalize()} of each client ({when}), mean over up to {seeds} seeds."
    at = f" {pretty(table.title)}." if table.title else ""
    return Drawing(f"{query.metric}-heatmap-{table.title}", figure, caption + at)


def _cells(axis: Axes, values: np.ndarray, query: Query, low: float, high: float, numbered: bool) -> AxesImage:
    colors = plt.get_cmap(_MAP)
    image = axis.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto", interpolation="none")
    axis.set_facecolor("#f4f4f4")
    axis.grid(False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    # White lines between the cells; minor ticks would be drawn as ticks too.
    for x in range(1, values.shape[1]):
        axis.axvline(x - 0.5, color="white", linewidth=0.8)
    for y in range(1, values.shape[0]):
        axis.axhline(y - 0.5, color="white", linewidth=0.8)
    if numbered:
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                color = _readable_on(colors((value - low) / (high - low))[:3])
                size = 6 if values.shape[1] <= 24 else 5
                axis.text(x, y, _number(value, query), ha="center", va="center", fontsize=size, color=color)
    return image


def _readable_on(background: Sequence[float]) -> str:
    """White or dark text, whichever has the higher contrast (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    text = 0.016  # of the dark text
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / (text + 0.05) else TEXT


def _number(value: float, query: Query) -> str:
    if query.metric.startswith("accuracy"):
        return f"{value:.2f}".replace("0.", ".", 1) if value < 0.995 else f"{value:.1f}"
    return f"{value:.2g}"
