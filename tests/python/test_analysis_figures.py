"""Tests of the analysis package's figures, on small synthetic run files: files, values drawn, layout, looks.

Skipped where matplotlib is missing.
"""

from __future__ import annotations

import itertools
import math
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_support import NAN, run_cli, tables_of, write_run
from conftest import ROOT

import analysis
from analysis import stats



@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def curve(clients: int, level: float) -> np.ndarray:
    rounds = np.arange(16)[:, None]
    return 0.5 + (level - 0.5) * (1 - np.exp(-rounds / 4.0)) * np.linspace(0.9, 1.1, clients)


def write_sweep(folder: Path, alphas: Sequence[str] = ("0.1", "10"), clients: int = 4, **more: Any) -> None:
    levels = {"local": 0.7, "fedavg": 0.8, "fedavg-ft": 0.802, "fedper": 0.805, "fedpdpo": 0.86}
    for (method, level), alpha, seed in itertools.product(levels.items(), alphas, (1, 2)):
        head = {"explicit": 0.6} if method == "fedpdpo" else {}
        accuracy = curve(clients, level + 0.01 * seed)
        write_run(folder / f"{method}-{alpha}-{seed}.h5", method, seed, accuracy, alpha=alpha, **head, **more)


def test_figures_are_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs")
    code, out, err = run_cli(capsys, "figures", tmp_path / "runs", "--out", tmp_path / "figures")
    assert (code, err) == (0, "")
    stems = ["accuracy-by-round", "accuracy-heatmap-alpha-0.1", "accuracy-heatmap-alpha-10", "partition"]
    names = {f"{stem}.{kind}" for stem in [*stems, "reward-accuracy-by-round"] for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names | {"captions.md"}
    assert {Path(line).name for line in out.splitlines()} == names | {"captions.md"}
    captions = (tmp_path / "figures/captions.md").read_text(encoding="utf-8")
    assert all(f"**{Path(name).stem}.**" in captions for name in names)


def test_domains_have_a_panel_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs", alphas=("0.3",), domains=("news", "law"))
    drawing = drawings_of(tmp_path / "runs")["accuracy-by-round-domains-"]
    assert [axis.get_title() for axis in drawing.axes] == ["news (2 clients)", "law (2 clients)"]
    line = drawing.axes[1].lines[0]  # local, mean over clients 1 and 3 and both seeds
    expected = np.mean([curve(4, 0.7 + 0.01 * seed)[:, [1, 3]] for seed in (1, 2)], axis=(0, 2))
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_figures_are_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs")
    contents = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "analysis", "figures", str(tmp_path / "runs"), "--out", str(tmp_path / name)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert all(b"<dc:date>" not in data for data in contents[0].values())


def test_png_is_at_200_dpi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path / "runs", alphas=("0.3",))
    run_cli(capsys, "figures", tmp_path / "runs", "--out", tmp_path)
    data = (tmp_path / "accuracy-by-round.png").read_bytes()
    width = struct.unpack(">I", data[16:20])[0]
    per_metre = struct.unpack(">I", data[data.index(b"pHYs") + 4 :][:4])[0]
    assert round(per_metre * 0.0254) == 200 and width == round(3.4 * 200)


def drawings_of(folder: Path) -> dict[str, Any]:
    """The figures before they are saved, by name, laid out."""
    import matplotlib.pyplot as plt

    from analysis.figures import curves, heatmap, partition, rewards, style

    plt.switch_backend("Agg")
    style.apply_style()
    tables = tables_of(*analysis.find_files([folder]).finished)
    query = stats.Query()
    drawings = [*curves.by_setting(tables, query), *curves.by_domain(tables, query), *heatmap.draw(tables, query)]
    drawings += [*partition.draw(tables), *rewards.draw(tables, query)]
    for drawing in drawings:
        drawing.figure.canvas.draw()
    return {drawing.name: drawing.figure for drawing in drawings}


@pytest.mark.parametrize(
    ("alphas", "clients", "more"),
    [
        (("0.3",), 4, {}),
        (("0.1", "0.3", "10"), 10, {}),
        (("0.3",), 3, {"names": ["helpfulness", "harmlessness", "summaries"], "domains": ("hh", "pku", "tldr")}),
        (("0.3",), 30, {}),
    ],
)
def test_no_text_is_clipped_or_overlaps(
    tmp_path: Path, alphas: tuple[str, ...], clients: int, more: dict[str, Any]
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.text import Text

    write_sweep(tmp_path, alphas, clients, **more)
    for name, figure in drawings_of(tmp_path).items():
        renderer = figure.canvas.get_renderer()
        hidden = {id(text) for axis in figure.axes if not axis.get_visible() for text in axis.findobj(Text)}
        for axis in figure.axes:
            # A tick outside the limits or without its label is not drawn, although its text exists.
            for ticked, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
                low, high = sorted(limits)
                for tick in [*ticked.get_major_ticks(), *ticked.get_minor_ticks()]:
                    off = not low - 1e-9 <= tick.get_loc() <= high + 1e-9
                    hidden |= {id(t) for t in (tick.label1, tick.label2) if off or not t.get_visible()}
        boxes = []
        for text in figure.findobj(Text):
            if text.get_text().strip() and text.get_visible() and id(text) not in hidden:
                boxes.append((text.get_text(), text.get_window_extent(renderer), text.get_rotation() % 90 != 0))
        width, height = figure.bbox.size
        assert len(boxes) > 5
        for label, box, _ in boxes:
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, f"{name}: '{label}' is clipped"
        straight = [(label, box) for label, box, slanted in boxes if not slanted]
        for (label, box), (other, other_box) in itertools.combinations(straight, 2):
            x = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            y = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert x <= 1 or y <= 1, f"{name}: '{label}' overlaps '{other}'"


def test_curves_show_mean_and_band_and_leave_out_unevaluated_rounds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from analysis.figures.curves import over_seeds

    accuracy = np.array([[0.5, 0.5], [NAN, NAN], [0.6, 0.8]])
    first = write_run(tmp_path / "1.h5", accuracy=accuracy)
    second = write_run(tmp_path / "2.h5", seed=2, accuracy=accuracy + 0.1)
    (table,) = tables_of(first, second)
    query = stats.Query()
    rounds, mean, sd = over_seeds(table.rows[0], lambda run: stats.client_means(stats.series(run, query)))
    assert rounds.tolist() == [0, 2]
    np.testing.assert_allclose(mean, [0.55, 0.75])
    np.testing.assert_allclose(sd, [math.sqrt(0.005)] * 2)


def test_heat_map_values_and_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "1.h5", accuracy=[[0.5, 0.5], [0.6, 0.9]])
    write_run(tmp_path / "2.h5", seed=2, accuracy=[[0.5, 0.5], [0.8, 0.9]])
    write_run(tmp_path / "3.h5", method="local", accuracy=[[0.5, 0.5], [0.25, 1.0]])
    figure = drawings_of(tmp_path)["accuracy-heatmap-"]
    main, mean, _ = figure.axes
    np.testing.assert_allclose(main.images[0].get_array(), [[0.25, 1.0], [0.7, 0.9]])
    np.testing.assert_allclose(mean.images[0].get_array(), [[0.625], [0.8]])
    assert [text.get_text() for text in main.texts] == [".25", "1.0", ".70", ".90"]


def test_bubble_areas_are_proportional_to_pairs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = write_run(tmp_path / "1.h5")
    histogram = analysis.load(path).partition["label_histogram"][:, 0, :]
    axis = drawings_of(tmp_path)["partition"].axes[0]
    (collection,) = axis.collections
    counts = [histogram[int(x), int(y)] for x, y in collection.get_offsets()]
    assert sum(counts) == histogram.sum()
    ratio = collection.get_sizes() / np.array(counts)
    np.testing.assert_allclose(ratio, ratio[0])
    # The largest is of the size of its place without touching its neighbours; areas are in square points.
    (x0, y0), (x1, y1) = axis.transData.transform([(0, 0), (1, 1)]) * 72 / axis.figure.dpi
    place = min(abs(x1 - x0), abs(y1 - y0))
    assert 0.4 * place < math.sqrt(collection.get_sizes().max()) <= place


def test_direct_labels_leave_the_width_to_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_sweep(tmp_path, alphas=("0.3",))
    (axis,) = drawings_of(tmp_path)["accuracy-by-round"].axes
    assert {text.get_text() for text in axis.texts} == {"local", "fedavg", "fedavg-ft", "fedper", "fedpdpo", "chance"}
    assert axis.get_position().width > 0.6


def test_a_reward_head_that_ties_everything_has_no_panel(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "1.h5", explicit=0.5)
    assert "reward-accuracy-by-round" not in drawings_of(tmp_path)
    write_run(tmp_path / "2.h5", method="fedpdpo", explicit=0.6)
    figure = drawings_of(tmp_path)["reward-accuracy-by-round"]
    assert [axis.get_title() for axis in figure.axes] == ["fedpdpo"]


def test_every_method_has_its_own_look() -> None:
    pytest.importorskip("matplotlib")
    from analysis.figures.style import method_style
    from analysis.grouping import METHOD_ORDER

    looks = [method_style(method) for method in METHOD_ORDER]
    assert len(set(looks)) == len(METHOD_ORDER) == 24
    common = ["local", "local-pdpo", "private-only", "fedavg", "fedavg-ft", "fedper", "fedpdpo"]
    assert len({method_style(method)[0] for method in common}) == len(common)
    assert method_style("mine") == method_style("mine") != method_style("yours-too")


def test_variants_of_a_method_share_its_colour(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from analysis.figures.style import method_style, row_styles

    tables = tables_of(*[write_run(tmp_path / f"{v}.h5", lr_shared=v) for v in (1, 2)])
    first, second = row_styles(tables).values()
    assert first.color == second.color == method_style("fedavg")[0]
    assert first.dashes != second.dashes
