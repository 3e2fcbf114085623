"""Plain rows merged into trees keep their credit, and share what they begin with."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import NO_PARENT, CoreError, Forest
from treegrpo_cli.types import NodeStatus

Row = dict[str, Any]
EXAMPLES = settings(max_examples=300, deadline=None)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Rows of up to two prompts that often begin alike, end early, or are equal; with prompts, turns, observations."""
    made = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = draw(st.integers(0, 1))
        tokens = [(token, False) for token in ([9, 8] if prompt else [9])[: draw(st.sampled_from([2, 2, 2, 1, 0]))]]
        for _ in range(draw(st.integers(0, 3))):
            tokens += [(draw(st.integers(0, 1)), True) for _ in range(draw(st.integers(1, 2)))]
            tokens += [(draw(st.integers(0, 1)), False) for _ in range(draw(st.integers(0, 2)))]
        reward = draw(st.sampled_from([0.0, 1.0, 0.5, None]))
        made.append({"prompt": prompt, "tokens": tokens, "reward": reward})
    return made


def columns_of(rows: list[Row]) -> dict[str, Any]:
    flat = [token for row in rows for token in row["tokens"]]
    return {
        "row_start": np.cumsum([0, *(len(row["tokens"]) for row in rows)]).astype(np.uint64),
        "token_ids": np.array([token for token, _ in flat], dtype=np.uint32),
        "sampled": np.array([sampled for _, sampled in flat], dtype=np.bool_),
        "logprobs": np.array([-0.5 if sampled else 0.0 for _, sampled in flat], dtype=np.float32),
        "prompt": np.array([row["prompt"] for row in rows], dtype=np.uint32),
        "reward": np.array([np.nan if row["reward"] is None else row["reward"] for row in rows], dtype=np.float64),
    }


def chains_of(rows: list[Row]) -> Forest:
    """Every row a tree of its own: a root without tokens, and one turn."""
    forest = Forest()
    for row in rows:
        root = forest.add_tree(row["prompt"], np.zeros(0, np.uint32))
        token_ids = np.array([token for token, _ in row["tokens"]], dtype=np.uint32)
        sampled = np.array([sampled for _, sampled in row["tokens"]], dtype=np.bool_)
        logprobs = np.where(sampled, np.float32(-0.5), np.float32(0))
        leaf = forest.add_node(root, token_ids, sampled, logprobs, NodeStatus.DONE, 0)
        if row["reward"] is not None:
            forest.set_reward(leaf, row["reward"])
    return forest


@EXAMPLES
@given(rows=rows())
def test_every_row_is_the_path_of_its_own_leaf(rows: list[Row]) -> None:
    forest, leaf = Forest.from_chains(**columns_of(rows))
    columns = forest.columns()
    assert len(set(leaf.tolist())) == len(rows)
    assert sorted(leaf.tolist()) == forest.leaf_columns()["node"].tolist()
    for node, row in zip(leaf.tolist(), rows, strict=True):
        path = forest.path(node)
        spans = [slice(*columns["token_start"][step : step + 2].tolist()) for step in path.tolist()]
        sampled = np.concatenate([columns["sampled"][span] for span in spans])
        assert list(zip(forest.context(node).tolist(), sampled.tolist(), strict=True)) == row["tokens"]
        np.testing.assert_equal(columns["reward"][node], np.nan if row["reward"] is None else row["reward"])
        assert columns["prompt"][columns["tree"][node]] == row["prompt"]
    assert columns["prompt"].tolist() == list(dict.fromkeys(row["prompt"] for row in rows))


@EXAMPLES
@given(rows=rows())
def test_a_node_is_a_turn_or_the_part_of_one_that_rows_share(rows: list[Row]) -> None:
    forest, _ = Forest.from_chains(**columns_of(rows))
    columns = forest.columns()
    children: dict[int, list[tuple[int, bool]]] = {}
    for node in range(forest.num_nodes):
        span = slice(*columns["token_start"][node : node + 2].tolist())
        sampled = columns["sampled"][span].tolist()
        assert sampled == sorted(sampled, reverse=True) or not any(sampled[sampled.index(False) :])
        parent = int(columns["parent"][node])
        if parent == NO_PARENT:
            assert not any(sampled)
        elif sampled:
            children.setdefault(parent, []).append((int(columns["token_ids"][span][0]), sampled[0]))
    for openings in children.values():
        assert len(set(openings)) == len(openings)


@EXAMPLES
@given(rows=rows())
def test_the_root_is_what_no_row_of_the_prompt_sampled(rows: list[Row]) -> None:
    forest, _ = Forest.from_chains(**columns_of(rows))
    for tree, root in enumerate(forest.columns()["root"].tolist()):
        of_prompt = [row["tokens"] for row in rows if row["prompt"] == forest.columns()["prompt"][tree]]
        common = 0
        while all(len(tokens) > common for tokens in of_prompt) and len({tokens[common] for tokens in of_prompt}) == 1:
            if of_prompt[0][common][1]:
                break
            common += 1
        assert forest.context(root).tolist() == [token for token, _ in of_prompt[0][:common]]


@EXAMPLES
@given(rows=rows(), options=st.sampled_from([{}, {"center": "loo", "scale": "none"}]))
def test_grpo_gives_each_row_what_it_gives_the_row_as_a_chain(rows: list[Row], options: dict[str, Any]) -> None:
    forest, leaf = Forest.from_chains(**columns_of(rows))
    chains = chains_of(rows)
    merged = forest.score("grpo", options).leaf_advantage
    apart = chains.score("grpo", options).leaf_advantage
    assert merged is not None
    assert apart is not None
    np.testing.assert_array_equal(merged[leaf], apart[1::2])


@EXAMPLES
@given(rows=rows(), p=st.sampled_from([1.0, 0.0]))
def test_merged_rows_and_chains_are_laid_out_as_the_same_tokens(rows: list[Row], p: float) -> None:
    forest, _ = Forest.from_chains(**columns_of(rows))
    chains = chains_of(rows)
    merged = forest.pack(forest.score("grpo", {}), p)
    apart = chains.pack(chains.score("grpo", {}), p)
    scored = {
        tuple(row["tokens"][: end + 1])
        for row in rows
        if row["reward"] is not None
        for end in range(len(row["tokens"]))
    }
    assert len(merged.token_ids) == len({tuple(token for token, _ in tokens) for tokens in scored})
    assert sorted(merged.token_ids.tolist()) == sorted(apart.token_ids.tolist())
    if p == 1.0:
        assert merged.weighted_tokens == pytest.approx(apart.weighted_tokens)
        for layout, other in ((merged, apart), (apart, merged)):
            total = sum(float(micro.gain.sum()) for micro in layout.micro_batches(100))
            assert total == pytest.approx(sum(float(micro.gain.sum()) for micro in other.micro_batches(100)))


def test_rows_part_where_they_were_drawn_from_other_policies_or_too_far_apart() -> None:
    columns = columns_of([{"prompt": 0, "tokens": [(1, False), (2, True), (3, True)], "reward": 1.0}] * 2)

    def num_tokens(**changed: Any) -> int:
        return Forest.from_chains(**{**columns, **changed})[0].num_tokens

    far = np.array([0, -0.5, -0.5, 0, -0.5, -0.9], dtype=np.float32)
    assert num_tokens() == num_tokens(logprobs=far) == 3
    assert num_tokens(logprobs=far, logprob_tolerance=0.1) == 4
    assert num_tokens(policy_version=np.array([0, 1], dtype=np.uint32)) == 5
    assert Forest.from_chains(**{**columns, "logprobs": far})[0].columns()["logprobs"].tolist() == [0, -0.5, -0.5]


def test_a_leaf_has_the_status_of_its_row() -> None:
    rows = [{"prompt": 0, "tokens": [(1, True)], "reward": 1.0}, {"prompt": 0, "tokens": [(1, True)], "reward": None}]
    status = np.array([NodeStatus.TRUNCATED_TOKENS, NodeStatus.ERROR], dtype=np.uint8)
    forest, leaf = Forest.from_chains(**columns_of(rows), status=status)
    assert forest.columns()["status"][leaf].tolist() == status.tolist()
    with pytest.raises(CoreError, match="row 0: status code 5"):
        Forest.from_chains(**columns_of(rows), status=status[::-1].copy())


def test_many_rows_of_many_tokens_are_merged_at_once() -> None:
    """Quadratic in rows or in tokens, this would take minutes."""
    num, long = 50_000, 500_000
    star = {
        "row_start": np.arange(0, 2 * num + 1, 2, dtype=np.uint64),
        "token_ids": np.stack([np.zeros(num, np.uint32), np.arange(num, dtype=np.uint32)], axis=1).ravel(),
        "sampled": np.tile([False, True], num),
        "prompt": np.zeros(num, np.uint32),
        "reward": np.zeros(num),
    }
    forest, leaf = Forest.from_chains(**star)
    assert (forest.num_nodes, leaf.tolist()) == (num + 1, list(range(1, num + 1)))
    pair = {
        "row_start": np.array([0, long, 2 * long], dtype=np.uint64),
        "token_ids": np.tile(np.arange(long, dtype=np.uint32), 2),
        "sampled": np.tile(np.arange(long) % 2 == 1, 2),
        "prompt": np.zeros(2, np.uint32),
        "reward": np.zeros(2),
    }
    assert Forest.from_chains(**pair)[0].num_tokens == long
