"""`treegrpo eval`: what it takes for a model and for settings, what it asks, and what it says."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from treegrpo_cli import read_trees
from treegrpo_cli.cli.evaluate import read_target
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter

from tests.command_line import refused, run
from tests.runs import small_run, write_lines

FAILING = """
def reward(prompts, completions):
    if "France" in prompts[0]:
        raise ValueError("no idea of France")
    return [float(len(completion) % 2) for completion in completions]
"""


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, with a checkpoint of each; beside it its settings and data."""
    folder = tmp_path_factory.mktemp("trained")
    changes: dict[str, Any] = {"train": {"num_steps": 2, "save_steps": 1, "eval_steps": 0}, "data": {"eval": ""}}
    settings = small_run(folder, tiny_model_dir, **changes)
    settings["rollout"]["max_turns"] = 1
    train(make_config(settings), Reporter(quiet=True))
    (folder / "c.toml").write_text(tomli_w.dumps(settings))
    return folder / "run"


def test_a_run_brings_its_settings_and_its_newest_checkpoint(trained: Path) -> None:
    config = read_target(str(trained), ["seed=5"])
    assert (config.model.path, config.seed) == (str(trained / "checkpoint-2"), 5)
    assert config.reward.functions == ["tests.runs:count_vowels"]
    assert read_target(str(trained), [], step=1).model.path == str(trained / "checkpoint-1")
    before = read_target(str(trained), [], step=0)
    assert before.model.path == make_config(json.loads(before.model_dump_json())).model.path
    assert "checkpoint" not in before.model.path


def test_a_model_takes_settings_as_rollout_does(trained: Path) -> None:
    file = str(trained.with_name("c.toml"))
    config = read_target("mine/model", [file, "seed=5"], data="x.jsonl", reward=["f1"], temperature=0.5)
    assert (config.model.path, config.data.eval, config.seed) == ("mine/model", "x.jsonl", 5)
    assert (config.reward.functions, config.rollout.temperature) == (["f1"], 0.5)
    assert config.rollout.max_turns == 1
    assert read_target(file, []).model.path not in ("", file)
    assert read_target("mine/model", []).model.path == "mine/model"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["RUN", "c.toml"], "a run has its own settings; give changes as KEY=VALUE"),
        (["RUN", "--step", "9"], "has no checkpoint of step 9, only of 1, 2"),
        (["model", "--step", "1"], "--step: model is not a run"),
        (["model", "a.toml", "b.toml"], "b.toml: only one settings file can be given"),
        (
            ["model", "--greedy", "--n", "2"],
            "--greedy cannot be combined with --temperature or more than one sample (--n)",
        ),
        (["model", "--greedy", "--temperature", "0.5"], "--greedy cannot be combined with --temperature"),
        (["model", "--n", "0"], "--n"),
        (["RUN", "--temperature", "-1"], "rollout.temperature"),
    ],
)
def test_what_cannot_be_is_one_line(trained: Path, arguments: list[str], complaint: str) -> None:
    done = run("eval", *(str(trained) if word == "RUN" else word for word in arguments))
    assert complaint in refused(done)


def test_a_run_without_checkpoints_says_so(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "config.toml", tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet; --step 0 evaluates"):
        read_target(str(tmp_path), [])


def test_a_greedy_evaluation_is_one_chain_a_question_of_the_data_it_is_given(trained: Path, tmp_path: Path) -> None:
    rows = [{"question": f"capital number {n}", "answer": "Lima"} for n in range(5)]
    data = write_lines(tmp_path / "other.jsonl", rows)
    first, second = (run("eval", trained, f"seed={seed}", "--data", data, "--quiet") for seed in (1, 2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    questions, reward = first.stdout.splitlines()
    assert questions == f"questions          5 of {data}, greedy, 1 sample each"
    assert reward.startswith("count_vowels ")
    assert "n = 5" in reward


def test_samples_have_pass_at_k_and_their_rollouts_are_a_tree_file(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "rollouts.jsonl.zst"
    asked = ["eval", trained, "--n", "3", "--threshold", "0.4", "--output", output, "--format", "json"]
    done = run(*asked)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rewards: dict[str, list[float]] = {}
    for tree in read_trees(output):
        root, leaf = tree.nodes
        assert root["parent"] is None
        rewards.setdefault(tree.prompt_id, []).append(leaf["reward"])
    assert {len(given) for given in rewards.values()} == {3}
    means = [math.fsum(given) / 3 for given in rewards.values()]
    assert report["rewards"]["count_vowels"]["mean"] == pytest.approx(math.fsum(means) / 3)
    assert report["pass"]["3"]["mean"] == pytest.approx(sum(max(given) >= 0.4 for given in rewards.values()) / 3)
    ones = [sum(reward >= 0.4 for reward in given) / 3 for given in rewards.values()]
    assert report["pass"]["1"]["mean"] == pytest.approx(sum(ones) / 3)
    assert list(report["pass"]) == ["1", "2", "3"]
    assert "1 leaf" in run("inspect-tree", output, "--limit", "1").stdout
    assert "exists; give another --output" in refused(run(*asked))


def test_what_fails_is_counted_named_and_left_out(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    reward = f"{tmp_path / 'failing.py'}:reward"
    done = run("eval", trained, "--n", "2", "--reward", reward, "--reward", "f1", "--quiet")
    assert done.returncode == 0, done.stderr
    lines = {line[:18].strip(): line[19:] for line in done.stdout.splitlines()}
    assert "n = 2" in lines["reward"]
    assert "n = 3" in lines["f1"]
    assert lines["unscored"] == "2 of 6 samples"
    assert lines["failed: reward"].startswith("2, prompt 00000001 first: ")
    assert lines["failed: reward"].endswith("raised ValueError: no idea of France")


def test_an_evaluation_without_any_reward_is_a_failed_run(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "never.py").write_text("def reward(completions): raise ValueError('never')")
    done = run("eval", trained, "--reward", f"{tmp_path / 'never.py'}:reward", "--format", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["failures"] == {"reward": 3}
    assert done.stderr.count("raised ValueError: never") == 1  # of three
    assert done.stderr.splitlines()[-1] == "treegrpo: no sample has a reward"


def test_a_dry_run_checks_and_prints_the_settings(trained: Path) -> None:
    done = run("eval", trained, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f'path = "{trained / "checkpoint-2"}"' in done.stdout
    missing = run("eval", trained, "--data", "missing.jsonl", "--reward", "f2", "--dry-run")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (2, 2)


def test_greedy_rollouts_ask_the_data_that_the_command_names(trained: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "five.jsonl", [{"question": f"q {n}", "answer": "a"} for n in range(5)])
    held_out = write_lines(tmp_path / "two.jsonl", [{"question": f"q {n}", "answer": "a"} for n in range(2)])
    asked = ["rollout", trained.with_name("c.toml"), f"data.eval={held_out}", "--greedy", "--quiet"]
    assert run(*asked).stdout.endswith("n = 2)\n")
    assert run(*asked, "--data", data).stdout.endswith("n = 5)\n")
