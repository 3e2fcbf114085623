"""What the shell is told: help, exit codes, completion, warnings."""

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from treegrpo_cli.cli import app
from treegrpo_cli.cli.libraries import prepare_libraries
from treegrpo_cli.config import Config

from tests.command_line import HEAVY, run, run_process

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [[], ["rollout"], ["train"], ["eval"], ["inspect-tree"]])
def test_h_is_help(command: list[str]) -> None:
    short, long = run(*command, "-h"), run(*command, "--help")
    assert short.returncode == long.returncode == 0
    assert short.stdout == long.stdout
    assert "-h, --help" in short.stdout


def test_the_help_fits_eighty_columns_and_names_every_exit_code() -> None:
    shown = run("--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    codes = re.findall(r"\b(\d+)\b", shown.partition("Exit codes")[2])
    assert codes == ["0", "1", "2", "130", "143"]


def test_the_page_on_runs_names_the_same_exit_codes() -> None:
    page = (ROOT / "docs" / "how-to" / "run.md").read_text(encoding="utf-8")
    [sentence] = re.findall(r"Exit codes: [^\n]*\n?[^\n]*", page)
    assert re.findall(r"`(\d+)`", sentence) == ["0", "1", "2", "130", "143"]


def complete(words: str, **environment: str) -> list[str]:
    """What bash would be offered behind `words`."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_TREEGRPO_COMPLETE": "complete_bash"}
    return run(**asked, **environment).stdout.splitlines()


def test_commands_options_and_settings_are_completed() -> None:
    assert complete("treegrpo ro") == ["rollout"]
    assert complete("treegrpo train --dry") == ["--dry-run"]
    assert complete("treegrpo train c.toml rollout.num_r") == ["rollout.num_rounds="]
    assert complete("treegrpo rollout see") == ["seed="]
    every = complete("treegrpo train reward.")
    assert every == [f"reward.{key}=" for key in Config().reward.model_dump()]


def test_a_shell_is_given_its_script() -> None:
    done = run("--show-completion", "zsh", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0
    assert "_TREEGRPO_COMPLETE=complete_zsh" in done.stdout
    assert "#compdef treegrpo" in done.stdout


def test_completion_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['treegrpo']\n"
        "from treegrpo_cli.cli.app import main\n"
        "try: main()\n"
        f"finally: print('loaded', [name for name in {HEAVY!r} if name in sys.modules and name != 'pydantic'])"
    )
    asked = {"COMP_WORDS": "treegrpo train see", "COMP_CWORD": "2", "_TREEGRPO_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["seed=", "loaded []"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", app._show_warning)
        yield


@pytest.mark.usefixtures("shown")
def test_a_warning_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    warnings.warn("first\nsecond \x1b[31m", stacklevel=1)
    assert capsys.readouterr().err == "treegrpo: warning: first second \\x1b[31m\n"


def test_warnings_of_the_log_say_whose_they_are() -> None:
    prepare_libraries()
    assert logging.lastResort is not None
    record = logging.LogRecord("treegrpo_cli.envs", logging.WARNING, "f.py", 1, "%d trees are left", (3,), None)
    assert logging.lastResort.format(record) == "treegrpo: warning: 3 trees are left"


def test_a_process_says_its_name_however_it_was_started() -> None:
    done = run_process("train", "-h", capture_output=True)
    assert done.stdout.startswith("Usage: treegrpo train ")


def test_a_file_that_ends_too_soon_is_an_error_and_no_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EOFError("marshal data too short")

    monkeypatch.setattr("treegrpo_cli.cli.settings.read_settings", broken)
    monkeypatch.setattr(sys, "argv", ["treegrpo", "train"])
    with pytest.raises(EOFError, match="marshal data too short"):
        app.main()


def test_a_working_directory_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert app._run() == 2
    assert capsys.readouterr().err == "treegrpo: the working directory: No such file or directory\n"
