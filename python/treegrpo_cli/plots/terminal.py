"""Panels -> text for a terminal, by plotext: lines in braille dots, or in letters where the encoding has no others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from treegrpo_cli.errors import UserError
from treegrpo_cli.plots.style import printable

if TYPE_CHECKING:
    from treegrpo_cli.plots.lines import Line
    from treegrpo_cli.plots.panels import Drawing, Panel

COLOURS = ("blue", "red", "green", "magenta", "yellow", "cyan", "white", "bright_black")
PLOTEXT_COLOURS = ("blue+", "red+", "green+", "magenta+", "orange+", "cyan+", "white", "gray+")
LETTERS = "ox+*#@%&"
HEIGHT, MIN_WIDTH, MAX_WIDTH = 14, 40, 100
FRAME = str.maketrans("┌┐└┘├┤┬┴┼─│", "+++++++++-|")
SLACK = 1e-9
FLAT = 1e-6
"""Values that differ by less of their size are one, and stand in the middle."""
NUM_POINTS = 400
"""More a terminal has no place for."""


def check_plotext() -> None:
    """Raise UserError where plotext is not installed."""
    if find_spec("plotext") is None:
        raise UserError("drawing in the terminal needs plotext: pip install 'treegrpo[plots]'")


def draw_panels(drawing: Drawing, width: int, *, ascii_only: bool, has_colour: bool = True) -> Iterator[Text]:
    """Yield each panel, no line wider than `width`, and what its letters or colours stand for.

    Parts of a bar are letters where there is no colour to tell them apart.
    """
    width = max(min(width, MAX_WIDTH), MIN_WIDTH)
    names = [printable(group.name) for group in drawing.groups]
    for panel in drawing.panels:
        if panel.bars:
            yield Text.assemble((panel.title, "bold"), f"  {panel.x_label}")
            yield from _bars(panel, names, width, has_letters=ascii_only or not has_colour)
        else:
            title = Text.assemble((printable(panel.title), "bold"), f"  {_axes_of(panel)}")
            title.truncate(width)
            yield title
            yield draw_lines(panel.lines, width, HEIGHT, ascii_only=ascii_only)
            yield from _legend(panel, names, width, ascii_only=ascii_only)
        yield Text("")


def _axes_of(panel: Panel) -> str:
    return ", against ".join(
        printable(label) for label in (panel.y_label, panel.x_label) if label and label != panel.title
    )


def draw_lines(lines: Sequence[Line], width: int, height: int, *, ascii_only: bool) -> Text:
    """Return the lines with their axes, `height` rows of at most `width` cells."""
    import plotext

    figure = _empty_figure(plotext, width, height)
    for place, line in enumerate(lines):
        known = ~np.isnan(line.y)
        if not known.any():
            continue
        x, y = line.x[known], line.y[known]
        if len(x) > NUM_POINTS:
            chosen = np.linspace(0, len(x) - 1, NUM_POINTS).astype(int)
            x, y = x[chosen], y[chosen]
        signal = figure.signal(x.tolist(), y.tolist(), marker=_marker(plotext, place, ascii_only=ascii_only))
        figure.draw(signal.lines(len(x) > 1))
    _set_ticks(figure, lines, width, height)
    drawn = figure.build().string(False)
    figure.clear()
    text = Text.from_ansi(drawn.translate(FRAME) if ascii_only else drawn)
    text.rstrip()
    return text


def _empty_figure(plotext: Any, width: int, height: int) -> Any:
    """plotext's one figure, as new, without colours of its own and of a size that no terminal limits."""
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, height)
    figure.legend(False)
    return figure


def _set_ticks(figure: Any, lines: Sequence[Line], width: int, height: int) -> None:
    for axis, num_ticks in ((0, width // 12), (1, max(height // 4, 3))):
        values = np.concatenate([line.y if axis else line.x[~np.isnan(line.y)] for line in lines] or [np.zeros(1)])
        values = values[~np.isnan(values)]
        if len(values):
            low, high = float(values.min()), float(values.max())
            places = ticks(low, high, num_ticks, are_whole=bool((values == values.round()).all()))
            room = FLAT * max(abs(low), abs(high)) if high - low <= FLAT * max(abs(low), abs(high)) else 0.0
            room = room or float(high == low)
            figure.ruler(axis, 0).lim(low - room, high + room)
            figure.ruler(axis, 0).ticks(places, [short(place) for place in places])


def ticks(low: float, high: float, num_ticks: int, *, are_whole: bool = False) -> list[float]:
    """Return round numbers between two, about so many.

    >>> ticks(0.03, 0.38, 3), ticks(1, 3, 6, are_whole=True), ticks(7, 7, 3)
    ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0], [7])
    """
    if not high > low:
        return [low]
    least = min(num_ticks, 3) - 1
    power = math.floor(math.log10(high - low))
    sizes = [factor * 10.0**exponent for exponent in range(power, power - 3, -1) for factor in (5, 2, 1)]
    if are_whole:
        sizes, least = [size for size in sizes if size >= 1], 0
    fitting = [size for size in sizes if least <= _num_steps(low, high, size) < num_ticks]
    step = fitting[-1] if fitting else next(size for size in sizes if _num_steps(low, high, size) >= least)
    first = math.ceil(low / step - SLACK)
    return [round((first + place) * step, 12) for place in range(_num_steps(low, high, step) + 1)]


def _num_steps(low: float, high: float, step: float) -> int:
    return math.floor(high / step + SLACK) - math.ceil(low / step - SLACK)


def short(value: float) -> str:
    """Return a number in few characters.

    >>> short(0.25), short(3.0), short(20_000.0), short(1_500_000.0)
    ('0.25', '3', '20k', '1.5M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if letter == "k" else 1):
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def _marker(plotext: Any, place: int, *, ascii_only: bool) -> Any:
    pixel = plotext.pixel(foreground=PLOTEXT_COLOURS[place % len(PLOTEXT_COLOURS)])
    return plotext.marker(LETTERS[place % len(LETTERS)] if ascii_only or place else "braille", pixel=pixel)


def _legend(panel: Panel, names: Sequence[str], width: int, *, ascii_only: bool) -> Iterator[Text]:
    """What each mark is; a line of nobody's own part is the run's."""
    entries = []
    for place, line in enumerate(panel.lines):
        name = names[line.group] if len(names) > 1 and line.group >= 0 else ""
        label = ", ".join(part for part in (name, panel.parts[line.part] if panel.parts else "") if part)
        mark = LETTERS[place % len(LETTERS)] if ascii_only or place else "⠒"
        entries.append(Text.assemble((mark, COLOURS[place % len(COLOURS)]), " ", label or names[0]))
    yield from _rows(entries, width)


def _rows(entries: Sequence[Text], width: int) -> Iterator[Text]:
    """As many entries side by side as fit; one that is too long is cut."""
    row = Text()
    for entry in entries:
        entry.truncate(width - 2)
        if row.cell_len and row.cell_len + 2 + entry.cell_len > width:
            yield row
            row = Text()
        row.append("  ").append_text(entry)
    yield row


def _bars(panel: Panel, names: Sequence[str], width: int, *, has_letters: bool) -> Iterator[Text]:
    """A bar a group, a letter or a colour a part, and what the parts are; of one group with their values."""
    longest = max(sum(bar.values) for bar in panel.bars) or 1.0
    label_width = min(max(cell_len(names[bar.group]) for bar in panel.bars), width // 3)
    marks = [LETTERS[part % len(LETTERS)] if has_letters else "█" for part in range(len(panel.parts))]
    for bar in panel.bars:
        text = Text(set_cell_size(names[bar.group], label_width) + " ")
        ends = np.round(np.cumsum([0.0, *bar.values]) / longest * (width - label_width - 10)).astype(int).tolist()
        for part, mark in enumerate(marks):
            text.append(mark * (ends[part + 1] - ends[part]), COLOURS[part % len(COLOURS)])
        yield text.append(f" {sum(bar.values):.3g}")
    values = [f" {value:.3g}" for value in panel.bars[0].values] if len(panel.bars) == 1 else [""] * len(marks)
    labels = [f" {part}{value}" for part, value in zip(panel.parts, values, strict=True)]
    entries = [Text.assemble((mark, COLOURS[part % len(COLOURS)]), labels[part]) for part, mark in enumerate(marks)]
    yield from _rows(entries, width)
