"""The terminal's plot, letter by letter, and as wide as it may be."""

from typing import Any

import numpy as np
import pytest
from rich.console import Console
from treegrpo_cli.plots.groups import Group
from treegrpo_cli.plots.history import History
from treegrpo_cli.plots.lines import Line
from treegrpo_cli.plots.panels import View, make_panels
from treegrpo_cli.plots.terminal import draw_lines, draw_panels

from tests.plots.written_runs import scored, step, tree_steps

UP = Line(0, 0, np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
DOWN = Line(1, 0, np.array([0.0, 4.0]), np.array([1.0, 0.0]))

DOTS = """\
   ┌────────────────────────────────────┐
  1┤xxx                             ⢀⣀⠤⠄│
   │   xxxxxx                  ⣀⠤⠔⠒⠉⠁   │
   │         xxxxxx      ⣀⡠⠤⠒⠊⠉         │
0.5┤               xxxxxx               │
   │         ⣀⡠⠤⠒⠊⠉      xxxxxx         │
   │   ⢀⣀⠤⠔⠒⠉                  xxxxxx   │
  0┤⠐⠒⠉⠁                             xxx│
   └┬─────────────────┬────────────────┬┘
    0                 2                4"""


def text_of(*lines: Line, **options: Any) -> str:
    return draw_lines(lines, 41, 10, **{"ascii_only": False, **options}).plain


def test_lines_are_drawn_in_dots_and_letters() -> None:
    drawn = text_of(UP, DOWN)
    assert [line.rstrip() for line in drawn.splitlines()] == DOTS.splitlines()


def test_letters_alone_are_ascii() -> None:
    drawn = text_of(UP, DOWN, ascii_only=True)
    assert drawn.isascii()
    assert {"o", "x", "+", "|"} <= set(drawn)


@pytest.mark.parametrize("width", [40, 60, 80, 300])
def test_no_row_is_wider_than_the_terminal(width: int) -> None:
    groups = [Group(name, [History(scored(tree_steps(3)))]) for name in ("a run", "東京" * 30, "b" * 200)]
    rows = list(draw_panels(make_panels(groups, View()), width, ascii_only=False))
    widths = [max(row.cell_len for row in text.split("\n")) for text in rows if text.plain]
    assert max(widths) <= min(width, 100)


def test_colours_are_the_console_s_to_leave_out() -> None:
    made = make_panels([Group("a", [History(tree_steps(3))])], View(), ["reward"])
    rows = list(draw_panels(made, 60, ascii_only=False))
    for colour, has_escapes in (("truecolor", True), (None, False)):
        console = Console(
            width=60, color_system=colour, force_terminal=bool(colour), record=True, file=None, quiet=False
        )  # type: ignore[arg-type]
        with console.capture() as captured:
            for row in rows:
                console.print(row)
        assert ("\x1b[" in captured.get()) is has_escapes


@pytest.mark.parametrize("y", [[np.nan, np.nan], [1.0, 1.0], [np.nan, 3.0], [1e-9, 2e-9], [-5.0, 1e12]])
def test_any_values_are_drawn(y: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    line = Line(0, 0, np.array([1.0, 2.0]), np.array(y))
    assert len(text_of(line).splitlines()) == 10
    assert len(text_of(Line(0, 0, np.array([3.0]), np.array(y[1:]))).splitlines()) == 10
    assert capfd.readouterr() == ("", "")


def test_bars_are_letters_where_there_is_no_colour() -> None:
    groups = [Group(name, [History(scored(tree_steps(2)))]) for name in ("a", "b")]
    made = make_panels(groups, View(), ["seconds"])
    title, first, second, legend, _ = (text.plain for text in draw_panels(made, 60, ascii_only=False, has_colour=False))
    assert title == "Seconds by phase  seconds a step, mean"
    assert first.split()[1] == second.split()[1]
    counts = [first.count(letter) for letter in "ox+*"]
    total = 1.0 + 0.75 + 4.5 + 0.25
    assert counts == pytest.approx([49 * value / total for value in (1.0, 0.75, 4.5, 0.25)], abs=1)
    assert legend == "  o rollout  x update  + evaluation  * rest"


def test_a_run_of_one_step_is_a_dot() -> None:
    made = make_panels([Group("a", [History([step(1)])])], View(), ["reward"])
    drawn = list(draw_panels(made, 60, ascii_only=True))[1].plain
    assert drawn.count("o") == 1
