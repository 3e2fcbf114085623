"""The README's files, commands and examples, run as they stand in a folder of their own."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from treegrpo_cli.config.files import load_config

from tests.docs.blocks import blocks_of, commands_of, named_settings, unknown_settings
from tests.zygote import zygote

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks_of(README)
FILES = [(block.file, block.text) for block in BLOCKS if block.file]
SNIPPETS = [block.text for block in BLOCKS if block.language == "python"]
COMMANDS = commands_of(README)
MAKE = [command for command in COMMANDS if command[0] == "make"]


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's files, a model under the name they use, and the examples."""
    folder = tmp_path_factory.mktemp("readme")
    for name, text in FILES:
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copytree(tiny_model_dir, folder / "model")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def test_the_readme_has_files_commands_and_examples() -> None:
    assert [name for name, _ in FILES] == ["settings.toml", "questions.jsonl", "corpus.jsonl"]
    assert len(SNIPPETS) == 2
    assert MAKE == [["make", "demo"], ["make", "test"]]
    assert len(COMMANDS) >= 12


def test_commands_and_examples_run_in_the_order_in_which_they_stand(folder: Path) -> None:
    for command in COMMANDS:
        if command in MAKE:
            continue
        program, *arguments = command
        assert program == "treegrpo"
        if arguments[0] in ("doctor", "rollout", "train", "eval") and "--dry-run" not in arguments:
            arguments.append("sampler.engine=transformers")  # the engines agree; this one starts at once
        done = zygote().run(arguments, cwd=folder)
        if "--dry-run" in arguments:  # of the example for a GPU: its data and its retriever are not here
            assert done.returncode == 2
            assert [line for line in done.stderr.splitlines() if not line.startswith("treegrpo: ")] == []
            for missing in ("train.parquet", "test.parquet", "model.path", "retriever"):
                assert missing in done.stderr
            continue
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    for snippet in SNIPPETS:
        subprocess.run([sys.executable, "-c", snippet], cwd=folder, check=True, timeout=60)
    assert (folder / "runs" / "mine" / "checkpoint-2" / "model.safetensors").exists()


def test_the_tree_that_the_readme_shows_is_the_one_that_is_drawn() -> None:
    command = ["inspect-tree", "examples/trees.jsonl", "--prompt-id", "00000784", "--tree-id", "0"]
    drawn = zygote().run(command, cwd=ROOT, COLUMNS="80")
    assert f"```text\n{drawn.stdout.strip()}\n```" in README


def test_links_and_paths_of_the_readme_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 8
    assert [link for link in local if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_links_and_settings_of_the_docs_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    local = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []
    assert unknown_settings(named_settings(text)) == []


def test_settings_that_the_docs_show_can_be_loaded(tmp_path: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    shown = [text for page in pages for text in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)]
    assert len(shown) >= 5
    for text in shown:
        (tmp_path / "shown.toml").write_text(text, encoding="utf-8")
        load_config(tmp_path / "shown.toml")


def test_anchors_of_links_to_pages_are_headings() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            text = (page.parent / path).read_text(encoding="utf-8") if path else page.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings], page


def test_the_readme_counts_families_as_their_page_does() -> None:
    page = (ROOT / "docs" / "reference" / "families.md").read_text(encoding="utf-8")
    [counts] = re.findall(r"^(\d+) trees; (\d+) chains; (\d+) refused", page, flags=re.MULTILINE)
    told = re.findall(r"(\d+) families train on trees, (\d+) on chains, (\d+) are refused", " ".join(README.split()))
    assert told == [counts]


def test_settings_that_the_readme_names_exist() -> None:
    assert len(named_settings(README)) > 20
    assert unknown_settings(named_settings(README)) == []


def test_metrics_that_the_readme_names_exist() -> None:
    from treegrpo_cli.run.metric_names import all_metrics

    known = " ".join(metric.name for metric in all_metrics())
    [paragraph] = re.findall(r"\*\*Metrics\*\*(.*?)\n\n", README, flags=re.DOTALL)
    named = [name for name in re.findall(r"`([\w/]+(?:/…)?)`", paragraph) if name != "eval/…"]
    assert len(named) > 8
    assert [name for name in named if name.removesuffix("…") not in known] == []


def test_the_demo_draws_the_tree_whose_leaves_disagree_most() -> None:
    drawn = subprocess.run(
        [sys.executable, "examples/telling_tree.py", "examples/trees.jsonl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.count("nodes · ") == 1
    assert "mean reward 1.000" not in drawn.stdout
