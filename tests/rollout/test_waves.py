"""Prompts that grow together, wave by wave: what is dealt, in which limits, whoever was finished first."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout import waves as waves_module
from treegrpo_cli.rollout.collect import Grown
from treegrpo_cli.rollout.tree import Tree

from tests.rollout.test_step import config_of, grow, numbers

UNLIMITED = {"step_leaves": 10**6}
"""A budget that is never reached, but that a step is counted for."""


def coin_unless_dead(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 for about half of what prompts get that are not dead; a dead one gets 0."""
    pairs = zip(prompts, completions, strict=True)
    return [float("dead" not in prompt and len(text) % 2) for prompt, text in pairs]


def wave_config(rollout: dict[str, Any] | None = None, **sections: Any) -> Config:
    shape = {"max_turns": 3, "num_trees": 2, "num_expansions": 2, "num_rounds": 2, "allocation": "uncertain"}
    reward = {"functions": [f"{__name__}:coin_unless_dead"]}
    sections = {"advantage": {"dead_prompts": "keep"}, "train": {"prompts_per_step": 6}, **sections}
    return config_of(rollout={**shape, **(rollout or {})}, reward=reward, **sections)


def half_dead(number: int) -> str:
    return "alive" if number % 2 else "dead"


def all_dead(_: int) -> str:
    return "dead"


def content(tree: Tree) -> list[tuple[Any, ...]]:
    """All that a tree is, in the order of its keys."""
    parents, rewards = tree.forest.columns()["parent"], tree.rewards
    keys = {node: turn.key for node, turn in tree.turns.items()}
    return [
        (keys[node], keys.get(int(parents[node])), tree.turns[node].text, tree.turns[node].status, rewards.get(node))
        for node in tree.in_key_order()
    ]


def contents(step: Sequence[Grown]) -> list[list[list[tuple[Any, ...]]]]:
    return [[content(tree) for tree in grown.trees] for grown in step]


def num_leaves(step: Sequence[Grown]) -> list[int]:
    return [sum(tree.num_leaves for tree in grown.trees) for grown in step]


@pytest.mark.parametrize("rollout", [{}, {"num_rounds": 1, "num_trees": 3}, {"include_root": False}])
def test_even_waves_grow_the_trees_that_grow_freely(rollout: dict[str, Any]) -> None:
    rollout = {"allocation": "even", **rollout}
    freely, _ = grow(wave_config(rollout), half_dead)
    in_waves, _ = grow(wave_config(rollout, budget=UNLIMITED), half_dead)
    assert contents(in_waves) == contents(freely)


@pytest.mark.parametrize("candidates", ["all", "root"])
def test_a_step_keeps_its_number_of_expansions_and_they_go_where_rewards_disagree(candidates: str) -> None:
    step, _ = grow(wave_config({"candidates": candidates}), half_dead)
    leaves = num_leaves(step)
    assert sum(leaves) == 6 * 2 * (1 + 2 * 2)
    alive, dead = sum(leaves[1::2]), sum(leaves[::2])
    assert alive > 1.5 * dead
    assert all(count >= 2 for count in leaves)
    rounds = [turn.key[0] for grown in step for tree in grown.trees for turn in tree.turns.values()]
    assert max(rounds) == 2


def test_chains_are_dealt_where_the_root_is_the_only_candidate() -> None:
    step, _ = grow(wave_config({"candidates": "root"}), half_dead)
    assert all(starts_at_root(tree) for grown in step for tree in grown.trees)


def starts_at_root(tree: Tree) -> bool:
    """Whether each of its chains begins at the root."""
    parents = tree.forest.columns()["parent"]
    firsts = [node for node, turn in tree.turns.items() if turn.key[2] == 0 and turn.depth]
    return {int(parents[node]) for node in firsts} == {tree.root} and len(firsts) == tree.num_leaves


def longest_last(context: Any) -> float:
    return (len(context) * 7 + int(context[-1])) % 64 / 8000


def longest_first(context: Any) -> float:
    return (63 - (len(context) * 7 + int(context[-1])) % 64) / 8000


@pytest.mark.parametrize(
    "rollout",
    [{}, {"candidates": "root"}, {"allocation": "even"}, {"allocation": "even", "rescue": "failed", "max_rescues": 3}],
)
def test_the_order_of_arrival_changes_nothing(rollout: dict[str, Any]) -> None:
    config = wave_config(rollout, budget={"step_leaves": 50}, advantage={"dead_prompts": "refill"})
    steps = [grow(config, half_dead, delay_s=0.005, jitter_seed=seed)[0] for seed in range(2)]
    steps += [grow(config, half_dead, delay=delay)[0] for delay in (longest_last, longest_first)]
    assert all(contents(step) == contents(steps[0]) for step in steps)


def test_contrast_deals_by_its_scores_whatever_the_order_of_arrival() -> None:
    config = wave_config({"rescue": "dead", "max_rescues": 3}, selection={"rule": "contrast"})
    steps = [grow(config, half_dead, delay=delay)[0] for delay in (None, longest_last, longest_first)]
    assert contents(steps[0]) == contents(steps[1]) == contents(steps[2])
    leaves = [count - grown.num_rescues for count, grown in zip(num_leaves(steps[0]), steps[0], strict=True)]
    assert sum(leaves) == 60
    assert sum(leaves[1::2]) > 1.3 * sum(leaves[::2])


@pytest.mark.parametrize("rule", ["contrast", "uniform", "uct"])
def test_a_prompt_weighs_what_its_rule_says_where_that_compares_across_prompts(rule: str) -> None:
    weighed: dict[int, tuple[float, float]] = {}
    weight = waves_module.Grove.weight

    async def note(grove: Any) -> float:
        candidates, before = grove.candidates(), grove.player.rewards_so_far
        nodes = np.concatenate(candidates.nodes)
        known = {"prior": before.prior, "rewards_asked": True}
        scores = candidates.forest.selection_scores(nodes, rule, {}, **known)
        rewards = grove.known_rewards()
        q = (sum(rewards) + 0.5) / (len(rewards) + 1)
        weighed[grove.prompt.number] = (await weight(grove), sum(scores) if rule == "contrast" else q * (1 - q))
        return weighed[grove.prompt.number][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waves_module.Grove, "weight", note)
        grow(wave_config(selection={"rule": rule}), half_dead)
    assert sorted(weighed) == list(range(6))
    assert all(ours == pytest.approx(theirs) for ours, theirs in weighed.values())


@pytest.mark.parametrize("selection", [{"rule": "surprisal"}, {"replacement": False}])
def test_what_a_rule_that_repeats_no_node_cannot_use_goes_to_other_prompts(selection: dict[str, Any]) -> None:
    shape = {"num_expansions": 4, "num_rounds": 1, "max_turns": 2}
    step, _ = grow(wave_config(shape, selection=selection), half_dead)
    expanded, num_candidates = [], 0
    for tree in (tree for grown in step for tree in grown.trees):
        first = [node for node, turn in tree.turns.items() if turn.key[0] <= 0]
        num_candidates += sum(tree.may_branch(first))
        parents = tree.forest.columns()["parent"]
        mine = [int(parents[node]) for node, turn in tree.turns.items() if turn.key[0] == 1 and turn.key[2] == 0]
        assert len(set(mine)) == len(mine)
        expanded += mine
    assert num_candidates < 48
    assert len(expanded) == num_candidates


def rarely(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 for one in five; 1 for all where the prompt says so."""
    pairs = zip(prompts, completions, strict=True)
    return [
        float("done" in prompt or ("dead" not in prompt and crc32(text.encode()) % 5 == 0)) for prompt, text in pairs
    ]


def rewards_until(grown: Grown, num_rounds: int) -> set[float | None]:
    """The rewards of the leaves of the first rounds."""
    return {
        worth.reward
        for tree in grown.trees
        for leaf, worth in tree.rewards.items()
        if tree.turns[leaf].key[0] < num_rounds
    }


@pytest.mark.parametrize("rescue", ["failed", "dead"])
@pytest.mark.parametrize("shape", [{}, {"num_rounds": 0}, {"num_rounds": 0, "candidates": "root"}])
def test_prompts_whose_rewards_are_equal_are_expanded_until_they_differ(rescue: str, shape: dict[str, Any]) -> None:
    shape = {"allocation": "even", "num_trees": 2, "num_rounds": 1, "num_expansions": 2, **shape}
    config = wave_config({**shape, "rescue": rescue, "max_rescues": 5}, train={"prompts_per_step": 24})
    config = config.model_copy(
        update={"reward": config.reward.model_copy(update={"functions": [f"{__name__}:rarely"]})}
    )
    step, _ = grow(config, lambda number: ("dead", "done")[number] if number < 2 else "alive")
    num_rounds = 1 + config.rollout.num_rounds
    rescued = 0
    for grown in step:
        before = rewards_until(grown, num_rounds)
        is_lost = len(before) == 1 and (rescue == "dead" or before == {0.0})
        assert bool(grown.num_rescues) == is_lost
        assert grown.num_rescues == sum(tree.num_leaves for tree in grown.trees) - 2 * config.rollout.num_leaves
        if grown.num_rescues == 5:
            assert sum(tree.num_rounds - num_rounds for tree in grown.trees) >= 3
        elif is_lost:
            assert grown.is_alive
            assert grown.num_rescues in (2, 4)
        rescued += is_lost and grown.is_alive
    assert [step[place].num_rescues for place in (0, 1)] == [5, 5 if rescue == "dead" else 0]
    assert rescued
    if config.rollout.candidates == "root":
        assert all(starts_at_root(tree) for grown in step for tree in grown.trees)


def test_a_rescue_stays_within_the_budgets_of_prompt_and_step() -> None:
    shape = {"allocation": "even", "rescue": "dead", "max_rescues": 8}
    step, _ = grow(wave_config(shape, budget={"prompt_leaves": 13}), all_dead)
    assert num_leaves(step) == [13] * 6
    step, _ = grow(wave_config(shape, budget={"step_leaves": 65}), all_dead)
    assert sum(num_leaves(step)) == 65
    step, _ = grow(wave_config(shape, budget={"step_seconds": 1e-9}), all_dead)
    assert num_leaves(step) == [2] * 6


def test_a_prompt_without_a_single_reward_is_not_rescued() -> None:
    config = wave_config({"rescue": "dead", "allocation": "even"})
    functions = ["tests.rollout.test_collect:failing_reward"]
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"functions": functions})})
    step, _ = grow(config, half_dead)
    assert num_leaves(step) == [10] * 6


def test_where_all_prompts_are_dead_all_get_the_same() -> None:
    step, _ = grow(wave_config(), all_dead)
    assert num_leaves(step) == [10] * 6


def test_a_prompt_takes_no_more_leaves_than_its_budget_and_the_others_get_the_rest() -> None:
    step, _ = grow(wave_config(budget={"prompt_leaves": 11}), half_dead)
    leaves = num_leaves(step)
    assert max(leaves) == 11
    assert sum(leaves) == 60
    full, _ = grow(wave_config(budget={"prompt_leaves": 8}), half_dead)
    assert num_leaves(full) == [8] * 6


@pytest.mark.parametrize("allocation", ["even", "uncertain"])
@pytest.mark.parametrize(("limit", "expected"), [(12, 12), (13, 13), (40, 40), (60, 60), (61, 60), (5, 12)])
def test_a_step_has_just_as_many_leaves_as_its_budget(allocation: str, limit: int, expected: int) -> None:
    step, _ = grow(wave_config({"allocation": allocation}, budget={"step_leaves": limit}), half_dead)
    assert sum(num_leaves(step)) == expected


@pytest.mark.parametrize("allocation", ["even", "uncertain"])
def test_no_wave_starts_where_tokens_tool_calls_or_seconds_are_spent(allocation: str) -> None:
    shape = {"allocation": allocation}
    whole, _ = grow(wave_config(shape, budget=UNLIMITED), half_dead)
    tokens_in = [tokens_of(whole, num_rounds) for num_rounds in (1, 2, 3)]
    assert tokens_in[0] < tokens_in[1] < tokens_in[2]
    for limit, rounds in (
        (1, 1),
        (tokens_in[0], 1),
        (tokens_in[0] + 1, 2),
        (tokens_in[1], 2),
        (tokens_in[1] + 1, 3),
    ):
        step, _ = grow(wave_config(shape, budget={"step_tokens": limit}), half_dead)
        assert contents(step) == [
            [[node for node in tree if node[0][0] < rounds] for tree in trees] for trees in contents(whole)
        ]
    step, _ = grow(wave_config(shape, budget={"step_seconds": 1e-9}), half_dead)
    assert num_leaves(step) == [2] * 6


def tokens_of(step: Sequence[Grown], num_rounds: int) -> int:
    """Tokens sampled in the first rounds, counted in the forests' columns."""
    count = 0
    for tree in (tree for grown in step for tree in grown.trees):
        gen_tokens = tree.forest.gen_tokens()
        count += sum(int(gen_tokens[node]) for node, turn in tree.turns.items() if turn.key[0] < num_rounds)
    return count


def test_tool_calls_end_a_step_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waves_module.Grove, "num_tool_calls", property(lambda grove: grove.num_leaves))
    step, _ = grow(wave_config(budget={"step_tool_calls": 36}), half_dead)
    assert sum(num_leaves(step)) == 36


def test_fresh_prompts_are_not_drawn_where_a_step_is_spent() -> None:
    sections: dict[str, Any] = {"advantage": {"dead_prompts": "refill"}, "train": {"prompts_per_step": 2}}
    step, _ = grow(wave_config(budget={"step_leaves": 20}, **sections), all_dead)
    assert numbers(step) == [0, 1]
    step, _ = grow(wave_config(budget={"step_leaves": 21}, **sections), all_dead)
    assert numbers(step) == [0, 1, 2, 3]
    assert num_leaves(step) == [10, 10, 2, 2]  # a first chain in each tree, whatever is left


def test_fresh_prompts_get_a_number_of_expansions_of_their_own() -> None:
    config = wave_config(advantage={"dead_prompts": "refill"}, train={"prompts_per_step": 4, "max_gen_batches": 2})
    step, _ = grow(config, half_dead)
    dead = sum(not grown.is_alive for grown in step[:4])
    assert dead >= 2
    assert len(step) >= 4 + dead
    assert sum(num_leaves(step[:4])) == 40
    assert sum(num_leaves(step[4 : 4 + dead])) == 10 * dead


def test_a_prompt_that_fails_gets_nothing_and_takes_nothing_from_the_others() -> None:
    def kind(number: int) -> str:
        return "broken" if number == 2 else half_dead(number)

    step, _ = grow(wave_config(), kind)
    assert [grown.failed for grown in step] == [number == 2 for number in range(6)]
    assert step[2].trees == []
    assert sum(num_leaves(step)) == 5 * 10


def test_where_nothing_can_be_expanded_a_step_ends_with_its_first_chains() -> None:
    step, _ = grow(wave_config({"include_root": False, "max_turns": 1}), half_dead)
    assert num_leaves(step) == [2] * 6
    assert all(tree.rewards for grown in step for tree in grown.trees)


def test_trees_wait_for_room_where_few_may_grow_at_once() -> None:
    one_by_one, _ = grow(wave_config({"max_live_trees": 1}), half_dead)
    assert contents(one_by_one) == contents(grow(wave_config(), half_dead)[0])


def test_an_error_of_ours_is_raised_alone_and_closes_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    close = waves_module.Grove.close

    async def count_closed(grove: Any) -> None:
        closed.append(grove.prompt.number)
        await close(grove)

    async def broken(grove: Any, num: int, wave: int, rule: Any) -> Any:
        raise LookupError("our own bug")

    monkeypatch.setattr(waves_module.Grove, "close", count_closed)
    monkeypatch.setattr(waves_module.Grove, "select_any", broken)
    with pytest.raises(LookupError, match="our own bug"):
        grow(wave_config(), half_dead)
    assert closed == list(range(6))


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"num_rounds": 0}, r'rollout: allocation = "uncertain" deals expansions, and there are none; .*candidates'),
        ({"num_kept_leaves": 2}, r'allocation = "uncertain" looks at the rewards of all leaves; leave num_kept_leaves'),
        (
            {"num_kept_leaves": 2, "allocation": "even", "rescue": "dead"},
            r'rescue = "dead" looks at the rewards of all leaves',
        ),
        ({"candidates": "root", "include_root": False}, r'candidates = "root" beside include_root = false leaves'),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(rollout: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        wave_config(rollout)
    assert "\n" not in str(refused.value)


seen: list[tuple[int, list[int]]] = []
"""How many trees a rule was shown, and the prompt's rounds of its candidates."""


def by_round(columns: Any, candidates: Any) -> Any:
    seen.append((len(set(columns["tree"].tolist())), columns["round"][candidates].tolist()))
    return columns["round"][candidates] + columns["num_children"][candidates] / 100


def by_round_of_the_prompt(columns: Any, candidates: Any) -> Any:
    return by_round(columns, candidates)


by_round_of_the_prompt.reads_prompt = True  # type: ignore[attr-defined]


def test_a_rule_of_one_s_own_sees_its_tree_or_its_prompt_and_scores_alike_where_expansions_are_dealt() -> None:
    seen.clear()
    alone, _ = grow(wave_config(selection={"rule": f"{__name__}:by_round"}), half_dead)
    assert {num_trees for num_trees, _ in seen} == {1}
    seen.clear()
    together, _ = grow(wave_config(selection={"rule": f"{__name__}:by_round_of_the_prompt"}), half_dead)
    assert {num_trees for num_trees, _ in seen} == {2}
    assert contents(alone) == contents(together)  # what it says of a candidate is the same, and so is what is drawn
