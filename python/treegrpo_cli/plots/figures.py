"""Panels -> pictures: one of each panel, as wide as a paper's column, or all of them on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from treegrpo_cli.plots.panels import Drawing, Panel
from treegrpo_cli.plots.style import COLOURS, LINES, MARKS, STYLE, printable, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from treegrpo_cli.plots.lines import Line

ENDINGS = ("png", "svg")
COLUMN, PAGE = 3.4, 7.0
"""Inches: the width of a paper's column, and of its text."""
HEIGHT = 2.3
MAX_MARKS = 8
THOUSANDS = 10_000
"""From here on an axis is labelled in k and M."""
MAX_LABEL = 40


def write_pictures(drawing: Drawing, output: Path) -> list[Path]:
    """Draw all panels into one file, or into a folder one by one and together, `all.png`; return the files.

    Raises OSError, which names the file.
    """
    with rc_context(STYLE):
        if output.suffix.lower().removeprefix(".") in ENDINGS:
            save_picture(figure_of(drawing, drawing.panels), output)
            return [output]
        output.mkdir(parents=True, exist_ok=True)
        pictures = {file_name(panel.name): [panel] for panel in drawing.panels}
        if len(pictures) > 1:
            pictures["all"] = list(drawing.panels)
        files = []
        for name, panels in pictures.items():
            figure = figure_of(drawing, panels)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # it is laid out: once for both files
            for ending in ENDINGS:
                files.append(output / f"{name}.{ending}")
                save_picture(figure, files[-1])
        return files


def file_name(panel: str) -> str:
    """Return what a panel's file is called, without its ending.

    >>> file_name("eval/exact_match")
    'eval-exact_match'
    """
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in panel)[:100]


def figure_of(drawing: Drawing, panels: Sequence[Panel]) -> Figure:
    """Return the figure of these panels, two in a row, with one legend for the groups below them."""
    with rc_context(STYLE):
        return _figure(drawing, panels)


def _figure(drawing: Drawing, panels: Sequence[Panel]) -> Figure:
    num_columns = min(len(panels), 2)
    num_rows = -(-len(panels) // num_columns)
    entries = _entries(drawing, panels)
    note = drawing.note if any(line.low is not None for panel in panels for line in panel.lines) else ""
    legend_columns = _legend_columns([label for _, label in entries], num_columns)
    legend_height = 0.17 * (-(-len(entries) // legend_columns) + len(note.splitlines())) + 0.1 if entries or note else 0
    size = (COLUMN if num_columns == 1 else PAGE, HEIGHT * num_rows + legend_height)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for place, panel in enumerate(panels):
        _draw(axes[place], panel, drawing)
    for spare in axes[len(panels) :]:
        spare.remove()
    if entries or note:
        handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
        figure.legend(
            handles, labels, loc="outside lower center", ncols=legend_columns, title=note or None, title_fontsize=7
        )
    return figure


def _entries(drawing: Drawing, panels: Sequence[Panel]) -> list[tuple[Any, str]]:
    """The legend of the groups, where there are several, or of one that is several runs."""
    if len(drawing.groups) < 2:
        return []
    drawn = {line.group for panel in panels for line in panel.lines} | {
        bar.group for panel in panels for bar in panel.bars
    }
    if not any(panel.lines for panel in panels):
        return []  # bars are named beside them
    return [(Line2D([], [], color=_colour(place), marker=_mark(place)), _label(drawing.groups[place].name))
            for place in sorted(drawn) if place >= 0]  # fmt: skip


def _legend_columns(labels: Sequence[str], num_columns: int) -> int:
    """How many fit side by side."""
    longest = max(map(len, labels), default=0) + 6
    return max(1, min(len(labels), int((30 if num_columns == 1 else 62) * 2 / longest)))


def _draw(axes: Axes, panel: Panel, drawing: Drawing) -> None:
    several = len(drawing.groups) > 1
    if panel.bars:
        _bars(axes, panel, drawing)
    for line in panel.lines:
        _line(axes, line, panel, several=several)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(printable(panel.y_label))
    axes.grid(alpha=0.25, linewidth=0.4, axis="x" if panel.bars else "both")
    axes.set_axisbelow(True)
    _part_legend(axes, panel, several=several)
    if panel.lines and panel.x_label.startswith(("step", "depth")):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (axes.xaxis, axes.yaxis) if panel.lines else ():
        if max(map(abs, axis.get_view_interval())) >= THOUSANDS:
            axis.set_major_formatter(EngFormatter(sep=""))
    if panel.lines and all((line.y[~np.isnan(line.y)] >= 0).all() for line in panel.lines):
        axes.set_ylim(bottom=0)
    elif len(panel.lines):
        axes.margins(y=0.08)


def _part_legend(axes: Axes, panel: Panel, *, several: bool) -> None:
    """What is what within a panel, between its title and its lines, so that nothing is covered."""
    used = sorted({line.part for line in panel.lines}) if panel.lines else list(range(len(panel.parts)))
    shown = used if len(panel.parts) > 1 else []
    num_columns = 4 if panel.is_ordered or panel.bars else max(min(len(shown), 3), 1)
    num_rows = -(-len(shown) // num_columns)
    axes.set_title(printable(panel.title), pad=4 + 10 * num_rows)
    if not shown:
        return
    if panel.bars:
        handles: list[Any] = [Line2D([], [], color=_shade(part, panel), linewidth=5) for part in shown]
    else:
        handles = [_part_handle(part, panel, several=several) for part in shown]
    axes.legend(
        handles,
        [panel.parts[part] for part in shown],
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=num_columns,
        borderaxespad=0,
        borderpad=0.1,
        labelspacing=0.2,
        handlelength=1.8,
        columnspacing=1.0,
    )


def _part_handle(part: int, panel: Panel, *, several: bool) -> Line2D:
    if several and not panel.is_ordered:
        return Line2D([], [], color="0.3", linestyle=LINES[part % len(LINES)])
    return Line2D([], [], **_of_part(part, panel))


def _of_part(part: int, panel: Panel) -> dict[str, Any]:
    """Colour and mark of a part, where there is one group."""
    if panel.is_ordered:
        return {"color": _shade(part, panel, "viridis"), "marker": _mark(part)}
    return {"color": _colour(part), "linestyle": LINES[part % len(LINES)], "marker": _mark(part)}


def _line(axes: Axes, line: Line, panel: Panel, *, several: bool) -> None:
    if line.group >= 0 and several:
        look: dict[str, Any] = {
            "color": _colour(line.group),
            "marker": _mark(line.group),
            "linestyle": LINES[line.part % len(LINES)],
        }
    else:
        look = _of_part(line.part, panel)
    every = -(-len(line.x) // MAX_MARKS)
    offset = (line.group + line.part) % every if every > 1 else 0
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=look["color"], alpha=0.16, linewidth=0)
    if line.faint is not None:
        axes.plot(line.x, line.faint, color=look["color"], alpha=0.3, linewidth=0.6)
    axes.plot(line.x, line.y, markevery=(offset, max(every, 1)), gid=f"line-{line.group}-{line.part}", **look)


def _bars(axes: Axes, panel: Panel, drawing: Drawing) -> None:
    names = [_label(drawing.groups[bar.group].name) for bar in panel.bars]
    places = list(range(len(panel.bars)))
    left = np.zeros(len(places))
    for part in range(len(panel.parts)):
        values = np.array([bar.values[part] for bar in panel.bars])
        axes.barh(places, values, left=left, height=0.66, color=_shade(part, panel), edgecolor="white", linewidth=0.4)
        left += values
    for place, total in enumerate(left):
        axes.text(total, place, f" {total:.3g}", va="center", fontsize=7)
    axes.set_yticks(places, names)
    axes.set_ylim(len(places) - 0.4 + 0.3 * (len(places) == 1), -0.6 - 0.3 * (len(places) == 1))
    axes.set_xlim(0, max(left.max(), 1e-9) * 1.13)


def _shade(part: int, panel: Panel, name: str = "cividis") -> Any:
    """From dark to light, so that what has an order is told from what has none."""
    return colormaps[name](0.88 * part / max(len(panel.parts) - 1, 1))


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _mark(place: int) -> str:
    return MARKS[place % len(MARKS)]


def _label(name: str) -> str:
    """A name for a legend: cut where it is long; matplotlib hides one that begins with an underscore."""
    text = printable(name)
    text = text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL // 2]}…{text[-MAX_LABEL // 2 + 1 :]}"
    return f" {text}" if text.startswith("_") else text
