"""Bubble charts of how the pairs are spread: clients across, categories up, the area of a bubble is its training pairs.

A panel a partition; of the seeds of a setting the lowest is shown. Clients whose preferences are swapped, in whole or
in part, are set off by colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..grouping import Table
from ..runfile import Run
from .style import FAINT, PAGE_WIDTH, Drawing, compact_clients, pretty, spacing

TRAIN = 0
NARROWEST = 2.4  # inches
_KEPT = "#0072b2"
_FLIPPED = "#d55e00"


def draw(tables: Sequence[Table]) -> list[Drawing]:
    shown: list[tuple[Table, Run]] = []
    seen: set[tuple[bytes, ...]] = set()
    for table in tables:
        runs = [r for r in table.runs if len(r.client_names) == len(table.client_names)]
        runs = [r for r in runs if "label_histogram" in r.partition and "label_names" in r.partition]
        if not runs:
            continue
        run = min(runs, key=lambda r: r.seed)
        # Settings that leave the partition alone (rounds, model, ...) would repeat it.
        key = (run.partition["label_histogram"].tobytes(), _flipped(run).tobytes(), "|".join(run.client_names).encode())
        if key not in seen:
            seen.add(key)
            shown.append((table, run))
    if not shown:
        return []
    titles = _titles([table for table, _ in shown])
    # Panels that share categories stand side by side; others, or wide ones, are figures of their own.
    same = len({tuple(map(str, run.partition["label_names"])) for _, run in shown}) == 1
    widest = max(len(run.client_names) for _, run in shown)
    if same and len(shown) * widest <= 40 and len(shown) <= 4:
        return [_figure("partition", [run for _, run in shown], titles)]
    return [_figure(f"partition-{title}", [run], [title]) for (_, run), title in zip(shown, titles)]


def _titles(tables: Sequence[Table]) -> list[str]:
    """Only the settings in which the shown ones differ."""
    keys = [k for k in tables[0].settings if len({t.settings.get(k) for t in tables}) > 1]
    extra = [t.settings["client names"] for t in tables if "client names" in t.settings]
    titles = [", ".join(f"{k} = {t.settings[k]}" for k in keys if k in t.settings) for t in tables]
    return titles if not extra or len(set(titles)) == len(tables) else [t.title for t in tables]


def _flipped(run: Run) -> np.ndarray:
    return np.asarray(run.partition.get("flipped", np.zeros(len(run.client_names))), dtype=float)


def _figure(name: str, runs: Sequence[Run], titles: Sequence[str]) -> Drawing:
    labels = [str(label) for label in runs[0].partition["label_names"]]
    counts = [run.partition["label_histogram"][:, TRAIN, :] for run in runs]  # (C, L) each
    clients = [len(run.client_names) for run in runs]
    short = [compact_clients(run.client_names) for run in runs]
    longest = 0.055 * max(len(name) for names in short for name in names)
    left = 0.06 * max(map(len, labels)) + 0.25
    pitch = min(0.26, max(0.1, (PAGE_WIDTH - left) / (sum(clients) + len(runs))))
    row_pitch = min(0.2, max(0.13, 6.0 / len(labels)))
    width = min(PAGE_WIDTH, max(NARROWEST, left + pitch * (sum(clients) + len(runs))))
    inside = (width - left - 0.1 * len(runs)) / (sum(clients) + 0.6 * len(runs))
    rotated = longest > inside - 0.03
    height = row_pitch * (len(labels) + 1) + 0.6 + (longest if rotated else 0)
    figure, grid = plt.subplots(
        1, len(runs), figsize=(width, height), sharey=True, squeeze=False, layout="constrained",
        width_ratios=[count + 0.6 for count in clients],
    )  # fmt: skip
    spacing(figure, w_pad=0.03, h_pad=0.03)
    largest = max(int(count.max()) for count in counts)
    diameter = 0.92 * min(inside, row_pitch) * 72.0  # points, of the largest bubble
    any_flipped = False
    for axis, run, count, names, title in zip(grid.flat, runs, counts, short, titles):
        flipped = _flipped(run) > 0
        any_flipped |= bool(flipped.any())
        _bubbles(axis, count, flipped, largest, diameter)
        axis.set_xticks(range(len(names)), names, **({"rotation": 90} if rotated else {}))
        axis.set_xlabel("client")
        if title:
            axis.set_title(pretty(title, int(inside * (len(names) + 0.6) / 0.062)))
    grid[0, 0].set_yticks(range(len(labels)), labels)
    grid[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    _legend(figure, largest, diameter, any_flipped)
    caption = (
        f"Training pairs by client and category; area is proportional to the number of pairs (largest: {largest}). "
        f"Partition of seed {', '.join(sorted({str(run.seed) for run in runs}))}."
    )
    return Drawing(name, figure, caption + (" Orange: clients with swapped preferences." if any_flipped else ""))


def _bubbles(axis: Axes, count: np.ndarray, flipped: np.ndarray, largest: int, diameter: float) -> None:
    client, label = np.nonzero(count)
    area = count[client, label] / max(largest, 1) * diameter**2
    colors = [_FLIPPED if flipped[c] else _KEPT for c in client]
    axis.scatter(client, label, s=area, c=colors, alpha=0.85, linewidths=0)
    axis.set_xlim(-0.8, count.shape[0] - 0.2)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _legend(figure: plt.Figure, largest: int, diameter: float, any_flipped: bool) -> None:
    """Sizes to compare with, at round numbers of pairs."""
    sizes = sorted({_round_number(largest * share) for share in (0.05, 0.3, 1.0)} - {0})
    handles = [
        Line2D([], [], linestyle="", marker="o", markeredgewidth=0, color=FAINT,
               markersize=diameter * (size / largest) ** 0.5, label=f"{size}")
        for size in sizes
    ]  # fmt: skip
    handles[-1].set_label(f"{sizes[-1]} pairs")
    if any_flipped:
        handles += [
            Line2D([], [], linestyle="", marker="o", markeredgewidth=0, color=color, markersize=5, label=text)
            for color, text in ((_KEPT, "as given"), (_FLIPPED, "swapped"))
        ]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.25)
    length = max(1.0, diameter / 6.5)  # in units of the font size, so that no bubble reaches its text
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), handlelength=length, columnspacing=0.9,
        handletextpad=0.3, borderpad=0.1,
    )  # fmt: skip


def _round_number(value: float) -> int:
    """One significant digit, downwards."""
    if value < 1:
        return 0
    power = 10 ** int(np.log10(value))
    return int(value // power * power)
