"""Progress: how far, how it stands, how long it will take, on a terminal and in plain logs."""

import io

import pytest
from rich.console import Console
from treegrpo_cli.run import progress
from treegrpo_cli.run.progress import Reporter, duration


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3599, "1 h 00 min"),
        (3 * 3600 + 5 * 60, "3 h 05 min"),
        (26 * 3600, "1 d 2 h"),
    ],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_plain_lines_say_how_long_it_will_take(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().bar("training", 10) as bar:
        for _ in range(10):
            clock.now += 11
            bar.advance(note="reward 0.500")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training 1/10  reward 0.500  about 2 min left"  # 9 steps of 11 s
    assert lines[6] == "training 7/10  reward 0.500  about 33 s left"
    assert lines[-1] == "training 10/10  reward 0.500"


def test_the_first_of_many_side_by_side_tells_nothing_about_the_others(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter().bar("evaluating", 100, side_by_side=True) as bar:
        clock.now += 20
        bar.advance()
        clock.now += 20
        bar.advance(19)
    assert capsys.readouterr().err.splitlines() == ["evaluating 1/100", "evaluating 20/100  about 3 min left"]


def test_what_an_earlier_run_did_tells_nothing_about_the_pace(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().bar("training", 100, done=90) as bar:
        clock.now += 20
        bar.advance()
    assert capsys.readouterr().err == "training 91/100  about 3 min left\n"


def test_plain_lines_are_no_more_than_one_in_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().bar("playing", 100) as bar:
        for _ in range(99):
            clock.now += 1
            bar.advance()
    assert len(capsys.readouterr().err.splitlines()) == 9


def test_quiet_says_nothing_but_results(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    with reporter.bar("training", 1) as bar:
        bar.advance()
    reporter.say("on the way")
    reporter.show("a table")
    reporter.result("0.5")
    assert capsys.readouterr() == ("0.5\n", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_path_with_a_colon_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    reporter = Reporter(quiet=quiet)
    reporter.warn("reward own.py:boom: raised [ValueError]")
    reporter.say("own.py:fire:")
    reporter.result("own.py:smile:")
    said = "" if quiet else "own.py:fire:\n"
    out, err = capsys.readouterr()
    assert (out, err) == ("own.py:smile:\n", f"treegrpo: warning: reward own.py:boom: raised [ValueError]\n{said}")


def test_a_terminal_shows_a_bar_inside_a_bar_and_the_time_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter, shown = Reporter(), io.StringIO()
    monkeypatch.setattr(reporter, "_err", Console(file=shown, force_terminal=True, width=120, color_system=None))
    with reporter.bar("training", 4) as outer:
        clock.now += 30
        outer.advance(note="reward 0.500")
        with reporter.bar("evaluating", 2) as inner:
            inner.advance()
            reporter.say("a line between")
        outer.advance(3)
    text = shown.getvalue()
    assert "about 2 min left" in text or "about 90 s left" in text
    assert "evaluating" in text
    assert "a line between" in text
    assert "4/4" in text.rpartition("training")[2]
    assert "evaluating" not in text.rpartition("training")[2]
