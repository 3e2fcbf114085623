"""User code that fails shows where: its traceback's last lines, and all of it with --debug."""

from pathlib import Path

import pytest
from treegrpo_cli.cli import settings
from treegrpo_cli.errors import LAST_TRACE_LINES
from treegrpo_cli.user_code import load_dotted

from tests.command_line import run

DEPTH = 10


@pytest.fixture(autouse=True)
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "def f0():\n    1 / 0\n" + "".join(f"def f{i + 1}():\n    f{i}()\n" for i in range(DEPTH))
    (tmp_path / "own.py").write_text(f"{lines}f{DEPTH}()\n")
    path = f"{tmp_path / 'own.py'}:anything"
    monkeypatch.setattr(settings, "read_settings", lambda *_, **__: load_dotted(path, "environment.name"))


def test_the_last_lines_of_a_traceback_stand_before_the_line_that_says_what_is_wrong() -> None:
    done = run("rollout", TREEGRPO_DEBUG="")
    *trace, last = done.stderr.splitlines()
    assert done.returncode == 2
    assert last.startswith("treegrpo: environment.name: cannot import ")
    assert last.endswith("own.py: ZeroDivisionError: division by zero")
    assert len(trace) == LAST_TRACE_LINES
    assert trace[-1] == "ZeroDivisionError: division by zero"
    assert any(line.endswith("in f0") for line in trace)


@pytest.mark.parametrize(("options", "variable"), [(["--debug"], "0"), ([], "1")])
def test_debug_shows_all_of_it(options: list[str], variable: str) -> None:
    done = run(*options, "rollout", TREEGRPO_DEBUG=variable)
    assert done.returncode == 2
    assert sum(f"in f{i}" in done.stderr for i in range(DEPTH + 1)) == DEPTH + 1
    assert done.stderr.splitlines()[-1].endswith("own.py: ZeroDivisionError: division by zero")
