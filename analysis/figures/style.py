"""What all figures share: typography, one colour and marker per method, panels, legends, and saving.

Colours are those of Okabe and Ito (2008) and of Paul Tol's muted set, told apart under the common forms of colour
blindness; methods that share a hue differ in their marker, so a pair of both is unique to a method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from ..grouping import Row, Table, method_rank

COLUMN_WIDTH = 3.4  # inches: one column of a two-column page
PAGE_WIDTH = 7.0
TEXT = "#222222"
FAINT = "#8a8a8a"
CHANCE = 0.5

_STYLES: dict[str, tuple[str, str]] = {
    "local": ("#707070", "o"),
    "local-pdpo": ("#3c3c3c", "s"),
    "private-only": ("#9a9a9a", "D"),
    "centralized": ("#000000", "*"),
    "fedavg": ("#0072b2", "o"),
    "fedavg-ft": ("#56b4e9", "^"),
    "fedprox": ("#332288", "v"),
    "scaffold": ("#aa4499", "P"),
    "fedavgm": ("#882255", "<"),
    "fedadagrad": ("#882255", ">"),
    "fedyogi": ("#882255", "X"),
    "fedadam": ("#882255", "d"),
    "ffa-lora": ("#999933", "o"),
    "fedsa-lora": ("#999933", "^"),
    "rolora": ("#999933", "v"),
    "fedex-lora": ("#997700", "s"),
    "flora": ("#997700", "D"),
    "fedper": ("#009e73", "s"),
    "fedrep": ("#117733", "D"),
    "ditto": ("#e69f00", "^"),
    "apfl": ("#cc79a7", "v"),
    "feddpa": ("#44aa99", "P"),
    "fedpdpo": ("#d55e00", "o"),
}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
_OTHER_COLOURS = ("#6699cc", "#994455", "#ee99aa", "#004488", "#bbaa33")
_OTHER_MARKERS = ("h", "p", "8", "H", "d")


@dataclass
class Drawing:
    name: str  # of the files, without ending
    figure: Figure
    caption: str


def apply_style() -> None:
    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans",  # comes with Matplotlib, so figures are the same everywhere
            "font.size": 7.5,
            "axes.titlesize": 7.5,
            "axes.labelsize": 7.5,
            "xtick.labelsize": 6.5,
            "ytick.labelsize": 6.5,
            "legend.fontsize": 6.5,
            "axes.titlepad": 4.0,
            "axes.labelpad": 2.5,
            "axes.linewidth": 0.6,
            "axes.edgecolor": TEXT,
            "axes.labelcolor": TEXT,
            "text.color": TEXT,
            "xtick.color": TEXT,
            "ytick.color": TEXT,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e8e8e8",
            "grid.linewidth": 0.5,
            "lines.linewidth": 1.2,
            "lines.markersize": 3.0,
            "legend.frameon": False,
            "legend.handlelength": 1.9,
            "legend.columnspacing": 1.2,
            "legend.handletextpad": 0.5,
            "figure.dpi": 100,
            "savefig.dpi": 200,
            "svg.hashsalt": "fedpdpo",  # else element names are random
            "svg.fonttype": "path",
        }
    )


def method_style(method: str) -> tuple[str, str]:
    """Colour and marker, the same in every figure, also for methods that are not in the list."""
    if method in _STYLES:
        return _STYLES[method]
    code = crc32(method.encode())
    return _OTHER_COLOURS[code % len(_OTHER_COLOURS)], _OTHER_MARKERS[(code // 7) % len(_OTHER_MARKERS)]


@dataclass(frozen=True)
class LineStyle:
    color: str
    marker: str
    dashes: Any


def row_styles(tables: Sequence[Table]) -> dict[str, LineStyle]:
    """By row label: the method's colour and marker, and a dash pattern for each of its variants."""
    variants: dict[str, list[str]] = {}
    for table in tables:
        for row in table.rows:
            known = variants.setdefault(row.method, [])
            if row.label not in known:
                known.append(row.label)
    styles: dict[str, LineStyle] = {}
    for method, labels in variants.items():
        color, marker = method_style(method)
        for index, label in enumerate(labels):
            styles[label] = LineStyle(color, marker, _DASHES[index % len(_DASHES)])
    return styles


def rows_of(tables: Sequence[Table]) -> list[Row]:
    """One row a label, in the order of the tables."""
    seen: dict[str, Row] = {}
    for table in tables:
        for row in table.rows:
            seen.setdefault(row.label, row)
    return sorted(seen.values(), key=lambda row: method_rank(row.method))


def pretty(title: str, width: int = 200) -> str:
    """A table's title for print, broken at its commas into lines of at most about `width` characters."""
    lines: list[str] = []
    for part in title.replace("alpha = ", "α = ").split(", "):
        if lines and len(lines[-1]) + len(part) + 2 <= width:
            lines[-1] += ", " + part
        elif lines:
            lines[-1] += ","
            lines.append(part)
        else:
            lines.append(part)
    return "\n".join(lines)


def compact_clients(names: Sequence[str]) -> list[str]:
    """client-0, client-1, ... as 0, 1, ...: the axis already says client. Other names stay."""
    rest = [name.lower().removeprefix("client").lstrip("-_ ") for name in names]
    return rest if all(text.isdecimal() for text in rest) else list(names)


def axis_label(text: str) -> str:
    """Names of the file as words: kl_to_reference -> kl to reference."""
    return text.replace("_", " ")


def spacing(figure: Figure, **settings: Any) -> None:
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(**settings)


def panels(count: int, columns: int | None = None, height: float = 1.75) -> tuple[Figure, list[Axes]]:
    """A grid of panels that share their axes: one column wide for one panel, the page for more."""
    columns = columns or (count if count <= 4 else 3)
    columns = min(columns, count)
    rows = -(-count // columns)
    width = {1: COLUMN_WIDTH, 2: 0.72 * PAGE_WIDTH}.get(columns, PAGE_WIDTH)
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, rows * height), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    spacing(figure, w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.03)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    for axis in axes[max(0, count - columns) : count]:
        axis.tick_params(labelbottom=True)  # also above an empty place of the last line
    return figure, axes[:count]


def legend_below(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend under all panels, in as many columns as the width takes."""
    if not handles:
        return
    widest = max(len(str(handle.get_label())) for handle in handles)
    width, height = figure.get_size_inches()
    columns = int(max(1, min(len(handles), width // (0.4 + 0.05 * widest))))
    rows = -(-len(handles) // columns)
    columns = -(-len(handles) // rows)  # even lines rather than one long and one short
    figure.set_size_inches(width, height + 0.08 + 0.145 * rows)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, borderpad=0.1)


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]], size: float = 6.5) -> None:
    """Writes each label (x, y, text, colour) right of its line's end, moved apart so that none overlap.

    Call when limits and figure size are final.
    """
    if not ends:
        return
    low, high = axis.get_ylim()
    height = axis.get_window_extent().height * 72.0 / axis.figure.dpi
    gap = (high - low) / height * size * 1.22
    order = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _, _ in order:
        places.append(max(y, places[-1] + gap) if places else y)
    # The upward sweep pushes labels up only: move them back by half of what each run of touching labels was shifted.
    start = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] - places[i - 1] > gap * 1.001:
            shift = sum(places[j] - order[j][1] for j in range(start, i)) / (i - start)
            floor = places[start - 1] + gap if start else low
            shift = min(shift, places[start] - floor) if places[start] > floor else 0.0
            for j in range(start, i):
                places[j] -= shift
            start = i
    overflow = places[-1] + gap / 2 - high
    if overflow > 0:
        places = [place - overflow for place in places]
    right = max(x for x, _, _, _ in ends)
    for (x, y, text, color), place in zip(order, places):
        axis.annotate(
            text,
            xy=(right, y),
            xytext=(6, (place - y) / (high - low) * height),
            textcoords="offset points",
            color=color,
            fontsize=size,
            va="center",
            annotation_clip=False,
        ).set_in_layout(False)  # the caller has left room; layout would leave it a second time


def chance_line(axis: Axes, label: bool) -> None:
    axis.axhline(CHANCE, color=FAINT, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    if label:
        axis.annotate(
            "chance",
            xy=(1, CHANCE),
            xycoords=("axes fraction", "data"),
            xytext=(-1, 1.5),
            textcoords="offset points",
            color=FAINT,
            fontsize=5.5,
            ha="right",
            va="bottom",
        )


def save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
    figure.savefig(paths[0], metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return paths
