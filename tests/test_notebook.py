"""The notebook of the examples still does what it shows; `python -m tests.notebook` runs it anew and saves it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytest.importorskip("nbclient")

from tests.notebook import NOTEBOOK

MAX_BYTES = 300_000


def texts(notebook: Any) -> list[str]:
    """What its cells print and show, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [str(output.get("text") or output.get("data", {}).get("text/plain")) for output in outputs]


def test_the_notebook_shows_what_it_gives_now(tmp_path: Path) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    command = [sys.executable, "-m", "tests.notebook", str(tmp_path / "fresh.ipynb")]  # Jupyter leaves sockets open
    subprocess.run(command, cwd=NOTEBOOK.parents[1], check=True, capture_output=True, timeout=200)
    fresh = nbformat.read(tmp_path / "fresh.ipynb", as_version=4)
    assert texts(fresh) == texts(stored)
    assert len(texts(stored)) >= 8
    assert [cell.get("execution_count") for cell in fresh.cells] == [c.get("execution_count") for c in stored.cells]


def test_the_notebook_is_small_and_its_drawings_stand_in_it() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    kinds = [kind for cell in stored.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())]
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    assert kinds.count("text/html") >= 2
    assert "image/png" in kinds
    assert not re.search(r"<script|/home/|/work/|/tmp/", NOTEBOOK.read_text(encoding="utf-8"))
