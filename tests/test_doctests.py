"""The examples that stand in docstrings are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "python" / "treegrpo_cli"
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_give_what_they_say(path: Path) -> None:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    found = doctest.testmod(import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


def test_examples_in_the_docs_give_what_they_say() -> None:
    pages = [path for path in sorted((PACKAGE.parent.parent / "docs").rglob("*.md")) if ">>>" in path.read_text()]
    assert pages
    for page in pages:
        assert doctest.testfile(str(page), module_relative=False).failed == 0, page.name
