"""The wheel installs into an empty environment and works outside the repository, without torch or vLLM."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREE = (
    '{"schema": "treegrpo.tree/1", "prompt_id": "p", "tree_id": 0, "nodes": ['
    '{"id": 0, "parent": null, "reward": null}, '
    '{"id": 1, "parent": 0, "reward": 1.0}, {"id": 2, "parent": 0, "reward": 0.0}]}\n'
)


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""Without the repository's own sources."""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "maturin", "build", "--release", "--quiet", "--out", folder / "dist", cwd=ROOT)
    [wheel] = (folder / "dist").glob("treegrpo-*-cp311-abi3-*.whl")
    uv = [sys.executable, "-m", "uv"]
    run(*uv, "venv", "--quiet", "--python", sys.executable, folder / "env", cwd=folder)
    bin_folder = folder / "env" / "bin"
    run(*uv, "pip", "install", "--quiet", "--python", bin_folder / "python", wheel, cwd=folder)
    return bin_folder


def test_inspect_tree_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(TREE)
    assert "tree-grpo" in run(installed / "treegrpo", "inspect-tree", "t.jsonl", cwd=tmp_path)
    assert run(installed / "treegrpo", "--version", cwd=tmp_path).startswith("treegrpo 0.")


def test_a_page_and_a_folder_of_pages_are_written_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(TREE)
    for name in ("t.html", "pages"):
        run(installed / "treegrpo", "inspect-tree", "t.jsonl", "--estimator", "parent", "--html", name, cwd=tmp_path)
    written = (tmp_path / "t.html").read_text() + (tmp_path / "pages" / "index.html").read_text()
    static = ROOT / "python" / "treegrpo_cli" / "page" / "static"
    assert [file.name for file in static.glob("*.[jc]s*") if file.read_text() not in written] == []


def test_the_python_functions_work_without_torch_and_vllm(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(TREE)
    code = """
import importlib.util, treegrpo_cli
assert not any(importlib.util.find_spec(name) for name in ("torch", "vllm", "transformers"))
trees = treegrpo_cli.score(treegrpo_cli.read_trees("t.jsonl"), estimator="parent")
print([node["advantage"] for node in trees[0].nodes])
"""
    assert run(installed / "python", "-c", code, cwd=tmp_path) == "[0.0, 0.5, -0.5]\n"


def test_plain_rows_become_scored_rows_without_torch_and_collate_says_that_it_needs_it(
    installed: Path, tmp_path: Path
) -> None:
    code = """
import treegrpo_cli as t
rows = [{"prompt_ids": [1], "completion_ids": [2, end], "reward": end} for end in (0, 1)]
rows = t.training_rows(t.score(t.from_chains(rows), "parent"))
print([row["advantages"].tolist() for row in rows], len(t.estimators()) > 3)
try: t.collate(rows)
except t.UserError as error: print(error)
"""
    assert run(installed / "python", "-c", code, cwd=tmp_path).splitlines() == [
        "[[0.0, 0.0, -0.5], [0.0, 0.0, 0.5]] True",
        "collate needs torch: pip install 'treegrpo[train]'",
    ]


def test_files_and_releases_that_the_wheel_advises_are_there(installed: Path, tmp_path: Path) -> None:
    code = "from treegrpo_cli.samplers import why_no_vllm as why; print(why('cpu'))"
    advice = run(installed / "python", "-c", code, cwd=tmp_path)
    command = advice[advice.index("(") + 1 : advice.rindex(")")]
    *install, release, override, file = shlex.split(command)
    assert (install, override) == (["uv", "pip", "install"], "--override")
    assert release in (ROOT / "requirements" / "cpu.in").read_text().splitlines()
    assert "torch==" in Path(file).read_text()
    assert ROOT not in Path(file).parents


def test_settings_are_explained_and_a_task_is_written_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    assert "Fixes the random choices of a run" in run(installed / "treegrpo", "config", "seed", cwd=tmp_path)
    run(installed / "treegrpo", "init", "own-environment", "agent", cwd=tmp_path)
    written = {"settings.toml", "questions.jsonl", "environment.py"}
    assert {path.name for path in (tmp_path / "agent").iterdir()} == written


def test_extras_that_are_advised_are_the_wheels_own(installed: Path, tmp_path: Path) -> None:
    sources = "".join(path.read_text() for path in (ROOT / "python").rglob("*.py"))
    advised = set(re.findall(r"pip install 'treegrpo\[(\w+)\]'", sources))
    code = "from importlib.metadata import metadata; print(*metadata('treegrpo').get_all('Provides-Extra'))"
    offered = set(run(installed / "python", "-c", code, cwd=tmp_path).split())
    assert {"train", "vllm"} <= advised <= offered


def test_a_command_that_needs_torch_says_what_to_install(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed / "treegrpo", "train", "model.path=m", "data.train=d"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "treegrpo: this command needs torch and transformers: pip install 'treegrpo[train]'\n"
