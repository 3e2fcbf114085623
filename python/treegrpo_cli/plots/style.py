"""How every picture looks: colours and marks that tell lines apart, sizes for a paper's column, files of fixed bytes.

The colours are Okabe and Ito's, which most colour-blind people can tell apart; marks tell the lines apart in print.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.data.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")
"""Colours, lines and marks: no two of these numbers have a common factor, so that few lines share two of them."""

STYLE: Any = {
    "svg.hashsalt": "treegrpo",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
}
"""Text in an SVG stays text, names are drawn as they are, and the same figure is the same bytes."""
DPI = 200


def save_picture(figure: Figure, file: Path) -> None:
    """Draw into a file, in the format that its ending names; a full disk leaves what was there."""
    content = io.BytesIO()
    kind = file.suffix.removeprefix(".")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a run may be called anything
        figure.savefig(content, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    write_whole(file, content.getvalue())


def printable(name: str) -> str:
    """Return a name of the user's as it can stand in a picture and on a terminal.

    >>> printable("a\\x1b[31m<b>")
    'a\\\\x1b[31m<b>'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in name)
