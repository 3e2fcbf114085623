"""The README and the first pages of docs/: files, commands and examples, run as they stand in a folder of their own."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from treegrpo_cli.config.files import load_config

from tests.docs.blocks import blocks_of, commands_of, named_settings, unknown_settings
from tests.tiny import make_tiny_model
from tests.zygote import zygote

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN, REWARD, ENVIRONMENT, GPU = (
    (DOCS / "how-to" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("run", "own-reward", "own-environment", "gpu")
)
IDEA = (DOCS / "concepts" / "how-it-works.md").read_text(encoding="utf-8")
FILES = [(block.file, block.text) for block in blocks_of(RUN) if block.file]
COMMANDS = [command for page in (RUN, REWARD, ENVIRONMENT, IDEA, GPU) for command in commands_of(page)]
SMALL = ["sampler.engine=transformers", "rollout.max_turns=2", "rollout.max_turn_tokens=8"]
SMALL += ["rollout.num_trees=2", "train.num_steps=1", "train.prompts_per_step=1"]


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page on runs, a model under the name they use, and the examples."""
    folder = tmp_path_factory.mktemp("readme")
    for name, text in FILES:
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copytree(tiny_model_dir, folder / "model")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def test_the_page_on_runs_has_files_and_commands() -> None:
    assert [name for name, _ in FILES] == ["settings.toml", "questions.jsonl", "corpus.jsonl"]
    assert len(COMMANDS) >= 16
    assert sum("--reward" in command for command in COMMANDS) == 1
    assert sum("examples/gpu" in " ".join(command) for command in COMMANDS) == 1


def test_commands_of_the_pages_on_runs_run_in_the_order_in_which_they_stand(folder: Path) -> None:
    done: list[list[str]] = []
    for command in COMMANDS:
        if command not in done:  # a page may say again what another one says
            run_as_shown(command, folder)
            done.append(command)
    assert (folder / "runs" / "mine" / "checkpoint-2" / "model.safetensors").exists()


def run_as_shown(command: list[str], folder: Path) -> None:
    """Run a command as it stands on a page, on the engine that starts at once: the engines agree."""
    program, *arguments = command
    assert program == "treegrpo"
    if arguments[0] in ("doctor", "rollout", "train", "eval") and "--dry-run" not in arguments:
        arguments.append("sampler.engine=transformers")
    done = zygote().run(arguments, cwd=folder)
    if "--dry-run" not in arguments:
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        return
    assert done.returncode == 2  # the example for a GPU: its data and its retriever are not here
    assert [line for line in done.stderr.splitlines() if not line.startswith("treegrpo: ")] == []
    for missing in ("train.parquet", "test.parquet", "model.path", "retriever"):
        assert missing in done.stderr


def test_commands_of_the_readme_lead_to_a_page_in_the_browser(tmp_path: Path) -> None:
    commands = commands_of(README)
    model = make_tiny_model(tmp_path / "model", hidden=32, layers=1, max_model_len=4096)
    assert commands[:2] == [["make", "demo"], ["make", "test"]]
    assert [command[:2] for command in commands[2:4]] == [["pip", "install"], ["treegrpo", "init"]]
    here = tmp_path
    for program, *arguments in commands[3:]:
        if program == "cd":
            here /= arguments[0]
            continue
        small = [f"model.path={model}", *SMALL] if arguments[0] == "train" else []
        done = zygote().run([*arguments, *small], cwd=here)
        assert (program, done.returncode) == ("treegrpo", 0), done.stderr
    assert (here / "trees.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_tree_that_the_docs_show_is_the_one_that_is_drawn() -> None:
    command = ["inspect-tree", "examples/trees.jsonl", "--prompt-id", "00000784", "--tree-id", "0"]
    drawn = zygote().run(command, cwd=ROOT, COLUMNS="80")
    assert f"```text\n{drawn.stdout.strip()}\n```" in IDEA


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_pictures_and_settings_of_pages_at_the_root_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text) + re.findall(r'\b(?:src|srcset)="([^"]+)"', text)
    local = [link for link in links if "://" not in link]
    assert len(local) > (30 if name == "README.md" else 0)
    assert [link for link in local if not (ROOT / link).exists()] == []
    assert unknown_settings(named_settings(text)) == []


def test_figures_of_the_readme_stand_where_it_says_they_were_measured() -> None:
    [section] = re.findall(r"## In figures\n(.*?)\n## ", README, flags=re.DOTALL)
    measured = "".join(
        (DOCS / name).read_text(encoding="utf-8") for name in ("measured.md", "concepts/every-token-once.md")
    )
    figures = re.findall(r"\d+\.\d+", re.sub(r"\]\(.*?\)", "", section))
    assert len(figures) >= 8
    assert [figure for figure in figures if figure not in measured] == []


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
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]:
        for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            text = (page.parent / path).read_text(encoding="utf-8") if path else page.read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings], page


def test_families_are_counted_as_their_page_counts_them() -> None:
    page = (DOCS / "reference" / "families.md").read_text(encoding="utf-8")
    once = (DOCS / "concepts" / "every-token-once.md").read_text(encoding="utf-8")
    [counts] = re.findall(r"^(\d+) trees; (\d+) chains; (\d+) refused", page, flags=re.MULTILINE)
    told = re.findall(r"(\d+) families train on trees, (\d+) on chains, (\d+) are refused", " ".join(once.split()))
    assert told == [counts]


def test_pages_name_settings() -> None:
    assert len(named_settings(IDEA)) > 8
    assert len(named_settings("".join(page.read_text(encoding="utf-8") for page in PAGES))) > 100


def test_metrics_that_the_page_on_runs_names_exist() -> None:
    from treegrpo_cli.run.metric_names import all_metrics

    known = " ".join(metric.name for metric in all_metrics())
    [paragraph] = re.findall(r"\*\*Metrics\*\*(.*?)\n\n", RUN, flags=re.DOTALL)
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
