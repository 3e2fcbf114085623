"""`treegrpo init` writes folders that run as they stand."""

import errno
import json
import re
import tomllib
from pathlib import Path
from typing import TextIO

import pytest
from jsonschema import Draft202012Validator
from treegrpo_cli.config import Config
from treegrpo_cli.config.catalogue import settings
from treegrpo_cli.config.files import load_config
from treegrpo_cli.config.schema import json_schema
from treegrpo_cli.config.values import flat
from treegrpo_cli.starters import STARTERS, find_starter
from treegrpo_cli.starters.settings_file import settings_text
from treegrpo_cli.starters.tasks import OFTEN_TUNED

from tests.command_line import refused, run
from tests.tiny import make_tiny_model
from tests.zygote import zygote

TASKS = list(STARTERS)
TRAINED = ("own-tool", "chat")
"""Code of the user's, and a chat model's own format; the others differ from these in what `--dry-run` checks."""
SMALL = [
    "sampler.engine=transformers",
    "train.num_steps=1",
    "train.prompts_per_step=1",
    "rollout.num_trees=1",
    "rollout.max_turns=2",
    "rollout.max_turn_tokens=8",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for the prompts, which its tokenizer spells byte by byte."""
    return make_tiny_model(tmp_path_factory.mktemp("init-model"), hidden=32, layers=1, max_model_len=4096)


def test_the_tasks_are_listed_and_completed() -> None:
    lines = run("init").stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(TASKS)]] == TASKS
    assert TASKS == ["search", "calculator", "own-tool", "own-environment", "chat"]
    asked = {"COMP_WORDS": "treegrpo init own", "COMP_CWORD": "2", "_TREEGRPO_COMPLETE": "complete_bash"}
    assert run(**asked).stdout.splitlines() == ["own-tool", "own-environment"]


@pytest.mark.parametrize("task", TASKS)
def test_a_new_folder_passes_the_dry_run_and_some_train_a_step(task: str, tmp_path: Path, model: Path) -> None:
    made = run("init", task, tmp_path / "agent", "--model", model)
    assert made.returncode == 0, made.stderr
    dry = zygote().run(["train", "settings.toml", "--dry-run"], cwd=tmp_path / "agent")
    assert dry.returncode == 0, dry.stderr
    if task not in TRAINED:
        return
    done = zygote().run(["train", "settings.toml", *SMALL], cwd=tmp_path / "agent")
    assert done.returncode == 0, done.stderr
    [line] = (tmp_path / "agent" / "runs" / "first" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["step"] == 1
    assert {name: value for name, value in metrics.items() if name.startswith("failures/") and value} == {}


def test_what_to_run_next_is_said(tmp_path: Path) -> None:
    shown = run("init", "own-tool", tmp_path / "my agent").stdout.splitlines()
    assert shown[0] == "wrote " + ", ".join(
        str(tmp_path / "my agent" / name) for name in ("settings.toml", "questions.jsonl", "tool.py")
    )
    assert shown[1:] == [
        "next:",
        f"  cd '{tmp_path / 'my agent'}'",
        "  treegrpo doctor settings.toml",
        "  treegrpo train settings.toml --dry-run",
        "  treegrpo train settings.toml",
    ]


def test_without_a_folder_the_files_are_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cd " not in run("init", "search").stdout
    assert {path.name for path in tmp_path.iterdir()} == {"settings.toml", "questions.jsonl", "corpus.jsonl"}


def test_a_file_that_is_there_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text("mine")
    line = refused(run("init", "own-tool", tmp_path))
    assert line == f"treegrpo: {tmp_path / 'tool.py'}: is there already, and is not overwritten; nothing was written"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("tool.py", "mine")]


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").symlink_to(tmp_path / "elsewhere")
    assert "settings.toml: is there already" in refused(run("init", "calculator", tmp_path))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(run("init", "calculator", tmp_path / "file"))


def test_a_full_disk_leaves_none_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, *arguments: str, **options: str) -> TextIO:
        if path.name == "tool.py" and "x" in arguments:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(Path, "open", full)
    assert refused(run("init", "own-tool", tmp_path)) == f"treegrpo: {tmp_path}: No space left on device"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["x" * 300], "x" * 250),
        (["a", "--model", ""], "--model ''"),
        (["a", "--model", "x\udcff"], "its name is not UTF-8"),
    ],
)
def test_a_name_that_cannot_be_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line[:100] in refused(run("init", "chat", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_one_line_with_the_nearest() -> None:
    assert refused(run("init", "calculater")) == "treegrpo: no task is called 'calculater'; did you mean 'calculator'?"


def test_a_model_named_from_here_is_found_from_the_new_folder(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    run("init", "chat", "deep/agent", "--model", "model")
    assert load_config(tmp_path / "deep" / "agent" / "settings.toml").model.path == "../../model"
    run("init", "chat", "other", "--model", "some/hub-name")
    assert load_config(tmp_path / "other" / "settings.toml").model.path == "some/hub-name"


@pytest.mark.parametrize("task", TASKS)
def test_a_file_sets_what_its_task_says_and_shows_other_defaults_as_comments(task: str, tmp_path: Path) -> None:
    text = settings_text(find_starter(task))
    document = tomllib.loads(text)
    given = dict(find_starter(task).all_settings)
    options = given.pop("environment.options", {})
    assert flat(document) == given | {f"environment.options.{name}": value for name, value in options.items()}
    assert Draft202012Validator(json_schema()).is_valid(document)
    uncommented = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    tuned = flat(tomllib.loads(uncommented))
    assert {key: tuned[key] for key in OFTEN_TUNED} == {key: settings()[key].default for key in OFTEN_TUNED}
    (tmp_path / "tuned.toml").write_text(uncommented)
    (tmp_path / "as_written.toml").write_text(text)
    assert load_config(tmp_path / "tuned.toml") == load_config(tmp_path / "as_written.toml") != Config()


@pytest.mark.parametrize("task", TASKS)
def test_above_each_key_stands_the_first_sentence_of_its_meaning(task: str) -> None:
    lines = settings_text(find_starter(task)).splitlines()
    section = ""
    for number, line in enumerate(lines):
        section = found[1] + "." if (found := re.match(r"\[(\w+)\]", line)) else section
        if (key := re.match(r"(?:# )?([a-z_]+) = ", line)) and number > 15:
            summary = settings()[section + key[1]].summary
            above = " ".join(text.removeprefix("# ") for text in lines[max(0, number - 3) : number])
            assert above.endswith(summary)
    assert max(map(len, lines)) <= 120
