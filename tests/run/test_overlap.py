"""Steps that overlap: which weights may sample what, and that nothing is lost, doubled, early or silent."""

import asyncio
import os
import signal
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from treegrpo_cli import read_trees
from treegrpo_cli._core import Forest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config, make_config
from treegrpo_cli.errors import FailedRunError, Stopped, UserError
from treegrpo_cli.models.pretrained import load_causal_lm
from treegrpo_cli.rollout.disagreement import RewardsSoFar
from treegrpo_cli.rollout.gate import Gate
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.staleness import staleness_metrics
from treegrpo_cli.train.checkpoint_folders import checkpoints
from treegrpo_cli.types import Completion, SamplingParams

from tests.run.overlapping import NotingParts, Story, overlapping_run
from tests.runs import check_metric_names, small_run

QUIET = Reporter(quiet=True)


def lines_of(config: Config) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_bytes().splitlines()]


def tokens_of(config: Config, step: int) -> list[list[list[int]]]:
    """Token ids of each node of each tree of a step."""
    trees = read_trees(Path(config.output_dir) / "trees" / f"step-{step:05d}.jsonl.zst")
    return [[node["token_ids"] for node in tree.nodes] for tree in trees]


def versions_that_may_sample(step: int, max_staleness: int) -> range:
    """The definition: of step 1, 2, ... the weights behind the step before it, and so many steps before that."""
    return range(max(step - 1 - max_staleness, 0), step)


def step_of_each(trained: list[tuple[list[int], list[int]]]) -> dict[int, int]:
    """Prompt -> the step that trained on it. Each prompt has one, and steps follow each other without a gap."""
    in_order = [prompt for prompts, _ in trained for prompt in prompts]
    assert in_order == list(range(len(in_order)))
    return {prompt: step for step, (prompts, _) in enumerate(trained, 1) for prompt in prompts}


def check_story(story: Story, max_staleness: int) -> None:
    """Nothing was sampled by weights that may not, whether it was trained on or not."""
    steps = step_of_each(story.trained)
    last = len(story.trained)
    for what, prompt, version in story.events:
        if what == "sample":
            assert version in versions_that_may_sample(steps.get(prompt, last + 1), max_staleness)
    for step, (_, versions) in enumerate(story.trained, 1):
        assert set(versions) <= set(versions_that_may_sample(step, max_staleness))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "little room": {"rollout": {"max_live_trees": 3}},
    "trees that wait for each other": {
        "rollout": {"max_live_trees": 3, "num_rounds": 2},
        "budget": {"prompt_leaves": 5},
    },
    "fresh prompts for dead ones": {"advantage": {"dead_prompts": "refill"}},
    "expansions dealt across prompts": {"rollout": {"allocation": "uncertain", "rescue": "dead"}},
    "lock-step": {"rollout": {"schedule": "lock-step"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_is_trained_once_in_order_by_trees_that_are_young_enough(
    tiny_model_dir: Path, tmp_path: Path, kind: str
) -> None:
    """Latencies are random and differ; the engine's turns depend on context and seed alone, so trees may not."""
    grown, trained = {}, {}
    for max_staleness, turn_s, update_s in ((0, 0.0, 0.0), (1, 0.004, 0.02), (2, 0.002, 0.04)):
        folder = tmp_path / f"{max_staleness}"
        folder.mkdir()
        parts = NotingParts(turn_s=turn_s, update_s=update_s, seed=max_staleness)
        sections = {name: dict(section) for name, section in KINDS[kind].items()}
        config = overlapping_run(folder, tiny_model_dir, max_staleness, **sections)
        train(config, QUIET, parts=parts)
        check_story(parts.story, max_staleness)
        grown[max_staleness] = [tokens_of(config, step) for step in range(1, 6)]
        trained[max_staleness] = [prompts for prompts, _ in parts.story.trained]
    assert trained[1] == trained[2] == trained[0]
    if kind != "expansions dealt across prompts":  # they go by the rewards of steps that had trained
        assert grown[1] == grown[2] == grown[0]


def test_the_next_step_grows_while_this_one_trains_and_goes_on_under_new_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """With room for one tree, the next step's first turn comes when this one's last tree has ended."""
    parts = NotingParts(turn_s=0.01, update_s=0.0)
    parts.trainer.on_update = lambda step: step < 5 and parts.story.wait_for("sample", 2 * step)
    config = overlapping_run(tmp_path, tiny_model_dir, 1, rollout={"max_live_trees": 1, "max_turns": 6})
    train(config, QUIET, parts=parts)
    check_story(parts.story, 1)
    for step in (1, 2, 3, 4):
        until_trained = parts.story.events[: [event[:2] for event in parts.story.events].index(("updated", step))]
        assert any(what == "sample" and number >= 2 * step for what, number, _ in until_trained)
    lines = lines_of(config)
    assert any(line["staleness/frac_mixed_trees"] > 0 for line in lines)
    for line, (_, versions) in zip(lines, parts.story.trained, strict=True):
        assert line["staleness/max"] <= 1
        assert line["staleness/max"] <= line["step"] - 1 - min(versions)
        assert (line["staleness/mean"] > 0) == (line["staleness/max"] > 0)
    written = [
        {node["policy_version"] for tree in trees for node in tree.nodes[1:]}
        for trees in (list(read_trees(path)) for path in sorted((tmp_path / "run" / "trees").iterdir()))
    ]
    assert written == [set(versions) for _, versions in parts.story.trained]


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_a_step_knows_the_rewards_of_all_steps_that_had_trained_when_it_began(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_staleness: int
) -> None:
    parts, of_step = NotingParts(), Player.of_step
    known: list[tuple[int, int]] = []

    def noted(self: Player, rewards_so_far: RewardsSoFar, live_trees: asyncio.Semaphore) -> Player:
        known.append((parts.sampler.policy_version, rewards_so_far.count))
        return of_step(self, rewards_so_far, live_trees)

    monkeypatch.setattr(Player, "of_step", noted)
    config = overlapping_run(tmp_path, tiny_model_dir, max_staleness)
    train(config, QUIET, parts=parts)
    leaves = [0, *(int(line["tree/num_leaves"]) for line in lines_of(config))]
    rewards_behind = list(accumulate(leaves))
    for step, (version, count) in enumerate(known, 1):
        assert version in versions_that_may_sample(step, max_staleness)
        assert count in rewards_behind[version : version + 2]  # the weights may be on their way


def test_in_turns_nothing_grows_beside_an_update(tiny_model_dir: Path, tmp_path: Path) -> None:
    parts = NotingParts()
    config = overlapping_run(tmp_path, tiny_model_dir, 0)
    train(config, QUIET, parts=parts)
    assert all(parts.story.between(("update", step), ("updated", step)) == [] for step in range(1, 6))
    assert not any(name.startswith("staleness/") for line in lines_of(config) for name in line)


def test_live_trees_are_bounded_over_all_steps_together(tiny_model_dir: Path, tmp_path: Path) -> None:
    parts = NotingParts(turn_s=0.004, update_s=0.03)
    most, chains = [], {"max_live_trees": 3, "num_rounds": 0}
    parts.on_sample = lambda _: most.append(parts.sampler.num_inside)
    train(overlapping_run(tmp_path, tiny_model_dir, 2, rollout={**chains, "max_turns": 3}), QUIET, parts=parts)
    assert max(most) == 3  # a tree without rounds is one chain


def test_an_evaluation_has_the_engine_and_the_weights_of_its_step_for_itself(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    parts = NotingParts(turn_s=0.004, update_s=0.02)
    config = overlapping_run(tmp_path, tiny_model_dir, 1)
    data = config.data.model_copy(update={"eval": config.data.train})
    config = config.model_copy(update={"data": data, "train": config.train.model_copy(update={"eval_steps": 1})})
    seen: list[tuple[bool, int, int]] = []

    def look(_: int) -> None:
        seen.append((parts.sampler.is_greedy, parts.trainer.step, parts.sampler.policy_version))

    parts.on_sample = look
    train(config, QUIET, parts=parts)
    lines = [line for line in lines_of(config) if "eval/num_questions" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    asked = [(step, version) for greedy, step, version in seen if greedy]
    assert {step for step, _ in asked} == {0, 1, 2, 3, 4, 5}
    assert all(version == step for step, version in asked)
    switches = sum(one[0] != other[0] for one, other in pairwise(seen))
    assert switches <= 2 * 6 - 2  # the first turn is an evaluation's, and the last; none is among trees


class HeldSampler:
    """Turns end when they are told to."""

    def __init__(self) -> None:
        self.ends: list[asyncio.Event] = []

    async def sample(self, context: Any, params: Any, seed: int) -> Completion:
        self.ends.append(asyncio.Event())
        await self.ends[-1].wait()
        return Completion([1], [0.0], "", "stop", 0)


def test_a_closed_gate_lets_turns_end_and_holds_new_ones() -> None:
    async def story() -> None:
        sampler = HeldSampler()
        gate = Gate(sampler)  # type: ignore[arg-type]

        def turn() -> asyncio.Task[Completion]:
            return asyncio.create_task(gate.sample(np.array([1]), SamplingParams(max_tokens=1), 0))

        first, dropped = turn(), turn()
        await asyncio.sleep(0)
        closing = asyncio.create_task(gate.close())
        await asyncio.sleep(0)
        second = turn()
        dropped.cancel()
        await asyncio.sleep(0.01)
        assert (len(sampler.ends), closing.done()) == (2, False)
        sampler.ends[0].set()
        await first
        await closing
        assert not second.done()
        assert len(sampler.ends) == 2
        gate.open()
        await asyncio.sleep(0.01)
        assert len(sampler.ends) == 3
        sampler.ends[2].set()
        await second

    asyncio.run(story())


def left_behind(config: Config) -> tuple[list[int], list[str], list[str]]:
    """Steps with a line, with trees, with a checkpoint."""
    folder = Path(config.output_dir)
    trees = sorted(path.name[5:10] for path in (folder / "trees").iterdir())
    return [line["step"] for line in lines_of(config)], trees, [path.name for path in checkpoints(folder)]


def test_a_later_step_that_breaks_ends_the_run_behind_the_step_that_trained(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    parts = NotingParts()
    parts.trainer.on_update = lambda step: step == 2 and parts.story.wait_for("sample", 4)

    def fail(prompt: int) -> None:
        if prompt >= 4:
            raise ZeroDivisionError("a bug of ours")

    parts.on_sample = fail
    config = overlapping_run(tmp_path, tiny_model_dir, 1, rollout={"max_live_trees": 1})
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        train(config, QUIET, parts=parts)
    assert left_behind(config) == ([1, 2], ["00001", "00002"], ["checkpoint-2"])
    assert parts.trainer.step == 2


def test_an_engine_that_dies_beside_an_update_ends_the_run_behind_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    parts = NotingParts()

    def die(step: int) -> None:
        parts.sampler.is_dead = step == 2
        if step == 2:
            parts.story.wait_for("died", 4)

    parts.trainer.on_update = die
    config = overlapping_run(tmp_path, tiny_model_dir, 1, rollout={"max_live_trees": 1})
    with pytest.raises(RuntimeError, match="the engine died"):
        train(config, QUIET, parts=parts)
    assert left_behind(config) == ([1, 2], ["00001", "00002"], ["checkpoint-2"])


def test_a_later_step_of_which_too_much_failed_ends_the_run_when_its_turn_comes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    parts = NotingParts()
    broken = {"broken": ["live 4", "live 5"]}
    world = {"name": "tests.run.overlapping:SlowWorld", "options": broken, "tool_retries": 0}
    config = overlapping_run(tmp_path, tiny_model_dir, 2, environment=world)
    with pytest.raises(FailedRunError, match=r"100% of step 3 failed .*no sandbox"):
        train(config, QUIET, parts=parts)
    assert left_behind(config) == ([1, 2], ["00001", "00002"], ["checkpoint-2"])


def test_ctrl_c_beside_an_update_finishes_the_step_gives_up_the_trees_and_resumes_without_a_gap(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    parts = NotingParts(turn_s=0.05, update_s=0.0)

    def interrupt(step: int) -> None:
        if step == 2:
            parts.story.wait_for("sample", 4)
            os.kill(os.getpid(), signal.SIGINT)
            parts.story.wait_for("given up", 4)

    parts.trainer.on_update = interrupt
    world = {"name": "tests.run.overlapping:SlowWorld", "options": {}}
    config = overlapping_run(tmp_path, tiny_model_dir, 1, rollout={"max_live_trees": 1}, environment=world)
    with pytest.raises(Stopped, match=r"after step 2; .*--resume"):
        train(config, QUIET, parts=parts)
    assert left_behind(config) == ([1, 2], ["00001", "00002"], ["checkpoint-2"])
    assert parts.story.between(("given up", 4), ("updated", 2)) == []
    again = NotingParts(seed=1)
    train(config, QUIET, resume=True, parts=again)
    assert step_of_each(parts.story.trained + again.story.trained)[9] == 5
    assert [line["step"] for line in lines_of(config)] == [1, 2, 3, 4, 5]


def test_ctrl_c_while_trees_are_waited_for_stops_at_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    parts = NotingParts(turn_s=0.01)
    sent: list[int] = []

    def stop(prompt: int) -> None:
        if prompt == 2 and not sent:
            sent.append(prompt)
            os.kill(os.getpid(), signal.SIGTERM)

    parts.on_sample = stop
    config = overlapping_run(tmp_path, tiny_model_dir, 1, rollout={"max_live_trees": 1})
    with pytest.raises(Stopped) as stopped:
        train(config, QUIET, parts=parts)
    assert stopped.value.signal_number == signal.SIGTERM
    assert parts.sampler.num_inside == 0


def test_a_budget_of_the_run_ends_it_behind_the_step_that_reaches_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    steps = []
    for max_staleness in (0, 2):
        folder = tmp_path / str(max_staleness)
        folder.mkdir()
        parts = NotingParts()
        config = overlapping_run(folder, tiny_model_dir, max_staleness, budget={"run_tokens": 150})
        train(config, QUIET, parts=parts)
        steps.append(left_behind(config))
    assert steps[0] == steps[1]
    assert 1 < len(steps[0][0]) < 5


def test_ages_are_those_of_trained_tokens() -> None:
    class ScoresOf:
        num_leaves = np.array([1, 1, 1, 0, 1, 1, 1], dtype=np.uint32)

    forest = Forest()
    for prompt, turns in ((7, [(2, 3, 1), (5, 2, 1), (9, 0, 1)]), (8, [(1, 4, 1)])):
        node = forest.add_tree(prompt, np.array([1, 2], dtype=np.uint32))
        for num_tokens, version, num_observed in turns:
            size = num_tokens + num_observed
            node = forest.add_node(
                node,
                np.ones(size, dtype=np.uint32),
                np.arange(size) < num_tokens,
                np.zeros(size, dtype=np.float32),
                0,
                version,
            )
    # of prompt 7: two tokens of version 3, five of version 2; the turn of version 0 has no scored leaf
    scores: Any = ScoresOf()
    scores.num_leaves = scores.num_leaves[: forest.num_nodes]
    found = staleness_metrics(forest, scores, np.array([7], dtype=np.uint32), 3)
    assert found == {"staleness/mean": 5 / 7, "staleness/max": 1.0, "staleness/frac_mixed_trees": 1.0}
    both = staleness_metrics(forest, scores, np.array([7, 8], dtype=np.uint32), 4)
    assert both == {"staleness/mean": (2 * 1 + 5 * 2) / 8, "staleness/max": 2.0, "staleness/frac_mixed_trees": 0.5}
    nothing = staleness_metrics(forest, scores, np.array([], dtype=np.uint32), 4)
    assert set(nothing.values()) == {0.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["sampler.sleep=true"], "sampler.sleep = true beside scale.max_staleness = 1"),
        (["budget.step_seconds=5"], "budget.step_seconds beside scale.max_staleness = 1"),
        (["budget.prompt_seconds=5"], "budget.prompt_seconds beside scale.max_staleness = 1"),
        (["loss.old_logprobs=recomputed", "loss.importance_clip=0"], "nothing makes up for the age of trees"),
        (["model.lora_rank=4", "model.lora_dropout=0.1"], "model.lora_dropout beside scale.max_staleness = 1"),
    ],
)
def test_what_cannot_overlap_is_refused_in_one_line(given: list[str], message: str) -> None:
    load_config(None, given)
    with pytest.raises(UserError, match=message) as refused:
        load_config(None, ["scale.max_staleness=1", *given])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "elsewhere",
    [["scale.engines=1"], ["scale.trainer_ranks=1"], ["sampler.engine=server", 'sampler.urls=["http://h:1"]']],
)
def test_dropout_may_draw_where_engine_and_trainer_are_processes_of_their_own(elsewhere: list[str]) -> None:
    load_config(None, ["scale.max_staleness=1", "model.lora_rank=4", "model.lora_dropout=0.1", *elsewhere])


def test_an_engine_beside_updates_never_sleeps() -> None:
    assert make_config({"scale": {"max_staleness": 1}}).sampler.sleep is False
    assert make_config({}).sampler.sleep == "auto"


def log_probs_of(model: Any, token_ids: list[int]) -> list[float]:
    """Of each token behind the first, in nats, under the model alone."""
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0, :-1]
    picked = logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])
    return [float(value) for value in picked[:, 0]]


def paths_to(nodes: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids from the root up to the end of each node."""
    paths: list[list[int]] = []
    for node in nodes:
        paths.append([*(paths[node["parent"]] if node["parent"] is not None else []), *node["token_ids"]])
    return paths


def test_a_real_policy_trains_on_trees_that_grew_meanwhile_each_turn_wholly_by_the_version_it_names(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The log-probabilities that are kept are those of that step's checkpoint: weights never arrived within a turn."""
    train_settings = {"num_steps": 4, "save_steps": 1, "max_checkpoints": 0}
    config = make_config(small_run(tmp_path, tiny_model_dir, scale={"max_staleness": 1}, train=train_settings))
    train(config, QUIET)
    lines = [line for line in lines_of(config) if "reward" in line]
    check_metric_names(lines_of(config))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        fresh, apart = line["staleness/max"] == 0, line["sampling/sampling_logp_difference/max"]
        assert (apart < 1e-4) == fresh
        assert line["sampling/importance_sampling_ratio/mean"] <= 2.0
        assert line["clip_ratio/low_mean"] == line["clip_ratio/high_mean"] == 0.0  # the ratio is to the policy itself
    assert [line["staleness/max"] for line in lines[:2]] == [0, 1]  # the second began with the first, or its update
    folders = {0: tiny_model_dir} | {step: Path(config.output_dir) / f"checkpoint-{step}" for step in (1, 2, 3)}
    models = {step: load_causal_lm(folder, torch.float32) for step, folder in folders.items()}
    for path in sorted((Path(config.output_dir) / "trees").iterdir()):
        for tree in read_trees(path):
            for node, tokens in zip(tree.nodes, paths_to(tree.nodes), strict=True):
                if node["parent"] is not None:
                    [(start, end)] = node["sampled"]
                    first = len(tokens) - len(node["token_ids"])
                    known = log_probs_of(models[node["policy_version"]], tokens)[first - 1 + start : first - 1 + end]
                    assert node["logprobs"] == pytest.approx(known, abs=1e-4)
