"""Plain rows become trees by what they share, and come back as the rows that they were."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli import UserError, from_chains, score, training_rows

Row = dict[str, Any]


def search(first: list[int], seen: list[int], then: list[int], reward: float | None, **fields: Any) -> Row:
    """A rollout of two turns behind the prompt 1, 2: what it sampled, what it was shown, what it answered."""
    tokens = [1, 2, *first, *seen, *then]
    mask = [0, 0, *[1] * len(first), *[0] * len(seen), *[1] * len(then)]
    return {"prompt_id": "q", "input_ids": tokens, "loss_mask": mask, "reward": reward, **fields}


def test_rows_share_a_turn_and_what_it_was_shown_as_far_as_they_agree() -> None:
    rows = [search([5, 6], [7], [8], 1.0), search([5, 6], [7], [9, 9], 0.0), search([4], [7], [8], None)]
    [tree] = from_chains(rows)
    assert (tree.prompt_id, tree.tree_id) == ("q", 0)
    # root -> 5 6 7 -> 8, 9 9; root -> 4 7 -> 8
    shape = [(node["parent"], node["token_ids"], node["sampled"], node["reward"]) for node in tree.nodes]
    assert sorted(shape[1:], key=str) == sorted(
        [
            (0, [5, 6, 7], [[0, 2]], None),
            (1, [8], [[0, 1]], 1.0),
            (1, [9, 9], [[0, 2]], 0.0),
            (0, [4, 7], [[0, 1]], None),
            (shape.index((0, [4, 7], [[0, 1]], None)), [8], [[0, 1]], None),
        ],
        key=str,
    )
    assert shape[0] == (None, [1, 2], [], None)
    assert tree.nodes[1].get("logprobs") is None


def test_a_row_is_whole_tokens_with_a_mask_or_a_prompt_and_a_completion() -> None:
    whole = {"input_ids": [1, 2, 3, 4], "loss_mask": [0, 0, 1, 1], "logprobs": [0, 0, -0.5, -1], "reward": 1}
    split = {"prompt_ids": (1, 2), "completion_ids": np.array([3, 4]), "reward": np.float32(1)}
    padded = {"input_ids": [0, 1, 2, 3, 4, 0], "loss_mask": [False, False, False, True, True, False]}
    padded |= {"attention_mask": [0, 1, 1, 1, 1, 0], "logprobs": [-0.5, -1], "reward": np.int64(1)}
    rows = [
        whole,
        split | {"logprobs": [-0.5, -1]},
        split | {"loss_mask": [1, 1], "logprobs": [9, 9, -0.5, -1]},
        padded,
    ]
    trees = [from_chains([row])[0].nodes for row in rows]
    assert trees == [trees[0]] * 4
    assert trees[0][1]["logprobs"] == [-0.5, -1]
    assert trees[0][1]["reward"] == 1.0


def test_groups_are_prompt_ids_or_else_equal_prompts() -> None:
    rows = [
        {"prompt_ids": [prompt], "completion_ids": [end], "reward": end} for prompt, end in ((1, 2), (5, 3), (1, 4))
    ]
    assert [(tree.prompt_id, len(tree.nodes)) for tree in from_chains(rows)] == [("00000000", 3), ("00000001", 2)]
    named = [row | {"prompt_id": name} for row, name in zip(rows, (7, "b", "c"), strict=True)]
    assert [(tree.prompt_id, len(tree.nodes)) for tree in from_chains(named)] == [("7", 2), ("b", 2), ("c", 2)]


def test_rows_of_other_tree_ids_are_kept_apart_and_stand_with_their_prompt() -> None:
    rows = [search([5], [], [], 1.0, tree_id=1), search([5], [], [], 0.0, prompt_id="r")]
    rows.append(search([5], [], [], 0.0, tree_id=0))
    assert [(tree.prompt_id, tree.tree_id) for tree in from_chains(rows)] == [("q", 1), ("q", 0), ("r", 0)]


def test_what_else_a_row_holds_goes_to_its_leaf_and_comes_back_with_it() -> None:
    row = search([5], [7], [8], 1.0, id="x9", length=np.int64(3), status="truncated_turns", policy_version=4)
    row |= {"task": {"question": "Which?"}, "num_tool_calls": 1}
    [tree] = from_chains([row, search([6], [7], [8], 0.0)])
    assert tree.task == {"question": "Which?"}
    first, second = training_rows(score(tree, "grpo"))
    assert first["extra"] == {"row_id": "x9", "length": 3, "num_tool_calls": 1}
    assert second["extra"] == {}
    leaf = tree.nodes[first["leaf_id"]]
    assert (leaf["status"], leaf["policy_version"]) == ("truncated_turns", 4)


def test_advantages_of_merged_rows_are_those_of_their_group() -> None:
    rows = [search([5, 6], [7], [8], 1.0), search([5, 6], [7], [9], 0.0), search([4], [7], [8], 0.0)]
    back = training_rows(score(from_chains(rows), "grpo", scale="none"))
    assert [row["reward"] for row in back] == [1.0, 0.0, 0.0]
    for row, advantage in zip(back, (2 / 3, -1 / 3, -1 / 3), strict=True):
        assert row["advantages"].tolist() == pytest.approx((row["loss_mask"] * advantage).tolist())
    shared, _, alone = training_rows(score(from_chains(rows), "parent"))
    assert shared["advantages"].tolist() == pytest.approx([0, 0, 1 / 6, 1 / 6, 0, 1 / 2])
    assert alone["advantages"].tolist() == pytest.approx([0, 0, -1 / 3, 0, 0])


@settings(max_examples=100, deadline=None)
@given(
    tails=st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=8), min_size=1, max_size=6
    ),
    known=st.booleans(),
)
def test_rows_come_back_from_their_trees_token_for_token(tails: list[list[tuple[int, bool]]], known: bool) -> None:
    rows = []
    for number, tail in enumerate(tails):
        tokens, mask = [9, *(token for token, _ in tail), 8], [False, *(flag for _, flag in tail), True]
        mask[1] = True  # the prompt is 9 for all of them
        logprobs = [-0.25 * token * flag for token, flag in zip(tokens, mask, strict=True)] if known else None
        rows.append({"prompt_id": "q", "input_ids": tokens, "loss_mask": mask, "logprobs": logprobs, "reward": number})
    back = training_rows(score(from_chains(rows), "grpo"))
    assert sorted(row["reward"] for row in back) == list(range(len(rows)))
    for row in back:
        given_row = rows[int(row["reward"])]
        assert row["input_ids"].tolist() == given_row["input_ids"]
        assert row["loss_mask"].tolist() == given_row["loss_mask"]
        assert (row["logprobs"] is None) == (not known)
        if row["logprobs"] is not None:
            assert row["logprobs"].tolist() == given_row["logprobs"]
        assert (row["group"], row["tree_id"]) == ("q", 0)
    again = from_chains(sorted(back, key=lambda row: row["reward"]))
    assert again == from_chains(rows)


def test_no_rows_are_no_trees() -> None:
    assert from_chains([]) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"loss_mask": None}, "without a loss_mask"),
        ({"loss_mask": [0, 1]}, "loss_mask has 2 entries for 4 tokens"),
        ({"logprobs": [-1.0, -2.0, -3.0]}, "logprobs has 3 entries"),
        ({"logprobs": [0, 0, 0, float("nan")]}, "finite"),
        ({"input_ids": [1, 2, 5, -1]}, "input_ids are integers"),
        ({"input_ids": [1, 2, 5, 0.5]}, "input_ids are integers"),
        ({"input_ids": "text"}, "input_ids is 'text'"),
        ({"input_ids": [[1, 2, 5, 8]]}, "2 dimensions"),
        ({"reward": "good"}, "reward is 'good'"),
        ({"reward": float("inf")}, "finite"),
        ({"prompt_id": 1.5}, "prompt_id is 1.5"),
        ({"tree_id": -1}, "tree_id is -1"),
        ({"status": "don"}, "did you mean 'done'"),
        ({"status": "open"}, "status is 'open'"),
        ({"status": "error"}, "status 'error' cannot have a reward"),
        ({"reward": 10**400}, "finite"),
        ({"input_ids": [10**400, 2, 5, 8]}, "input_ids is a list"),
        ({"extra": [1]}, "extra is a list of 1"),
        ({"task": "?"}, "task is '?'"),
        ({"status": ["done"]}, "status is a list"),
        ({"parent": 1}, "parent is a field of the tree"),
        ({"input_ids": [3, 2, 5, 8]}, "is not that of row 0"),
    ],
)
def test_a_row_that_cannot_be_taken_is_named(change: Row, complaint: str) -> None:
    good = search([5], [], [8], 1.0)
    with pytest.raises(UserError, match=r"row 1: ") as refused:
        from_chains([good, search([5], [], [8], 0.0) | change])
    assert complaint in str(refused.value)


def test_a_row_is_a_dict() -> None:
    rows: Any = [search([5], [], [8], 1.0), [1, 2]]
    with pytest.raises(UserError, match="row 1 is a list of 2, expected a dict"):
        from_chains(rows)


def test_a_row_needs_tokens_and_says_whether_it_has_a_reward() -> None:
    with pytest.raises(UserError, match="row 0: needs input_ids and loss_mask, or prompt_ids"):
        from_chains([{"reward": 1.0}])
    with pytest.raises(UserError, match="no 'reward'"):
        from_chains([{"prompt_ids": [1], "completion_ids": [2]}])
