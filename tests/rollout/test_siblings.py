"""Siblings that differ, in rollouts with a real sampler: who waits for whom, what is left alone, and no bias."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import tomli_w
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.pretrained import load_tokenizer
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.forest import join
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.siblings import Siblings
from treegrpo_cli.rollout.tree import Prompt, Tree
from treegrpo_cli.rollout.world import World
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.types import Action, Completion, Message, StepResult, Task

from tests.runs import small_run, treegrpo

HERE = "tests.rollout.test_siblings"
STATE_LOO = {"estimator": "state-loo", "siblings": "distinct", "scale": "none"}


class Listening:
    """Goes on whatever is said, also behind a turn that met its limit; answers after a while of the text's own."""

    tools = ()
    takes_cut_turns = True

    async def reset(self, task: Task) -> tuple[str, list[Message]]:
        return "", [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        await asyncio.sleep(crc32(action.text.encode()) % 7 / 1000)
        return state + action.text, StepResult(({"role": "user", "content": "again"},))


def by_text(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [worth(text) for text in completions]


def worth(text: str) -> float:
    return crc32(text.encode()) % 5 / 4


def settings(model: Path, rollout: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    shape = {"num_trees": 2, "num_expansions": 3, "num_rounds": 2, "max_turns": 2, "max_turn_tokens": 3, "top_k": 3}
    return {
        "model": {"path": str(model)},
        "environment": {"name": f"{HERE}:Listening"},
        "reward": {"functions": [f"{HERE}:by_text"]},
        "rollout": shape | {"distinct_siblings": True} | rollout,
        "advantage": STATE_LOO,
        "sampler": {"engine": "transformers"},
    } | sections


@pytest.fixture(scope="module")
def sampler(tiny_model_dir: Path) -> Iterator[Any]:
    config = make_config(settings(tiny_model_dir, {}))
    path = str(tiny_model_dir)
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_model_len": 256, "seed": 0, "log_path": None}
    started = make_sampler(config.sampler, path, **options)
    yield started
    started.close()


def grow(sampler: Any, config: Config, count: int = 4) -> list[list[Tree]]:
    player = Player(World(config, load_tokenizer(config.model.path)), sampler, config)
    prompts = [Prompt(number, f"p{number}", Task("a question")) for number in range(count)]

    async def collected() -> list[Any]:
        return [grown async for grown in collect(player, prompts, config.rollout.num_trees)]

    return [grown.trees for grown in sorted(asyncio.run(collected()), key=lambda grown: grown.prompt.number)]


def families(tree: Tree) -> dict[int, list[tuple[int, ...]]]:
    """The turns sampled below each node, in the order of their keys."""
    columns, found = tree.forest.columns(), {}
    for node in tree.in_key_order()[1:]:
        start, end = columns["token_start"][node : node + 2]
        sampled = columns["token_ids"][start:end][columns["sampled"][start:end]]
        found.setdefault(int(columns["parent"][node]), []).append(tuple(sampled.tolist()))
    return found


def contents(groups: list[list[Tree]], rounds: int = 9) -> list[Any]:
    found = []
    for tree in (tree for trees in groups for tree in trees):
        columns = tree.forest.columns()
        for node in tree.in_key_order():
            start, end = columns["token_start"][node : node + 2]
            turn = tree.turns[node]
            if turn.key[0] < rounds:
                found.append(
                    (turn.key, columns["token_ids"][start:end].tolist(), columns["logprobs"][start:end].tolist())
                )
    return found


def test_no_sibling_repeats_another_and_without_the_option_many_do(sampler: Any, tiny_model_dir: Path) -> None:
    repeats = []
    for distinct in (True, False):
        rollout = {"distinct_siblings": distinct, "max_turn_tokens": 1}
        advantage = STATE_LOO if distinct else {"estimator": "tree-grpo"}
        config = make_config(settings(tiny_model_dir, rollout, advantage=advantage))
        below = [turns for trees in grow(sampler, config) for tree in trees for turns in families(tree).values()]
        assert max(map(len, below)) > 2
        repeats.append(sum(len(turns) - len(set(turns)) for turns in below))
    assert repeats[0] == 0 < repeats[1]


def test_first_chains_are_what_they_were_bit_for_bit(sampler: Any, tiny_model_dir: Path) -> None:
    """In lock-step: under the free schedule, which turns share a batch, and so the last bits, hang on the clock."""

    def first_chains(distinct: bool, **sections: dict[str, Any]) -> list[Any]:
        rollout = {"distinct_siblings": distinct, "schedule": "lock-step"}
        return contents(grow(sampler, make_config(settings(tiny_model_dir, rollout, **sections))), rounds=1)

    with_ = first_chains(True)
    without = first_chains(False, advantage={"estimator": "tree-grpo"})
    assert len(with_) == 4 * 2 * 3
    assert with_ == without


@pytest.mark.parametrize("changes", [{"schedule": "lock-step"}, {"max_live_trees": 2}])
def test_trees_do_not_depend_on_scheduling(sampler: Any, tiny_model_dir: Path, changes: dict[str, Any]) -> None:
    shape = {"max_turn_tokens": 1, "top_k": 4}
    free, other = (grow(sampler, make_config(settings(tiny_model_dir, shape | each))) for each in ({}, changes))
    assert [entry[:2] for entry in contents(free)] == [entry[:2] for entry in contents(other)]


def test_where_little_is_left_nothing_is_drawn_again(sampler: Any, tiny_model_dir: Path) -> None:
    """Two tokens, turns of one: both are drawn at the most, and rounds that ask for more of the root are shorter."""
    shape = {"max_turn_tokens": 1, "top_k": 2, "max_turns": 1, "num_expansions": 3}
    for least in (0.001, 0.4):
        config = make_config(settings(tiny_model_dir, shape | {"min_undrawn": least}))
        sizes: Counter[int] = Counter()
        for tree in (tree for trees in grow(sampler, config, 12) for tree in trees):
            chances = np.exp(tree.forest.columns()["logprobs"][-tree.num_leaves :]).tolist()
            sizes[tree.num_leaves] += 1
            left = 1.0
            for place, chance in enumerate(chances):
                assert place == 0 or left >= least
                left -= chance
            assert left < least
        assert set(sizes) == ({2} if least < 0.1 else {1, 2})


def test_a_chain_waits_for_those_before_it_at_its_node_alone() -> None:
    places = Siblings(0.05).places([3, 5, 3, 3])
    assert [place.before for place in places] == [None, None, places[0].sampled, places[2].sampled]
    assert all(place.before is None for place in Siblings(None).places([3, 5, 3, 3]))
    siblings = Siblings(0.3)
    siblings.note(3, Completion([1], [float(np.log(0.75))], "", "stop"))
    assert [siblings.may_draw(node) for node in (3, 5)] == [False, True]
    assert siblings.drawn(3) == (((1,), (float(np.log(0.75)),)),)


def test_values_have_no_bias_in_real_rollouts(sampler: Any, tiny_model_dir: Path) -> None:
    """Two of four turns in each of two trees, 250 times: the mean of what state-loo takes for the root's value."""
    shape = {"max_turns": 1, "max_turn_tokens": 2, "top_k": 2, "temperature": 2.0, "num_expansions": 1, "num_rounds": 1}
    groups = grow(sampler, make_config(settings(tiny_model_dir, shape | {"min_undrawn": 0.001})), 250)
    values, known = [], {}
    for trees in groups:
        forest = join(trees)
        values.append(forest.score("state-loo", {"siblings": "distinct"}).value[0])
        for tree in trees:
            columns = tree.forest.columns()
            for node in range(1, tree.forest.num_nodes):
                start, end = columns["token_start"][node : node + 2]
                chance = np.exp(columns["logprobs"][start:end].sum(dtype=np.float64))
                known[tuple(columns["token_ids"][start:end].tolist())] = chance * worth(tree.turns[node].text)
                known[tuple(columns["token_ids"][start:end].tolist()), ""] = chance
    assert sum(chance for turn, chance in known.items() if turn[-1] == "") == pytest.approx(1, abs=1e-4)
    truth = sum(part for turn, part in known.items() if turn[-1] != "")
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - truth) < 3 * error < 0.05


def test_a_run_rolls_out_and_trains(tmp_path: Path, tiny_model_dir: Path) -> None:
    given = small_run(tmp_path, tiny_model_dir, train={"num_steps": 2, "eval_steps": 2})
    given |= {"environment": {"name": f"{HERE}:Listening"}, "advantage": STATE_LOO}
    given["rollout"] |= {"distinct_siblings": True, "max_turn_tokens": 2}
    train(make_config(given), Reporter(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "tree/num_nodes" in row]
    assert len(steps) == 2
    assert all(row["tree/frac_zero_advantage_nodes"] < 1 for row in steps)
    (tmp_path / "c.toml").write_text(tomli_w.dumps(given))
    done = treegrpo("rollout", "c.toml", "--output", "t.jsonl", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (tmp_path / "t.jsonl").read_text().splitlines():
        nodes = json.loads(line)["nodes"]
        turns = [(node["parent"], tuple(node["token_ids"][: len(node["logprobs"])])) for node in nodes]
        assert len(set(turns)) == len(turns)


@pytest.mark.parametrize(
    ("rollout", "advantage", "message"),
    [
        (True, {"estimator": "tree-grpo"}, "distinct_siblings beside tree-grpo, which takes siblings for independent"),
        (True, {"estimator": "state-loo"}, "distinct_siblings beside state-loo"),
        (False, STATE_LOO, 'advantage.siblings = "distinct" beside rollout.distinct_siblings = false'),
    ],
)
def test_an_estimator_with_other_weights_is_refused_in_one_line(
    tiny_model_dir: Path, rollout: bool, advantage: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        make_config(settings(tiny_model_dir, {"distinct_siblings": rollout}, advantage=advantage))
    assert "\n" not in str(refused.value)
