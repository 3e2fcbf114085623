"""A probe's figures -> bars with their intervals, as PNG and SVG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from treegrpo_cli.compare.probe_statistics import Interval
from treegrpo_cli.plots.style import STYLE, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from treegrpo_cli.compare.probe import Probe

PANELS = {
    "quality_per_token": "quality a token",
    "quality_per_tool_call": "quality a tool call",
    "quality_per_second": "quality a second",
    "cosine": "cosine",
}
COLOURS = [f"C{number}" for number in range(10)]
ROOM = 1.6
"""How far beyond the longest bar an interval is drawn; it goes on outside."""


def draw_probe(probe: Probe, folder: Path) -> list[Path]:
    """Draw a panel a figure, a bar an arm; return the files."""
    with rc_context(STYLE | {"font.size": 9}):
        figure = Figure(figsize=(11, 1.6 + 0.4 * len(probe.figures)), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for panel, (key, label) in zip(panels, PANELS.items(), strict=True):
            is_cosine = key == "cosine"
            found = [(arm.absolute if is_cosine else arm.relative)[key] for arm in probe.figures.values()]
            _bars(panel, list(probe.figures), found)
            panel.axvline(1.0, color="0.4", linewidth=0.8, linestyle=":")
            panel.set_xlabel(label if is_cosine else f"{label}, first arm = 1")
        figure.suptitle(f"{probe.num_prompts} prompts, {probe.num_repeats} repeats; 95% intervals over prompts")
        files = [folder / "probe.png", folder / "probe.svg"]
        for file in files:
            save_picture(figure, file)
    return files


def _bars(panel: Axes, names: list[str], found: list[Interval]) -> None:
    values = [interval.value if math.isfinite(interval.value) else 0.0 for interval in found]
    low_end, high_end = min([0.0, *values]) * ROOM, max([1.0, *values]) * ROOM
    places = list(range(len(names)))
    panel.barh(places, values, color=[COLOURS[place % len(COLOURS)] for place in places], height=0.6, alpha=0.7)
    for place, interval in enumerate(found):
        if math.isnan(interval.value):
            panel.text(0.02, place, "not known", va="center", fontsize=8)
        else:
            ends = [min(max(end, low_end), high_end) for end in (interval.low, interval.high)]
            panel.plot(ends, [place, place], color="0.2", linewidth=1.2)
    panel.set_xlim(low_end, high_end)
    panel.set_yticks(places, names)
    panel.set_ylim(len(names) - 0.5, -0.5)
