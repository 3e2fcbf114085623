"""Pictures hold the panels' own points, names as they are, and the same bytes each time."""

import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from treegrpo_cli.plots.figures import figure_of, write_pictures
from treegrpo_cli.plots.groups import Group
from treegrpo_cli.plots.history import History
from treegrpo_cli.plots.panels import Drawing, View, make_panels
from treegrpo_cli.plots.style import DPI

from tests.plots.written_runs import Line, scored, step, tree_steps

HOSTILE = "<b>&$x_1$ \x1b[31m\n_"


def drawing(*names: str, only: tuple[str, ...] = (), lines: list[Line] | None = None, **more: Any) -> Drawing:
    groups = [Group(name, [History(lines or scored(tree_steps(3)))]) for name in names]
    return make_panels(groups, View(), only, **more)


def drawn_lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """gid -> points, of the lines that are data."""
    found = [line for line in axes.get_lines() if line.get_gid()]
    return {str(line.get_gid()): (list(line.get_xdata()), list(line.get_ydata())) for line in found}  # type: ignore[arg-type]


def test_every_line_has_the_points_of_its_panel() -> None:
    made = drawing("a", "b")
    figure = figure_of(made, made.panels)
    assert len(figure.axes) == len(made.panels)
    for axes, panel in zip(figure.axes, made.panels, strict=True):
        expected = {f"line-{line.group}-{line.part}": (line.x.tolist(), line.y.tolist()) for line in panel.lines}
        assert drawn_lines(axes) == expected
        assert (axes.get_title(loc="left"), axes.get_xlabel()) == (panel.title, panel.x_label)


def test_a_band_is_the_interval_and_a_gap_stays_one() -> None:
    made = drawing("a", only=("score",))
    [axes] = figure_of(made, made.panels).axes
    corners = axes.collections[0].get_paths()[0].vertices
    assert (round(float(np.min(corners[:, 1])), 6), round(float(np.max(corners[:, 1])), 6)) == (0.0, 0.5)  # type: ignore[index]
    made = drawing("a", only=("entropy",), lines=[step(1, entropy=1.0), step(2, entropy=None), step(3, entropy=2.0)])
    [axes] = figure_of(made, made.panels).axes
    assert np.isnan(drawn_lines(axes)["line-0-0"][1]).tolist() == [False, True, False]


def test_bars_stand_end_to_end() -> None:
    made = drawing("a", only=("seconds",))
    [axes] = figure_of(made, made.panels).axes
    [bar] = made.panels[0].bars
    ends = np.cumsum([0.0, *bar.values])
    assert [patch.get_x() for patch in axes.patches] == pytest.approx(ends[:-1])  # type: ignore[attr-defined]
    assert axes.texts[0].get_text().strip() == f"{ends[-1]:.3g}"


def test_legends_cover_no_lines() -> None:
    made = drawing("a", "b")
    figure = figure_of(made, made.panels)
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is not None:
            assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 2
    [below] = figure.legends
    assert below.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes) + 1  # type: ignore[union-attr]


def test_a_folder_gets_each_panel_and_all_of_them_twice(tmp_path: Path) -> None:
    files = write_pictures(drawing("a", only=("score", "seconds")), tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        f"{name}.{ending}" for name in ("score", "seconds", "all") for ending in ("png", "svg")
    ]
    header = files[0].read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert header.startswith(b"\x89PNG")
    assert width == pytest.approx(3.4 * DPI, abs=1)
    assert 0.5 < height / width < 1


def test_the_same_runs_are_the_same_bytes(tmp_path: Path) -> None:
    once, again = (write_pictures(drawing("a", "b", only=("score",)), tmp_path / name) for name in ("x", "y"))
    assert [file.read_bytes() for file in once] == [file.read_bytes() for file in again]
    assert b"<dc:date>" not in once[1].read_bytes()


def test_names_are_text_that_stands_as_it_is(tmp_path: Path) -> None:
    lines = [step(1, **{HOSTILE: 1.0}), step(2, **{HOSTILE: 2.0})]
    made = drawing(HOSTILE, "_hidden", lines=lines, metrics=[HOSTILE])
    [file] = write_pictures(made, tmp_path / "x.svg")
    texts = ["".join(node.itertext()) for node in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]
    shown = "<b>&$x_1$ \\x1b[31m\\n_"
    assert texts.count(shown) == 2  # a title and a legend
    assert " _hidden" in texts or "_hidden" in texts
    assert not re.search(rb"<b>", file.read_bytes())


@pytest.mark.parametrize("num_runs", [1, 9])
def test_one_step_and_many_runs_are_drawn(num_runs: int, tmp_path: Path) -> None:
    made = drawing(*(f"a run with quite a long name {number}" for number in range(num_runs)), lines=tree_steps(1))
    figure = figure_of(made, made.panels)
    figure.draw_without_rendering()
    assert isinstance(figure, Figure)
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert min(box.width, box.height) > 60


def test_a_hundred_thousand_steps_are_a_small_file(tmp_path: Path) -> None:
    lines = [{"step": number, "step_time": 1.0, "reward": number % 7} for number in range(100_000)]
    [file] = write_pictures(drawing("a", lines=lines, only=("reward",)), tmp_path / "x.svg")
    assert file.stat().st_size < 100_000
