"""The example that trains SmolLM2, with the tests' tiny model in its place: data, worked problems, settings, a step."""

import doctest
import json
import re
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from treegrpo_cli.config.files import load_config, make_config
from treegrpo_cli.envs.calculator import calculate
from treegrpo_cli.rewards.answers import exact_match
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.types import Rollout, Task

from tests.runs import treegrpo

EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2"
sys.path.insert(0, str(EXAMPLE))
import prepare  # noqa: E402
import problems as problems_module  # noqa: E402
import run  # noqa: E402
from lessons import IGNORED, Encoder, WarmUp  # noqa: E402
from problems import FIRST, HELD_OUT, SECOND, TRAIN, WARM_UP, make_problems  # noqa: E402

SETTINGS = ["tree.toml", "chains.toml"]


@pytest.fixture(scope="module")
def world(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prepare.py` writes, from the tiny model and in two steps."""
    directory = tmp_path_factory.mktemp("world")
    prepare.make_data(directory, 0)
    prepare.make_policy(tiny_model_dir, directory / "policy", 0, WarmUp(num_problems=4, problems_per_step=2))
    return directory


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def overrides(world: Path, output: Path) -> list[str]:
    return [
        f"output_dir={output}",
        f"model.path={world / 'policy'}",
        f"data.train={world / 'train.jsonl'}",
        f"data.eval={world / 'eval.jsonl'}",
    ]


def test_every_answer_is_what_its_two_calculations_give(world: Path) -> None:
    for row in rows(world / "train.jsonl") + rows(world / "eval.jsonl"):
        first, second = row["expressions"]
        assert second.split()[0] == calculate(first)
        assert calculate(second) == row["answer"]
        assert int(row["answer"]) > 0
        numbers = re.findall(r"\d+", row["question"])
        assert sorted(numbers) == sorted([*first.split()[::2], second.split()[2]])


def test_held_out_problems_share_neither_kinds_nor_numbers_with_those_of_training(world: Path) -> None:
    asked = {name: [row["question"] for row in rows(world / f"{name}.jsonl")] for name in ("train", "eval")}
    kinds = {name: {re.sub(r"\d+", "#", question) for question in asked[name]} for name in asked}
    numbers = {name: {n for question in asked[name] for n in re.findall(r"\d+", question)} for name in asked}
    assert not kinds["train"] & kinds["eval"]
    assert not numbers["train"] & numbers["eval"]
    assert (len(kinds["train"]), len(kinds["eval"])) == (54, 27)
    assert all(len(set(questions)) == len(questions) for questions in asked.values())


def test_training_sees_every_way_of_telling_a_step() -> None:
    assert {first for first, _ in TRAIN} == set(FIRST)
    assert {second for _, second in TRAIN} == set(SECOND)
    assert set(WARM_UP) < set(TRAIN)
    assert not set(TRAIN) & set(HELD_OUT)


@pytest.mark.parametrize(("answer", "reward"), [("140", 1.0), (" 140 ", 1.0), ("14", 0.0), ("1400", 0.0)])
def test_the_reward_is_for_the_right_number_alone(answer: str, reward: float) -> None:
    turns = (("<calculate>20 * 7</calculate>", "140"), (f"<answer>{answer}</answer>", ""))
    rollout = Rollout(Task("20 times 7?", ground_truth="140"), "", (), "", turns, ())
    assert exact_match(rollout) == reward


def test_a_worked_problem_is_two_calls_and_the_answer_and_only_they_are_learnt(tokenizer: Any) -> None:
    [problem] = make_problems(WARM_UP, 1, "0", odd=True)
    ids, labels = Encoder(tokenizer, "", 64).encode(problem)
    learnt = tokenizer.decode([label for label in labels if label != IGNORED])
    first, second = problem.expressions
    assert learnt == (f"<calculate>{first}</calculate><calculate>{second}</calculate><answer>{problem.answer}</answer>")
    text = tokenizer.decode(ids)
    assert problem.question in text
    assert text.count("<information>") == 2
    assert f"<information>{calculate(first)}</information>" in text
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_the_warm_up_moves_the_weights_and_is_the_same_for_a_seed(
    world: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = WarmUp(num_problems=4, problems_per_step=2)
    prepare.make_policy(tiny_model_dir, tmp_path / "again", 0, settings)
    before, policy, again = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (tiny_model_dir, world / "policy", tmp_path / "again")
    )
    assert all(torch.equal(policy[name], again[name]) for name in policy)
    assert not all(torch.equal(policy[name], before[name]) for name in policy)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_are_ready_to_train(name: str, world: Path, tmp_path: Path) -> None:
    result = treegrpo("train", str(EXAMPLE / name), *overrides(world, tmp_path / "run"), "--dry-run")
    assert (result.returncode, result.stderr) == (0, "")


def test_chains_differ_from_trees_in_their_shape_alone() -> None:
    trees, chains = (load_config(EXAMPLE / name) for name in SETTINGS)
    leaves = trees.rollout.num_trees * trees.rollout.num_leaves
    rollout = chains.rollout.model_copy(
        update={"num_trees": trees.rollout.num_trees, "num_rounds": 1, "num_expansions": 1}
    )
    assert (chains.rollout.num_trees, chains.rollout.num_rounds) == (leaves, 0)
    assert trees == chains.model_copy(update={"output_dir": trees.output_dir, "rollout": rollout})


def test_a_step_of_the_settings_trains_a_model(world: Path, tmp_path: Path) -> None:
    config = load_config(EXAMPLE / "tree.toml", overrides(world, tmp_path / "run")).model_dump(exclude_unset=True)
    config["sampler"] = {"engine": "transformers"}
    config["model"] |= {"dtype": "float32", "device": "cpu"}
    config["train"] |= {"num_steps": 1, "prompts_per_step": 2, "eval_steps": 0}
    train(make_config(config), Reporter(quiet=True))
    [line] = [orjson.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()]
    assert line["tree/num_leaves"] == 2 * 4 * 2
    assert (tmp_path / "run" / "checkpoint-1" / "model.safetensors").exists()


def test_the_one_command_makes_what_is_missing_once_and_hands_the_rest_to_train(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[str]] = []

    def make(arguments: list[str]) -> None:
        made.append(arguments)
        (tmp_path / "policy").symlink_to(world / "policy")

    monkeypatch.setattr(run, "WORLD", tmp_path)
    monkeypatch.setattr(prepare, "main", make)
    asked = ["--settings", str(EXAMPLE / "chains.toml"), *overrides(world, tmp_path / "run"), "--dry-run"]
    assert [run.main(asked), run.main(asked)] == [0, 0]
    assert made == [[str(tmp_path)]]
    assert run.main([*asked, "rollout.num_trees=0"]) == 2


def test_the_example_in_a_docstring_holds() -> None:
    assert doctest.testmod(problems_module) == (0, 2)
