"""The command line in this process or in one of its own: what it printed, and its exit code."""

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.cli.app import main

HEAVY = ["torch", "vllm", "transformers", "datasets", "pandas", "pyarrow", "numpy", "pydantic", "ray", "httpx"]


def run(*arguments: str | Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, with streams and environment of its own."""
    streams = [io.TextIOWrapper(io.BytesIO(content), encoding="utf-8") for content in (stdin, b"", b"")]
    command = ["treegrpo", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        for name in ("COLUMNS", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", command)
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as ended:
            main()
    shown = []
    for stream in streams[1:]:
        stream.flush()
        shown.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(command, int(ended.value.code or 0), *shown)


def run_process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a shell does."""
    command = [sys.executable, "-m", "treegrpo_cli", *map(str, arguments)]
    return subprocess.run(command, text=True, timeout=120, **options)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed by its user's mistake."""
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    return line
