"""Results -> learning curves with their bands, as PNG and SVG: a picture for each thing that is spent.

Arms are told apart by colour and by line; no two of forty arms share both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from treegrpo_cli.plots.curves import AXES
from treegrpo_cli.plots.style import COLOURS, LINES, STYLE, save_picture

MAX_SEED_LINES = 5
"""Of so few seeds each one's evaluations are drawn too, faintly."""


def draw_curves(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the score against each thing that all arms spend; return the files, `score-AXIS.png` and `.svg`."""
    arms = results["arms"]
    files: list[Path] = []
    for axis in (axis for axis in AXES if all(axis in arm["curves"] for arm in arms)):
        with rc_context(STYLE):
            figure = _figure(results["score"], arms, axis)
            pair = [folder / f"score-{axis}.{ending}" for ending in ("png", "svg")]
            for file in pair:
                save_picture(figure, file)
        files += pair
    return files


def _figure(score: str, arms: Sequence[Mapping[str, Any]], axis: str) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.subplots()
    for place, arm in enumerate(arms):
        curve, colour = arm["curves"][axis], COLOURS[place % len(COLOURS)]
        if curve["low"] is not None:
            panel.fill_between(curve["spent"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        if len(arm["runs"]) <= MAX_SEED_LINES:
            for run in arm["runs"].values():
                panel.plot(run[axis], run["score"], color=colour, alpha=0.25, linewidth=0.6)
        label = f"{arm['name']} ({arm['statistic']})"
        panel.plot(
            curve["spent"],
            curve["value"],
            color=colour,
            linestyle=LINES[place % len(LINES)],
            linewidth=1.8,
            label=label,
        )
    panel.set_xlabel(AXES[axis])
    panel.set_ylabel(f"{score} on held-out questions")
    panel.set_xlim(left=0)
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.legend(frameon=False)
    return figure
