"""Draws every figure that a set of tables supports, each as PNG (200 dpi) and SVG, and writes their captions.

Equal input gives equal files, byte for byte, with one version of Matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import matplotlib

from ..grouping import Table
from ..stats import Query
from . import curves, heatmap, partition, rewards
from .style import Drawing, apply_style, save

__all__ = ["draw_all", "needed"]


def needed(query: Query) -> list[str]:
    """Paths in a run file that the figures read."""
    rewards_read = [f"clients/{q.dataset}" for q in rewards.queries(query)]
    return [*query.needed, *rewards_read]


def draw_all(tables: Sequence[Table], query: Query, folder: Path) -> list[Path]:
    """Draws into `folder`, made where missing, and returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    captions: dict[str, str] = {}
    with matplotlib.rc_context():
        matplotlib.use("Agg")  # no display is needed, nor looked for
        apply_style()
        drawings: list[Drawing] = [
            *curves.by_setting(tables, query),
            *curves.by_domain(tables, query),
            *heatmap.draw(tables, query),
            *partition.draw(tables),
            *rewards.draw(tables, query),
        ]
        for drawing in drawings:
            name = _slug(drawing.name)
            while name in captions:
                name += "-b"  # titles that differ in punctuation only
            written += save(drawing.figure, folder / name)
            captions[name] = drawing.caption
    path = folder / "captions.md"
    path.write_text("".join(f"**{name}.** {caption}\n\n" for name, caption in captions.items()), encoding="utf-8")
    return [*written, path]


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return slug if len(slug) <= 120 else f"{slug[:110]}-{crc32(slug.encode()):08x}"
