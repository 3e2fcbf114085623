"""Rewards that are flipped: by the leaf's key, with the true ones beside them, and never in evaluations."""

from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest
from treegrpo_cli import UserError, read_trees
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rewards.base import LeafReward
from treegrpo_cli.rewards.noise import told
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.docs.tree_fields import unnamed_fields
from tests.runs import check_metric_names, small_run

QUIET = Reporter(quiet=True)
KEYS = [list(key) for key in product(range(3), range(40), range(2), range(2), range(2), range(3))]


def settings_of(**reward: Any) -> Any:
    return make_config({"reward": reward}).reward


def test_so_many_rewards_are_told_as_their_mirror_image_and_the_true_ones_are_kept() -> None:
    for p in (0.1, 0.5, 1.0):
        config = settings_of(flip=p)
        leaves = [told(LeafReward(1.0), config, key) for key in KEYS]
        assert {leaf.true_reward for leaf in leaves} == {1.0}
        assert {leaf.reward for leaf in leaves} <= {0.0, 1.0}
        flipped = sum(leaf.reward == 0 for leaf in leaves) / len(leaves)
        assert abs(flipped - p) <= 4 * (p * (1 - p) / len(leaves)) ** 0.5
        assert leaves == [told(LeafReward(1.0), config, key) for key in KEYS]


def test_a_reward_between_the_two_is_mirrored_and_one_outside_has_no_image() -> None:
    config = settings_of(flip=1, flip_low=-1, flip_high=3)
    assert told(LeafReward(-0.5), config, [1]).reward == 2.5
    beyond = told(LeafReward(3.5), config, [1])
    assert beyond.reward is None
    assert beyond.failure is not None
    assert "reward 3.5 lies outside of reward.flip_low = -1" in beyond.failure.reason
    assert told(LeafReward(None), config, [1]) == LeafReward(None)
    assert told(LeafReward(3.5), settings_of(), [1]) == LeafReward(3.5)


def test_settings_without_a_mirror_are_refused() -> None:
    for reward in ({"flip": 1.5}, {"flip_low": 1, "flip_high": 1}, {"flip": 0.1, "flip_high": float("inf")}):
        with pytest.raises(UserError, match=r"reward.*flip"):
            settings_of(**reward)


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("flip")
    return small_run(
        folder,
        tiny_model_dir,
        reward={"functions": ["tests.runs:is_odd"]},
        train={"num_steps": 1, "prompts_per_step": 2, "eval_steps": 1},
    )


def with_flip(settings: dict[str, Any], flip: float, folder: Path) -> Any:
    reward = {**settings["reward"], "flip": flip}
    return make_config({**settings, "reward": reward, "output_dir": str(folder / "run")})


def leaves_of(trees: list[TreeRecord]) -> list[dict[str, Any]]:
    return [node for record in trees for node in record.nodes if node["reward"] is not None]


def test_files_have_both_rewards_and_a_resumed_rollout_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, output = tmp_path / "plain.jsonl", tmp_path / "told.jsonl"
    generate(with_flip(settings, 0, tmp_path), plain, QUIET)
    config = with_flip(settings, 0.5, tmp_path)
    generate(config, output, QUIET)
    true, given = (leaves_of(list(read_trees(path))) for path in (plain, output))
    assert [leaf["true_reward"] for leaf in given] == [leaf["reward"] for leaf in true]
    assert [leaf["token_ids"] for leaf in given] == [leaf["token_ids"] for leaf in true]
    assert not any("true_reward" in leaf for leaf in true)
    assert unnamed_fields(record.fields for record in read_trees(output)) == set()
    flips = [leaf["reward"] == 1 - leaf["true_reward"] for leaf in given]
    assert all(flip or leaf["reward"] == leaf["true_reward"] for flip, leaf in zip(flips, given, strict=True))
    assert 0 < sum(flips) < len(flips)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:2]))
    generate(config, output, QUIET, resume=True)
    again = leaves_of(sorted(read_trees(output), key=lambda record: (record.prompt_id, record.tree_id)))
    assert [leaf["reward"] for leaf in again] == [leaf["reward"] for leaf in given]


def test_metrics_tell_the_true_reward_and_evaluations_are_not_flipped(settings: dict[str, Any], tmp_path: Path) -> None:
    lines = {}
    for flip in (0.0, 1.0):
        config = with_flip(settings, flip, tmp_path / str(flip))
        train(config, QUIET)
        lines[flip] = [
            orjson.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_bytes().splitlines()
        ]
        check_metric_names(lines[flip])
    evaluated = [next(line["eval/is_odd"] for line in lines[flip] if "eval/is_odd" in line) for flip in lines]
    assert evaluated[0] == evaluated[1], "before the first step both have the same weights"
    steps = {flip: next(line for line in lines[flip] if "reward" in line) for flip in lines}
    assert steps[1.0]["true_reward"] == steps[0.0]["reward"] == steps[1.0]["rewards/is_odd/mean"]
    assert steps[1.0]["reward"] == pytest.approx(1 - steps[0.0]["reward"])
    assert steps[1.0]["frac_rewards_flipped"] == 1
    assert "true_reward" not in steps[0.0]
