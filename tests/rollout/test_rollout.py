"""Trees grow by the paper's procedure, and by their keys alone."""

import asyncio
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.collect import Grown, collect
from treegrpo_cli.rollout.grove import Grove
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.types import Action, NodeStatus, StepResult, Task

from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
QUESTIONS = [Task(f"What is the capital number {i}?", "Lisbon") for i in range(6)]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    towns = {"Lisbon": "Portugal", "Paris": "France", "Rome": "Italy"}
    lines = [
        json.dumps({"id": i, "contents": f"{a}\n{a} is the capital of {b}."}) for i, (a, b) in enumerate(towns.items())
    ]
    path.write_text("\n".join(lines))
    return str(path)


def config_for(corpus: str, **rollout: object):
    environment = {"name": "search", "options": {"corpus": corpus, "topk": 1, "instructions": "Answer."}}
    return make_config({"environment": environment, "rollout": {"max_turns": 3, **rollout}})


def make_player(config: Config, sampler: HashSampler | None = None) -> Player:
    return Player(World(config, TOKENIZER), sampler or HashSampler(TOKENIZER), config)


async def grow_all(player: Player, tasks: list[Task]) -> dict[str, list[Tree]]:
    prompts = [Prompt(i, f"p{i}", task) for i, task in enumerate(tasks)]
    groups = collect(player, prompts, player.config.rollout.num_trees)
    return {grown.prompt.prompt_id: grown.trees async for grown in groups}


def grow(corpus: str, sampler: HashSampler | None = None, **rollout: object) -> dict[str, list[Tree]]:
    player = make_player(config_for(corpus, **rollout), sampler)
    return asyncio.run(grow_all(player, QUESTIONS))


def nodes_of(trees: dict[str, list[Tree]]) -> list[list[dict[str, object]]]:
    return [tree_record(tree).nodes for _, group in sorted(trees.items()) for tree in group]


def leaves_of(tree: Tree) -> list[int]:
    return tree.forest.leaves(0).tolist()


@pytest.mark.parametrize(("num_expansions", "num_rounds"), [(2, 1), (1, 3), (3, 2)])
def test_a_tree_has_one_leaf_of_the_first_chain_and_one_of_each_expansion(
    corpus: str, num_expansions: int, num_rounds: int
) -> None:
    trees = grow(corpus, num_trees=3, num_expansions=num_expansions, num_rounds=num_rounds)
    assert {len(group) for group in trees.values()} == {3}
    for group in trees.values():
        for tree in group:
            assert len(leaves_of(tree)) == 1 + num_expansions * num_rounds
            keys = Counter(turn.key[:2] for turn in tree.turns.values() if turn.depth)
            assert set(keys) == {(0, 0)} | {(r, d) for r in range(1, num_rounds + 1) for d in range(num_expansions)}


def test_no_rounds_are_plain_chains(corpus: str) -> None:
    for group in grow(corpus, num_trees=4, num_rounds=0).values():
        for tree in group:
            assert len(leaves_of(tree)) == 1
            assert [turn.depth for turn in tree.turns.values()] == list(range(len(tree.turns)))


def test_the_same_seed_gives_the_same_trees_whatever_the_order_of_arrival(corpus: str) -> None:
    calm = nodes_of(grow(corpus, num_trees=2, num_expansions=3, num_rounds=2))
    slow = HashSampler(TOKENIZER, delay_s=0.01, jitter_seed=1)
    assert nodes_of(grow(corpus, slow, num_trees=2, num_expansions=3, num_rounds=2)) == calm
    narrow = HashSampler(TOKENIZER, delay_s=0.003, jitter_seed=2)
    assert nodes_of(grow(corpus, narrow, num_trees=2, num_expansions=3, num_rounds=2, max_live_trees=1)) == calm


def test_both_schedules_grow_the_same_trees(corpus: str) -> None:
    shape = {"num_trees": 2, "num_expansions": 3, "num_rounds": 2}
    free = nodes_of(grow(corpus, **shape))
    for max_live_trees in (256, 5):
        slow = HashSampler(TOKENIZER, delay_s=0.003, jitter_seed=4)
        assert nodes_of(grow(corpus, slow, **shape, schedule="lock-step", max_live_trees=max_live_trees)) == free


class LoggedPhases(HashSampler):
    """Notes when a turn begins and ends to be sampled."""

    async def sample(self, *args: object, **kwargs: object):  # type: ignore[override]
        phases.append("sample")
        completion = await super().sample(*args, **kwargs)  # type: ignore[arg-type]
        phases.append("sampled")
        return completion


phases: list[str] = []


def test_in_lock_step_all_chains_sample_then_all_act_and_rounds_begin_together(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treegrpo_cli.envs.tools import ToolEnvironment, ToolState

    step, select = ToolEnvironment.step, Grove.select

    async def logged_step(self: ToolEnvironment, state: ToolState, action: Action) -> tuple[ToolState, StepResult]:
        phases.append("act")
        return await step(self, state, action)

    async def logged_select(self: Grove, sizes: list[int]) -> list[list[int]]:
        phases.append(f"round {self.trees[0].num_rounds}")
        return await select(self, sizes)

    monkeypatch.setattr(ToolEnvironment, "step", logged_step)
    monkeypatch.setattr(Grove, "select", logged_select)
    orders = {}
    for schedule in ("free", "lock-step"):
        phases.clear()
        sampler = LoggedPhases(TOKENIZER, delay_s=0.01, jitter_seed=5)
        grow(corpus, sampler, num_expansions=2, num_rounds=2, schedule=schedule)
        orders[schedule] = [kind for kind, _ in itertools.groupby(phases)]
        phases_seen = list(phases)
    first, second = phases_seen.index("round 1"), phases_seen.index("round 2")
    assert phases_seen.count("round 1") == phases_seen.count("round 2") == 12
    assert set(phases_seen[first : first + 12]) == {"round 1"}
    assert set(phases_seen[second : second + 12]) == {"round 2"}
    chains = [kind for kind in orders["lock-step"] if not kind.startswith("round")]
    assert chains == ["sample", "sampled", "act"] * (len(chains) // 3)
    assert len(chains) // 3 == 9  # three rounds of at most three turns
    assert len(orders["free"]) > 2 * len(orders["lock-step"])


def test_every_turn_of_a_run_has_a_seed_of_its_own(corpus: str) -> None:
    sampler = HashSampler(TOKENIZER)
    grow(corpus, sampler, num_trees=2, num_expansions=2, num_rounds=2)
    seeds = [seed for _, seed in sampler.contexts]
    assert len(set(seeds)) == len(seeds) > 50


def test_a_context_is_the_stored_tokens_of_its_path(corpus: str) -> None:
    sampler = HashSampler(TOKENIZER)
    trees = grow(corpus, sampler)
    sampled_from = Counter(tuple(context) for context, _ in sampler.contexts)
    from_trees: Counter[tuple[int, ...]] = Counter()
    for group in trees.values():
        for tree in group:
            for node in range(tree.forest.num_nodes):
                parents = tree.forest.path(node)[:-1]
                if len(parents):
                    from_trees[tuple(tree.forest.context(int(parents[-1])).tolist())] += 1
    assert sampled_from == from_trees


def test_records_list_nodes_in_key_order_with_parents_first(corpus: str) -> None:
    slow = HashSampler(TOKENIZER, delay_s=0.01, jitter_seed=3)
    for nodes in nodes_of(grow(corpus, slow, num_expansions=3)):
        assert [node["id"] for node in nodes] == list(range(len(nodes)))
        assert nodes[0]["parent"] is None
        assert all(node["parent"] < node["id"] for node in nodes[1:])


def test_only_k_leaves_are_kept_and_rewarded(corpus: str) -> None:
    for group in grow(corpus, num_expansions=4, num_kept_leaves=2).values():
        for tree in group:
            kept = [node for node in tree_record(tree).nodes if node.get("kept")]
            dropped = [node for node in tree_record(tree).nodes if node.get("kept") is False]
            assert len(kept) == 2
            assert len(dropped) == 3
            assert all(node["reward"] is not None for node in kept)
            assert all(node["reward"] is None for node in dropped)


def test_rewards_are_those_of_the_answers(corpus: str) -> None:
    seen = set()
    for group in grow(corpus).values():
        for tree in group:
            for leaf, worth in tree.rewards.items():
                right = tree.turns[leaf].text == "<answer>lisbon</answer>"
                assert worth.reward == float(right)
                seen.add(right)
    assert seen == {True, False}


def test_the_last_turn_allowed_is_truncated_and_an_answer_is_done(corpus: str) -> None:
    statuses = set()
    for group in grow(corpus).values():
        for tree in group:
            for leaf in leaves_of(tree):
                turn = tree.turns[leaf]
                statuses.add(turn.status)
                if "<answer>" in turn.text:
                    assert turn.status is NodeStatus.DONE
                else:
                    assert (turn.status, turn.depth) == (NodeStatus.TRUNCATED_TURNS, 3)
    assert statuses == {NodeStatus.DONE, NodeStatus.TRUNCATED_TURNS}


def test_a_turn_that_meets_the_token_limit_closes_its_branch(corpus: str) -> None:
    for group in grow(corpus, max_turn_tokens=2).values():
        for tree in group:
            for leaf in leaves_of(tree):
                assert tree.turns[leaf].status is NodeStatus.TRUNCATED_TOKENS
                assert tree.turns[leaf].depth == 1


def test_a_context_never_outgrows_its_limit(corpus: str) -> None:
    prompt = max(len(tree.forest.context(0)) for group in grow(corpus).values() for tree in group)
    limit = prompt + 40
    sampler = HashSampler(TOKENIZER)
    trees = grow(corpus, sampler, max_context_tokens=limit)
    assert (
        max(
            len(context) + params.max_tokens
            for (context, _), params in zip(sampler.contexts, sampler.params, strict=True)
        )
        <= limit
    )
    longest = [len(tree.forest.context(leaf)) for group in trees.values() for tree in group for leaf in leaves_of(tree)]
    assert max(longest) <= limit
    statuses = {turn.status for group in trees.values() for tree in group for turn in tree.turns.values()}
    assert NodeStatus.TRUNCATED_TOKENS in statuses


def failures_of(player: Player, tasks: list[Task]) -> list[Grown]:
    async def collected() -> list[Grown]:
        prompts = [Prompt(i, f"p{i}", task) for i, task in enumerate(tasks)]
        return [grown async for grown in collect(player, prompts, player.config.rollout.num_trees)]

    return sorted(asyncio.run(collected()), key=lambda grown: grown.prompt.number)


def test_a_prompt_longer_than_its_limit_is_a_failure_and_the_others_grow(corpus: str) -> None:
    tasks = [*QUESTIONS[:2], Task("Why? " * 200, "Lisbon")]
    first, second, long = failures_of(make_player(config_for(corpus, max_prompt_tokens=200)), tasks)
    assert [len(grown.trees) for grown in (first, second, long)] == [2, 2, 0]
    assert first.failures == second.failures == []
    [failure] = long.failures
    assert (failure.kind, failure.prompt_id) == ("prompt", "p2")
    assert re.fullmatch(r"\d+ tokens, but rollout.max_prompt_tokens and the context of 4096 allow 200", failure.reason)
    assert long.failed
    assert not first.failed


class FailingTool:
    """Fails on every path that searched for Paris."""

    def __call__(self, query: str) -> str:
        """Look something up.

        Args:
            query: What to look for.
        """
        if "paris" in query:
            raise ConnectionError("no route")
        return "nothing"


def test_a_failed_tool_closes_its_own_branch_and_no_other(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from treegrpo_cli.envs.search import SearchEnvironment

    async def search(self: SearchEnvironment, query: str) -> str:
        return FailingTool()(query)

    search.__doc__ = FailingTool.__call__.__doc__
    monkeypatch.setattr(SearchEnvironment, "search", search)
    environment = {
        "name": "search",
        "tool_retries": 0,
        "options": {"corpus": corpus, "instructions": "Answer."},
    }
    config = make_config({"environment": environment, "rollout": {"max_turns": 3}})
    trees = asyncio.run(grow_all(make_player(config), QUESTIONS))
    failed = 0
    for group in trees.values():
        for tree in group:
            for node in tree_record(tree).nodes:
                if node["text"] == "<search>paris</search>":
                    assert node["status"] == "error"
                    assert "no route" in node["error"]
                    assert node["reward"] is None
                    assert node["kept"] is False
                    failed += 1
            assert len(leaves_of(tree)) == 3
    assert failed > 3


def test_the_root_keeps_the_text_that_its_tokens_are(corpus: str) -> None:
    for [first, *_] in nodes_of(grow(corpus)):
        assert first["text"] == TOKENIZER.decode(first["token_ids"])
        assert "capital number" in first["text"]


def test_stats_count_shared_tokens_once_and_chains_would_repeat_them(corpus: str) -> None:
    trees = grow(corpus)
    stats = RolloutStats()
    generated = chains = 0
    distinct = 0
    for group in trees.values():
        stats.add_group([tree_record(tree) for tree in group])
        paths = set()
        for tree in group:
            sampled = tree.forest.gen_tokens().tolist()
            generated += sum(sampled)
            for leaf in leaves_of(tree):
                chains += sum(sampled[node] for node in tree.forest.path(leaf))
                paths.add(tuple(tree.forest.context(leaf).tolist()))
        distinct += len(paths)
    assert (stats.generated_tokens, stats.chain_tokens) == (generated, chains)
    assert stats.sharing_ratio == pytest.approx(1 - generated / chains)
    assert 0 < stats.sharing_ratio < 1
    assert stats.num_distinct_leaves == distinct <= stats.num_leaves == 6 * 2 * 3


def test_the_first_error_of_any_tree_ends_the_run_and_is_raised_alone(corpus: str) -> None:
    class Broken(HashSampler):
        async def sample(self, *args: object, **kwargs: object):  # type: ignore[override]
            await asyncio.sleep(0.01)
            raise UserError("the engine is gone")

    with pytest.raises(UserError, match="the engine is gone"):
        grow(corpus, Broken(TOKENIZER))
