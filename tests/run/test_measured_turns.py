"""Entropies and unsure turns in rollouts and training: asked for where something reads them, kept in the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from treegrpo_cli import read_trees
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.run.evaluate import evaluation_config
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.types import Action, Message, StepResult, Task

from tests.runs import small_run, treegrpo

HERE = "tests.run.test_measured_turns"
SHAPE = {"num_trees": 2, "num_expansions": 2, "num_rounds": 2, "max_turns": 3, "max_turn_tokens": 8}


class Listening:
    """Goes on whatever is said, also behind a turn that met its limit."""

    tools = ()
    takes_cut_turns = True

    async def reset(self, task: Task) -> tuple[str, list[Message]]:
        return "", [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        return state + action.text, StepResult(({"role": "user", "content": "again"},), done="e" in action.text)


def undecided(columns: Any, candidates: Any) -> Any:
    parent, entropy = columns["parent"], columns["entropy"]
    return np.array([entropy[parent == candidate].mean() for candidate in candidates])


undecided.needs_rewards, undecided.needs_entropies = False, True  # type: ignore[attr-defined]


def settings_of(folder: Path, model: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    settings = small_run(folder, model, **changes)
    settings["environment"] = {"name": f"{HERE}:Listening"}
    settings["rollout"] = {**settings["rollout"], **SHAPE, **changes.get("rollout", {})}
    return settings


def roll_out(folder: Path, model: Path, *arguments: str, **changes: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The nodes of each tree that the command wrote."""
    (folder / "c.toml").write_text(tomli_w.dumps(settings_of(folder, model, **changes)))
    done = treegrpo("rollout", "c.toml", "--output", "t.jsonl", "--quiet", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    trees = [json.loads(line) for line in (folder / "t.jsonl").read_text().splitlines()]
    return [tree["nodes"] for tree in sorted(trees, key=lambda tree: (tree["prompt_id"], tree["tree_id"]))]


RULES: list[dict[str, Any]] = [
    {"rule": "entropy"},
    {"rule": "entropy", "first_tokens": 3, "temperature": 0.5},
    {"rule": "bernoulli"},
    {"rule": "bernoulli", "p0": 1.0},
    {"rule": f"{HERE}:undecided"},
]


@pytest.mark.parametrize("selection", RULES, ids=str)
def test_rules_that_read_entropies_get_them_in_a_rollout(
    tmp_path: Path, tiny_model_dir: Path, selection: dict[str, Any]
) -> None:
    trees = roll_out(tmp_path, tiny_model_dir, selection=selection)
    assert len(trees) == 6
    for nodes in trees:
        assert "entropy" not in nodes[0]
        assert all(0 < node["entropy"] < 6 for node in nodes[1:])
    assert max(node["round"] for nodes in trees for node in nodes[1:]) == 2


def test_the_rule_branches_where_the_file_says_that_turns_were_least_decided(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    rollout = {"num_rounds": 1, "num_expansions": 1}
    for nodes in roll_out(tmp_path, tiny_model_dir, selection={"rule": "entropy"}, rollout=rollout):
        first = [node for node in nodes if node.get("round") == 0]
        (branch,) = [node for node in nodes if node.get("round") == 1 and nodes[node["parent"]].get("round", 0) == 0]
        widest = max(first, key=lambda node: node["entropy"])
        assert branch["parent"] == widest["parent"]


def test_nobody_pays_for_entropies_that_nothing_reads(tmp_path: Path, tiny_model_dir: Path) -> None:
    for nodes in roll_out(tmp_path, tiny_model_dir, selection={"rule": "confidence"}):
        assert all("entropy" not in node for node in nodes)


def test_entropies_are_kept_for_later_where_the_user_says_so(tmp_path: Path, tiny_model_dir: Path) -> None:
    roll_out(tmp_path, tiny_model_dir, rollout={"entropies": True})
    trees = list(read_trees(tmp_path / "t.jsonl"))
    forest = to_forest(trees)
    known = [node.get("entropy", np.nan) for tree in trees for node in tree.nodes]
    np.testing.assert_allclose(forest.columns()["entropy"], known)
    assert (np.isnan(known) == (forest.columns()["parent"] == 2**32 - 1)).all()
    scores = forest.score("sibling", {"value": "child-softmax"})
    assert np.isfinite(scores.advantage).any()


def test_training_weighs_turns_by_their_entropies(tmp_path: Path, tiny_model_dir: Path) -> None:
    settings = settings_of(tmp_path, tiny_model_dir, selection={"rule": "entropy"}, train={"eval_steps": 2})
    settings["advantage"] = {"estimator": "sibling", "value": "child-softmax", "tau": 0.5}
    train(make_config(settings), Reporter(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["tree/frac_zero_advantage_nodes"] < 1 for row in rows if "tree/num_nodes" in row] == [True] * 4


CUT = {"rule": "confidence", "window": 4, "stop_below": -3.2}


def test_unsure_turns_close_their_branch_in_a_rollout(tmp_path: Path, tiny_model_dir: Path) -> None:
    trees = roll_out(tmp_path, tiny_model_dir, selection=CUT)
    pruned = [node for nodes in trees for node in nodes if node["status"] == "pruned"]
    others = [node for nodes in trees for node in nodes[1:] if node["status"] != "pruned"]
    assert len(pruned) > 3 < len(others)
    for node in pruned:
        assert node["reward"] is None
        assert not node["kept"]
        assert np.mean(node["logprobs"][-4:]) < -3.2
        assert not node["observation"]
    for node in others:
        logprobs = node["logprobs"]
        assert all(np.mean(logprobs[end - 4 : end]) >= -3.2 for end in range(4, len(logprobs)))
    forest = to_forest(list(read_trees(tmp_path / "t.jsonl")))
    assert (forest.columns()["status"] == 4).sum() == len(pruned)
    scores = forest.score("tree-grpo", {})
    assert (scores.num_leaves[forest.columns()["status"] == 4] == 0).all()


def test_what_is_cut_does_not_depend_on_how_turns_are_batched(tmp_path: Path, tiny_model_dir: Path) -> None:
    found = []
    for number, changes in enumerate(({}, {"sampler": {"max_num_seqs": 1}}, {"rollout": {"schedule": "lock-step"}})):
        folder = tmp_path / str(number)
        folder.mkdir()
        trees = roll_out(folder, tiny_model_dir, selection=CUT, **changes)
        found.append([[(node["token_ids"], node["status"], node["parent"]) for node in nodes] for nodes in trees])
    assert found[0] == found[1] == found[2]


def test_steps_count_turns_that_were_cut(tmp_path: Path, tiny_model_dir: Path) -> None:
    settings = settings_of(tmp_path, tiny_model_dir, selection=CUT, train={"eval_steps": 4})
    train(make_config(settings), Reporter(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("tree/num_pruned", 0) for row in rows) > 0


def test_no_turn_is_cut_in_an_evaluation(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = make_config(settings_of(tmp_path, tiny_model_dir, selection=CUT))
    world: Any = type("World", (), {"environment": None, "tokenizer": None})()
    world.dialect = type("Dialect", (), {"stop": ()})()
    sampler: Any = type("Sampler", (), {"max_model_len": 64})()
    assert Player(world, sampler, config).params.stop_below == -3.2
    assert Player(world, sampler, evaluation_config(config)).params.stop_below is None
