"""An examination -> a file to attach to a bug: JSON, written whole, without passwords."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli import __version__
from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.data.outputs import check_output
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.doctor.examine import Examination
from treegrpo_cli.errors import FileError

VARIABLES = re.compile(r"(CUDA|NVIDIA|NCCL|OMP|VLLM|TORCH|PYTORCH|HF|TREEGRPO)_\w+")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH")


def check_report(path: Path) -> None:
    """Raise FileError where no file can be written under this name: a device would be replaced by one."""
    check_output(path)


def write_report(path: Path, examination: Examination) -> None:
    """Write what was found, the settings, the variables that libraries read, and the end of the engine's log.

    Raises FileError where the file cannot be written.
    """
    content = orjson.dumps(without_passwords(contents(examination)), option=orjson.OPT_INDENT_2)
    try:
        write_whole(path, content + b"\n")
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from None


def contents(examination: Examination) -> dict[str, Any]:
    """Return what the report holds."""
    config = examination.config
    return {
        "treegrpo": __version__,
        "findings": [
            {"section": found.section, "subject": found.subject, "verdict": found.verdict, "said": found.said}
            for found in examination.findings
        ],
        "settings": None if config is None else config.model_dump(mode="json"),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if VARIABLES.fullmatch(name) and not SECRET.search(name)
        },
        "engine_log": examination.engine_log,
    }
