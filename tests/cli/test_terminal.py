"""What a terminal is sent: no line wider than it, nothing that it would obey, colours and a pager where they belong."""

import os
import re
import shutil
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli.cli.show.explanation import explanation_lines
from treegrpo_cli.trees.draw import draw_tree
from treegrpo_cli.trees.scoring import score
from treegrpo_cli.trees.summary import Summary
from treegrpo_cli.trees.summary_lines import lines_of_summary
from treegrpo_cli.trees.texts import plain, visible
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.command_line import refused, run
from tests.pseudo_terminal import Terminal, shown_in_terminal
from tests.sample_trees import nodes_of, tree, write_lines

STYLE = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = "\x1b[2J\x1b]0;title\x07\x1bPq\x1b\\\x9b31m\x08\x00\x7f\u202e\u2066"
HOSTILE += " 日本 é👩\u200d👩\u200d👧❤\ufe0f👍🏽\ttab\r\n[bold]x[/bold]"
LINES = "sed -u s/^/|/"
"""A pager that can be told from printing."""


def cells(text: str) -> int:
    """How many cells a terminal gives a text, character by character."""
    return sum(
        0
        if unicodedata.category(char) in ("Mn", "Me", "Mc") or 0x1160 <= ord(char) < 0x1200
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in text
    )


def obeyed(text: str) -> list[str]:
    """Characters that a terminal obeys or hides."""
    return [char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]


texts = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from("a 日é\u0301👩\u200d\ufe0f🏽\x1b[31m\t\n\u202e한\U0001f1e9"), max_size=80),
)


@st.composite
def records(draw: st.DrawFn) -> TreeRecord:
    """A scored tree of any shape, whose strings are anything at all."""
    shape = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12))
    parents = [None, *(step % place for place, step in enumerate(shape, 1))]
    rewards = [
        draw(st.sampled_from([0.0, 1.0, -0.25, 1e-9, 123456.0])) if place not in parents else None
        for place in range(len(parents))
    ]
    nodes = nodes_of(parents, rewards)
    for node in nodes:
        node |= {"text": draw(texts), "observation": draw(texts)}
    question = {"question": draw(texts)}
    fields = tree(draw(texts.filter(bool)), draw(st.sampled_from([0, 2**32 - 1])), nodes, task=question)
    [record] = score([fields], terms=[{"estimator": "grpo"}, {"estimator": "parent", "weight": 0.5}])
    return record


@settings(max_examples=40, deadline=None)
@given(records(), st.integers(20, 400), st.booleans())
def test_no_line_is_wider_than_the_screen_or_holds_what_a_terminal_obeys(
    record: TreeRecord, width: int, full: bool
) -> None:
    summary = Summary()
    summary.add_group([record])
    lines = [line.plain for line in (*draw_tree(record, width, full=full), *lines_of_summary(summary, width))]
    lines += [line.plain for line in explanation_lines([record], 0, len(record.nodes) - 1, width)]
    assert [line for line in lines if cells(line) > width] == []
    assert [line for line in lines if obeyed(line)] == []


def test_a_column_of_a_summary_is_as_wide_as_its_numbers() -> None:
    summary = Summary()
    summary.add_group(score([tree(nodes=nodes_of([None, 0, 0], [None, 24691.2, -98765.4]))], "grpo"))
    for width in range(20, 120):
        lines = [line.plain for line in lines_of_summary(summary, width)]
        assert [line for line in lines if cells(line) > width] == []
    assert len({cells(line) for line in lines[-3:]}) == 1


@given(st.text())
def test_a_text_is_shown_whole_but_for_what_joins_characters(text: str) -> None:
    shown = visible(text)
    assert not obeyed(shown)
    kept = "".join(char for char in text if not obeyed(char))
    joiners = re.compile("[\u3164\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef]")
    signs = re.sub(r"<U\+[0-9A-F]{4,6}>|[\u2400-\u241f\u2421]", "", shown)
    assert signs == re.sub(r"<U\+[0-9A-F]{4,6}>|[\u2400-\u241f\u2421]", "", joiners.sub("", kept))


def test_an_escape_sequence_is_shown_as_signs() -> None:
    assert plain("\x1b[31mred\x1b]0;t\x07 \u202eb") == "␛[31mred␛]0;t␇ <U+202E>b"
    assert plain("👩\u200d👧 ❤\ufe0f 👍🏽") == "👩👧 ❤ 👍"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    nodes = [
        node | {"text": HOSTILE, "observation": HOSTILE, "error": HOSTILE}
        for node in nodes_of([None, 0, 0, 2], [None, 1.0, None, 0.0])
    ]
    [record] = score([tree(HOSTILE, 0, nodes, task={"question": HOSTILE})], "parent")
    return write_lines(tmp_path / "hostile.jsonl", [record.fields])


@pytest.fixture
def many(tmp_path: Path) -> Path:
    trees = [tree(f"p{number}", 0) for number in range(60)]
    return write_lines(tmp_path / "many.jsonl", [record.fields for record in score(trees, "parent")])


@pytest.mark.parametrize("more", [[], ["--full"], ["--explain", "2"], ["--summary"]])
def test_a_terminal_gets_colours_and_nothing_else_to_obey(hostile: Path, more: list[str]) -> None:
    terminal = shown_in_terminal("inspect-tree", hostile, *more, columns=33, rows=200)
    lines = [STYLE.sub("", line) for line in terminal.lines]
    assert lines
    assert [line for line in lines if obeyed(line) or cells(line) > 33] == []


def test_colours_say_what_signs_say_and_differ_without_red_and_green(hostile: Path) -> None:
    shown = shown_in_terminal("inspect-tree", hostile, rows=99).shown
    assert "\x1b[38;5;33m+0.500" in shown
    assert "\x1b[38;5;208m-0.500" in shown
    sixteen = shown_in_terminal("inspect-tree", hostile, rows=99, TERM="xterm").shown
    found = dict(re.findall(r"\x1b\[(\d+)m([+-])0\.500", sixteen))
    assert sorted(found.values()) == ["+", "-"], "each in a colour of its own"


@pytest.mark.parametrize(
    ("arguments", "environment", "is_coloured"),
    [
        ([], {}, True),
        (["--no-color"], {}, False),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        ([], {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
    ],
)
def test_a_terminal_is_coloured_unless_somebody_says_otherwise(
    hostile: Path, arguments: list[str], environment: dict[str, str], is_coloured: bool
) -> None:
    terminal = shown_in_terminal("inspect-tree", hostile, *arguments, rows=99, **environment)
    assert ("\x1b[" in terminal.shown) == is_coloured


@pytest.mark.parametrize(
    ("arguments", "environment", "is_coloured"),
    [
        ([], {}, False),
        (["--color", "always"], {}, True),
        ([], {"FORCE_COLOR": "1"}, True),
        ([], {"CLICOLOR_FORCE": "1"}, True),
        ([], {"FORCE_COLOR": "0"}, False),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_a_pipe_is_plain_unless_somebody_says_otherwise(
    hostile: Path, arguments: list[str], environment: dict[str, str], is_coloured: bool
) -> None:
    shown = run("inspect-tree", hostile, *arguments, **environment).stdout
    assert ("\x1b[" in shown) == is_coloured
    assert {cells(STYLE.sub("", line)) for line in shown.splitlines() if "+" in line} >= {80}


def test_a_drawing_is_as_wide_as_it_is_told(hostile: Path) -> None:
    def width(*arguments: str, **environment: str) -> int:
        return max(map(cells, run("inspect-tree", hostile, *arguments, **environment).stdout.splitlines()))

    assert [width("--width", str(given), COLUMNS="50") for given in (20, 33, 400)] == [20, 33, 400]
    assert width(COLUMNS="50") == 50
    assert "--width': Input should be greater" in refused(run("inspect-tree", hostile, "--width", "19"))
    assert "contradict" in refused(run("inspect-tree", hostile, "--no-color", "--color", "always"))


def test_a_narrow_drawing_leaves_out_depth_then_reward_then_value(hostile: Path) -> None:
    def headers(width: int) -> list[str]:
        lines = run("inspect-tree", hostile, "--width", str(width)).stdout.splitlines()
        return next(line for line in lines if line.endswith("advantage")).split()

    assert headers(80) == ["depth", "reward", "value", "advantage"]
    assert headers(52) == ["reward", "value", "advantage"]
    assert headers(40) == ["value", "advantage"]
    assert headers(20) == ["advantage"]


def test_what_fits_is_drawn_and_what_does_not_is_paged(hostile: Path, many: Path) -> None:
    fits = shown_in_terminal("inspect-tree", hostile, rows=30, PAGER=LINES)
    assert not [line for line in fits.lines if line.startswith("|")]
    paged = shown_in_terminal("inspect-tree", many, "--color", "never", PAGER=LINES)
    assert paged.lines == [f"|{line}" for line in run("inspect-tree", many).stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--no-pager"], {"PAGER": LINES}),
        ([], {"PAGER": "cat"}),
        ([], {"PAGER": ""}),
        ([], {"PAGER": LINES, "TERM": "dumb"}),
    ],
)
def test_a_pager_can_be_turned_off(many: Path, arguments: list[str], environment: dict[str, str]) -> None:
    shown = shown_in_terminal("inspect-tree", many, "--color", "never", *arguments, **environment)
    assert shown.lines == run("inspect-tree", many).stdout.splitlines()


@pytest.mark.parametrize("pager", ["no-such-pager -x", "'unclosed", "/"])
def test_a_pager_that_lacks_is_named_and_everything_printed(many: Path, pager: str) -> None:
    terminal = shown_in_terminal("inspect-tree", many, "--color", "never", PAGER=pager)
    warning = [line for line in terminal.lines if line.startswith("treegrpo: warning: PAGER ")]
    assert len(warning) == 1
    assert [line for line in terminal.lines if line not in warning] == run("inspect-tree", many).stdout.splitlines()


def test_a_reader_who_leaves_the_pager_ends_the_command_at_once_though_more_could_come(
    many: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "trees.jsonl"
    os.mkfifo(fifo)
    left = threading.Event()

    def feed() -> None:
        with open(fifo, "wb") as stream:
            stream.write(many.read_bytes())
            stream.flush()
            left.wait(60)  # the end of the file does not come

    terminal = Terminal("inspect-tree", fifo, PAGER="head -n 2")
    feeder = threading.Thread(target=feed)
    feeder.start()
    assert terminal.end() == 0, terminal.shown
    left.set()
    feeder.join()
    assert len(terminal.lines) == 2
    assert "treegrpo:" not in terminal.shown


@pytest.mark.parametrize("color", ["always", "never"])
def test_a_pager_that_reads_no_more_but_lives_on_ends_the_command_well(many: Path, color: str) -> None:
    pager = """sh -c "exec <&-; sleep 1" """
    terminal = shown_in_terminal("inspect-tree", many, "--color", color, PAGER=pager)
    assert terminal.lines == []


def test_ctrl_c_is_the_pagers_own(many: Path) -> None:
    pager = """sh -c "trap '' INT; echo ready; sleep 0.3; cat; echo ended" """
    terminal = Terminal("inspect-tree", many, PAGER=pager)
    terminal.read_until("ready")
    terminal.type("\x03\x03")
    assert terminal.end() == 0
    assert "ended" in terminal.lines
    assert "treegrpo:" not in terminal.shown
    assert "p59 · tree 0" in terminal.shown


@pytest.mark.skipif(not shutil.which("less"), reason="no less")
def test_less_shows_colours_and_is_left_by_q(many: Path) -> None:
    terminal = Terminal("inspect-tree", many)
    terminal.read_until("p1 · tree 0")
    terminal.type("q")
    assert terminal.end() == 0
    assert "p59" not in terminal.shown
    assert "\x1b[38;5;" in terminal.shown
    assert "ESC[" not in terminal.shown
