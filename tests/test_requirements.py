"""The pinned packages install from wheels on Linux x86-64, on every Python that is supported."""

import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parent.parent / "requirements"
PLATFORM = "x86_64-manylinux_2_31"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("engine", ["core", "cpu", "gpu"])
def test_every_pinned_package_has_a_wheel(engine: str, python: str, tmp_path: Path) -> None:
    target = ["--target", str(tmp_path), "--python-version", python, "--python-platform", PLATFORM]
    wheels = ["--only-binary", ":all:", "--no-deps", "-r", str(REQUIREMENTS / f"{engine}.txt")]
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "--dry-run", *target, *wheels],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("python", ["3.11", "3.14"])
def test_the_pinned_packages_for_a_gpu_do_not_contradict_each_other(python: str) -> None:
    pinned = str(REQUIREMENTS / "gpu.txt")
    target = ["--python-version", python, "--python-platform", PLATFORM]
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *target, "-c", pinned, pinned],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
