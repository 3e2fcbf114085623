"""What stands in the pages' fences: Python runs, commands can be typed, JSON can be read.

A fence of `python` is run with those before it on its page, `pycon` is compared with what it prints (test_doctests),
`py` is shown alone: signatures, and what needs a library that is not here.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.docs import page_of_commands
from tests.docs.blocks import SECTIONS, blocks_of, commands_of, unknown_settings

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT / "docs")): path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")
}
WITH_PYTHON = sorted(name for name, text in PAGES.items() if any(b.language == "python" for b in blocks_of(text)))
USAGE: type[Exception] = typer.BadParameter.__mro__[1]
"""What a command line raises that cannot be read: an unknown option is one too."""
OTHERS = {"make", "pip", "python", "source"}
"""Programs beside our own that a page may name."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where examples run: with the shipped examples, a tree file, and a run's metrics."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copyfile(ROOT / "examples" / "trees.jsonl", folder / "trees.jsonl")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "metrics.jsonl").write_text(
        '{"step": 0, "eval/f1": 0.5}\n{"step": 1, "reward": 0.25}\n'
    )
    return folder


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_on_a_page_runs_from_top_to_bottom(name: str, folder: Path) -> None:
    program = "import numpy as np\n" + "\n".join(b.text for b in blocks_of(PAGES[name]) if b.language == "python")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(name for name, text in PAGES.items() if commands_of(text)))
def test_commands_on_a_page_can_be_typed(name: str) -> None:
    for program, *arguments in commands_of(PAGES[name]):
        assert program in {"treegrpo", *OTHERS}
        if program == "treegrpo":
            check_command(arguments)


@pytest.mark.parametrize(
    "wrong", ["trian", "train --resmue", "inspect-tree", "eval model --n x", "train rollout.num_treez=1"]
)
def test_a_command_an_option_or_a_setting_that_is_none_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, USAGE)):
        check_command(wrong.split())


def test_json_on_a_page_is_json() -> None:
    shown = [block.text for text in PAGES.values() for block in blocks_of(text) if block.language == "json"]
    assert len(shown) >= 4
    for line in [line for text in shown for line in text.splitlines()]:
        json.loads(line)


def check_command(arguments: list[str]) -> None:
    """Parse a command without running it, and look its settings up."""
    name, *rest = arguments
    commands = page_of_commands.commands()
    assert name in commands
    commands[name].make_context(name, list(rest))
    settings = [re.match(r"(\w+)\.(\w+)=", word) for word in rest]
    assert unknown_settings([(found[1], found[2]) for found in settings if found and found[1] in SECTIONS]) == []
