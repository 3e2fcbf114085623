"""The forest keeps its invariants, whoever fills it: row by row while it grows, or a whole batch at once."""

import gc
import math
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from treegrpo_cli._core import NO_PARENT, CoreError, Forest, estimators
from treegrpo_cli.types import NodeStatus

OPEN, DONE = NodeStatus.OPEN, NodeStatus.DONE
KINDS = {
    "prompt": np.uint32,
    "parent": np.uint32,
    "tree": np.uint32,
    "status": np.uint8,
    "reward": np.float64,
    "policy_version": np.uint32,
    "token_start": np.uint64,
    "token_ids": np.uint32,
    "sampled": np.bool_,
    "logprobs": np.float32,
    "entropy": np.float64,
    "round": np.uint32,
    "entropies": np.float32,
    "confidence": np.float64,
}


def columns(**changed: Any) -> dict[str, Any]:
    """Two trees of one prompt: 0 -> 2 -> (3, 4) and 1 -> 5; leaves 3, 4 and 5 are scored."""
    plain = {
        "prompt": [7, 7],
        "parent": [NO_PARENT, NO_PARENT, 0, 2, 2, 1],
        "tree": [0, 1, 0, 0, 0, 1],
        "status": [OPEN, OPEN, OPEN, DONE, DONE, DONE],
        "reward": [math.nan, math.nan, math.nan, 1.0, 0.0, 0.5],
        "policy_version": [0, 0, 3, 3, 4, 3],
        "token_start": [0, 2, 4, 6, 7, 7, 9],
        "token_ids": [1, 2, 1, 2, 10, 11, 12, 20, 21],
        "sampled": [False, False, False, False, True, False, True, True, True],
        "logprobs": [0.0, 0.0, 0.0, 0.0, -0.5, 0.0, -0.25, -1.0, -2.0],
        **changed,
    }
    return {name: np.array(column, dtype=KINDS[name]) for name, column in plain.items()}


def batch(**changed: Any) -> Forest:
    return Forest.from_columns(**columns(**changed))


def ids(*token_ids: int) -> Any:
    return np.array(token_ids, dtype=np.uint32)


def add(forest: Forest, parent: int, status: int, *token_ids: int) -> int:
    count = len(token_ids)
    return forest.add_node(parent, ids(*token_ids), np.ones(count, bool), np.zeros(count, np.float32), status, 0)


def grown() -> Forest:
    """0 -> 1 (open) -> 2 (done)."""
    forest = Forest()
    add(forest, add(forest, forest.add_tree(3, ids(5, 6)), OPEN, 8), DONE, 9)
    return forest


def test_a_parent_precedes_its_child() -> None:
    with pytest.raises(ValueError, match="node 2: parent 3 does not precede it"):
        batch(parent=[NO_PARENT, NO_PARENT, 3, 0, 2, 1])
    with pytest.raises(ValueError, match="node 2: parent 2 does not precede it"):
        batch(parent=[NO_PARENT, NO_PARENT, 2, 2, 2, 1])
    with pytest.raises(ValueError, match="no node 3: the forest has 3"):
        add(grown(), 3, DONE)


def test_a_node_shares_its_parents_tree() -> None:
    with pytest.raises(ValueError, match="node 5 is in tree 1, its parent 2 in tree 0"):
        batch(parent=[NO_PARENT, NO_PARENT, 0, 2, 2, 2])
    forest = Forest()
    forest.add_tree(0, ids())
    second = forest.add_tree(0, ids())
    child = add(forest, second, DONE)
    assert forest.columns()["tree"][child] == 1


def test_token_columns_have_equal_length() -> None:
    for column in ("sampled", "logprobs"):
        with pytest.raises(ValueError, match=f"{column} has 8 entries, expected 9"):
            batch(**{column: [0] * 8})
    with pytest.raises(ValueError, match="sampled has 1 entries, expected 2"):
        grown().add_node(1, ids(1, 2), np.ones(1, bool), np.zeros(2, np.float32), DONE, 0)
    with pytest.raises(ValueError, match="logprobs has 3 entries, expected 2"):
        grown().add_node(1, ids(1, 2), np.ones(2, bool), np.zeros(3, np.float32), DONE, 0)


NAN = math.nan
DRAWN = {
    "round": [0, 0, 0, 0, 2, 1],
    "entropies": [NAN, NAN, NAN, NAN, 0.5, NAN, 1.5, 0.75, 0.25],
    "confidence": [NAN, NAN, -0.5, -0.25, NAN, -2.0],
}


@pytest.mark.parametrize(
    "column", ["tree", "status", "reward", "policy_version", "token_start", "round", "entropies", "confidence"]
)
def test_node_columns_have_equal_length(column: str) -> None:
    given = columns(**DRAWN)
    given[column] = given[column][:-1]
    with pytest.raises(ValueError, match=rf"{column} has \d entries, expected \d"):
        Forest.from_columns(**given)


def test_offsets_never_decrease_and_cover_all_tokens() -> None:
    with pytest.raises(ValueError, match="token offsets decrease at node 2"):
        batch(token_start=[0, 2, 4, 3, 7, 7, 9])
    with pytest.raises(ValueError, match="token_start begins with 1, expected 0"):
        batch(token_start=[1, 2, 4, 6, 7, 7, 9])
    with pytest.raises(ValueError, match="token_ids has 9 entries, expected 10"):
        batch(token_start=[0, 2, 4, 6, 7, 7, 10])
    with pytest.raises(ValueError, match="token_ids has 9 entries, expected 8"):
        batch(token_start=[0, 2, 4, 6, 7, 7, 8])


def test_only_a_childless_node_has_a_reward() -> None:
    with pytest.raises(ValueError, match="tree 0, node 2: only a closed leaf has a reward, and this node has children"):
        batch(reward=[math.nan, math.nan, 1.0, 1.0, 0.0, 0.5])
    with pytest.raises(ValueError, match="node has children"):
        grown().set_reward(1, 1.0)


def test_only_a_closed_node_has_a_reward() -> None:
    with pytest.raises(ValueError, match=r"tree 0, node 4: .* this node is open"):
        batch(status=[OPEN, OPEN, OPEN, DONE, OPEN, DONE])
    forest = grown()
    with pytest.raises(ValueError, match="this node is open"):
        forest.set_reward(add(forest, 1, OPEN), 1.0)


def test_a_reward_is_set_once() -> None:
    forest = grown()
    forest.set_reward(2, 0.5)
    with pytest.raises(ValueError, match=r"tree 0, node 2: .* has one already"):
        forest.set_reward(2, 0.5)
    assert forest.columns()["reward"][2] == 0.5


@pytest.mark.parametrize("reward", [math.inf, -math.inf])
def test_a_reward_is_finite(reward: float) -> None:
    with pytest.raises(ValueError, match=r"tree 1, node 5: reward -?inf is not finite"):
        batch(reward=[math.nan, math.nan, math.nan, 1.0, 0.0, reward])
    with pytest.raises(ValueError, match=r"tree 0, node 2: reward -?inf is not finite"):
        grown().set_reward(2, reward)
    with pytest.raises(ValueError, match="reward NaN is not finite"):
        grown().set_reward(2, math.nan)


@pytest.mark.parametrize("status", [NodeStatus.ERROR, NodeStatus.PRUNED])
def test_no_reward_stands_beside_error_or_pruned(status: NodeStatus) -> None:
    with pytest.raises(ValueError, match=r"tree 1, node 5: .* pruned or failed"):
        batch(status=[OPEN, OPEN, OPEN, DONE, DONE, status])
    forest = grown()
    with pytest.raises(ValueError, match="pruned or failed"):
        forest.set_reward(add(forest, 1, status), 1.0)


@pytest.mark.parametrize("status", [NodeStatus.TRUNCATED_TURNS, NodeStatus.TRUNCATED_TOKENS])
def test_a_truncated_leaf_may_have_a_reward(status: NodeStatus) -> None:
    forest = grown()
    leaf = add(forest, 1, status)
    forest.set_reward(leaf, 0.0)
    assert forest.columns()["reward"][leaf] == 0.0


def test_a_root_has_no_reward() -> None:
    with pytest.raises(ValueError, match=r"tree 1, node 1: .* this is a root"):
        batch(reward=[math.nan, 1.0, math.nan, 1.0, 0.0, 0.5])
    forest = Forest()
    with pytest.raises(ValueError, match="this is a root"):
        forest.set_reward(forest.add_tree(0, ids(1)), 1.0)


@pytest.mark.parametrize("status", [status for status in NodeStatus if status != OPEN])
def test_no_row_stands_below_a_closed_node(status: NodeStatus) -> None:
    with pytest.raises(ValueError, match="node 2 is closed: nothing can be added below it"):
        batch(status=[OPEN, OPEN, status, DONE, DONE, DONE])
    forest = grown()
    closed = add(forest, 1, status)
    with pytest.raises(ValueError, match="node 3 is closed"):
        add(forest, closed, DONE)


def test_a_tree_has_one_root() -> None:
    with pytest.raises(ValueError, match="node 1: tree 0 has a second root, its first is node 0"):
        batch(tree=[0, 0, 0, 0, 0, 1])


def test_a_tree_has_a_root() -> None:
    with pytest.raises(ValueError, match="tree 2 has no root"):
        batch(prompt=[7, 7, 8])


def test_a_node_is_of_a_tree_that_there_is() -> None:
    with pytest.raises(ValueError, match="no tree 2: the forest has 2"):
        batch(tree=[0, 2, 0, 0, 0, 2])
    with pytest.raises(ValueError, match="no tree 1: the forest has 1"):
        grown().leaves(1)


def test_a_status_is_one_of_six_codes() -> None:
    with pytest.raises(ValueError, match="node 4 has status code 6, expected 0 to 5"):
        batch(status=[OPEN, OPEN, OPEN, DONE, 6, DONE])
    with pytest.raises(ValueError, match="node 3 has status code 200"):
        add(grown(), 1, 200)


def test_a_refused_row_leaves_the_forest_as_it_was() -> None:
    forest = grown()
    for parent, status in ((2, DONE), (1, 6), (9, DONE)):
        with pytest.raises(ValueError, match="node"):
            add(forest, parent, status, 1, 2)
    assert (forest.num_nodes, forest.num_tokens) == (3, 4)
    assert forest.leaves(0).tolist() == [2]


def test_rows_added_one_by_one_and_at_once_are_the_same() -> None:
    given = columns(**DRAWN)
    forest = Forest()
    starts = given["token_start"]
    for node, (parent, tree) in enumerate(zip(given["parent"], given["tree"], strict=True)):
        span = slice(starts[node], starts[node + 1])
        token_ids, sampled, logprobs = (given[name][span] for name in ("token_ids", "sampled", "logprobs"))
        if parent == NO_PARENT:
            assert forest.add_tree(given["prompt"][tree], token_ids) == node
        else:
            version, status = given["policy_version"][node], given["status"][node]
            drawn = (given["round"][node], given["entropies"][span], given["confidence"][node])
            assert forest.add_node(parent, token_ids, sampled, logprobs, status, version, *drawn) == node
        if not math.isnan(given["reward"][node]):
            forest.set_reward(node, given["reward"][node])
    whole = batch(**DRAWN).columns()
    for name, column in forest.columns().items():
        np.testing.assert_array_equal(column, whole[name])
    assert (forest.num_trees, forest.num_nodes, forest.num_tokens) == (2, 6, 9)


def test_a_nodes_entropy_is_the_mean_over_its_sampled_tokens_unless_it_is_given() -> None:
    assert batch().columns()["entropy"].tolist() == pytest.approx([NAN] * 6, nan_ok=True)
    found = batch(**DRAWN).columns()
    assert found["entropy"].tolist() == pytest.approx([NAN, NAN, 0.5, 1.5, NAN, 0.5], nan_ok=True)
    given = batch(**DRAWN, entropy=[NAN, NAN, NAN, 3.0, 0.125, NAN]).columns()
    assert given["entropy"].tolist() == pytest.approx([NAN, NAN, 0.5, 3.0, 0.125, 0.5], nan_ok=True)
    partly = batch(**{**DRAWN, "entropies": [NAN, NAN, NAN, NAN, NAN, 7.0, 1.5, NAN, 0.25]}).columns()
    assert partly["entropy"].tolist() == pytest.approx([NAN, NAN, NAN, 1.5, NAN, 0.25], nan_ok=True)


def test_whether_rounds_and_log_probabilities_are_known_is_kept() -> None:
    told = batch(**DRAWN)
    untold = Forest.from_columns(**{name: column for name, column in columns().items() if name != "logprobs"})
    assert (told.knows_rounds, told.knows_logprobs) == (True, True)
    assert (untold.knows_rounds, untold.knows_logprobs) == (False, False)
    assert untold.columns()["round"].tolist() == [0] * 6
    assert (grown().knows_rounds, grown().knows_logprobs) == (True, True)
    assert Forest.concat([told, grown()]).knows_rounds
    for joined in (Forest.concat([told, untold]), Forest.concat([untold, grown()])):
        assert (joined.knows_rounds, joined.knows_logprobs) == (False, False)
    assert Forest.concat([]).knows_rounds
    rows = {"row_start": np.array([0, 2], np.uint64), "token_ids": ids(1, 2), "sampled": np.array([False, True])}
    rows |= {"prompt": ids(0), "reward": np.ones(1)}
    for given in ({}, {"logprobs": np.zeros(2, np.float32)}):
        merged, _ = Forest.from_chains(**rows, **given)  # type: ignore[arg-type]
        assert (merged.knows_rounds, merged.knows_logprobs) == (False, bool(given))


def test_a_node_is_of_no_earlier_round_than_its_parent() -> None:
    with pytest.raises(CoreError, match="tree 0, node 3: round 1 comes before its parent's, 2"):
        batch(round=[0, 0, 2, 1, 2, 0])
    forest = grown()
    later = forest.add_node(1, ids(1), np.ones(1, bool), np.zeros(1, np.float32), OPEN, 0, round=2)
    with pytest.raises(CoreError, match="tree 0, node 4: round 0 comes before its parent's, 2"):
        add(forest, later, DONE)
    assert forest.columns()["round"].tolist() == [0, 0, 0, 2]


def test_columns_that_follow_from_others_are_filled_in() -> None:
    shown = batch().columns()
    assert shown["root"].tolist() == [0, 1]
    assert shown["depth"].tolist() == [0, 0, 1, 2, 2, 1]
    assert batch().gen_tokens().tolist() == [0, 0, 1, 1, 0, 2]


def test_a_path_leads_from_the_root_and_a_context_is_its_tokens() -> None:
    forest = batch()
    assert forest.path(3).tolist() == [0, 2, 3]
    assert forest.context(3).tolist() == [1, 2, 10, 11, 12]
    assert forest.context(5).tolist() == [1, 2, 20, 21]
    assert forest.context(1).tolist() == [1, 2]
    assert forest.leaves(0).tolist() == [3, 4]
    with pytest.raises(ValueError, match="no node 6: the forest has 6"):
        forest.context(6)


def test_lending_the_columns_freezes_the_forest() -> None:
    forest = grown()
    forest.columns()
    for change in (lambda: add(forest, 1, DONE), lambda: forest.add_tree(0, ids()), lambda: forest.set_reward(2, 1.0)):
        with pytest.raises(ValueError, match="the forest is frozen"):
            change()
    assert forest.path(2).tolist() == [0, 1, 2]


def test_views_of_columns_are_read_only() -> None:
    forest = batch()
    scores = forest.score("grpo", {})
    views = [*forest.columns().values(), scores.value, scores.advantage, scores.leaf_advantage, scores.num_leaves]
    for view in views:
        assert view is not None
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


def test_views_of_columns_are_not_copies() -> None:
    forest = batch()
    first, second = forest.columns(), forest.columns()
    assert all(np.shares_memory(first[name], second[name]) for name in first)
    scores = forest.score("parent", {})
    assert np.shares_memory(scores.value, scores.value)


def test_a_view_keeps_its_forest_alive() -> None:
    forest = batch()
    reward, value = forest.columns()["reward"], forest.score("parent", {}).value
    del forest
    gc.collect()
    assert reward.tolist()[3:] == [1.0, 0.0, 0.5]
    assert value.tolist() == [0.5, 0.5, 0.5, 1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("column", "dtype"), [("parent", np.int64), ("reward", np.float32), ("status", np.int8), ("logprobs", np.float64)]
)
def test_a_column_of_the_wrong_dtype_is_refused(column: str, dtype: Any) -> None:
    given = columns()
    with pytest.raises(TypeError, match=column):
        Forest.from_columns(**{**given, column: given[column].astype(dtype)})


def test_a_column_with_gaps_is_refused() -> None:
    given = columns()
    with pytest.raises(TypeError, match="not contiguous"):
        Forest.from_columns(**{**given, "reward": np.repeat(given["reward"], 2)[::2]})


def test_scores_of_another_forest_are_refused() -> None:
    forest, twin, other = batch(), batch(), grown()
    for scores in (twin.score("grpo", {}), other.score("grpo", {})):
        for use in (forest.chain_rows, forest.pack):
            with pytest.raises(CoreError, match="the scores are of another forest"):
                use(scores)
    forest.pack(forest.score("grpo", {}))


def test_scores_of_a_forest_before_it_changed_are_refused() -> None:
    forest = grown()
    scores = forest.score("grpo", {})
    forest.set_reward(2, 1.0)
    with pytest.raises(CoreError, match="of this one before it changed"):
        forest.chain_rows(scores)


def test_bytes_of_flags_are_true_where_they_are_not_zero() -> None:
    odd = np.array([0, 0, 2, 255, 0, 128, 0, 1, 3], dtype=np.uint8).view(np.bool_)
    assert batch(sampled=odd).columns()["sampled"].view(np.uint8).tolist() == [0, 0, 1, 1, 0, 1, 0, 1, 1]
    assert batch(sampled=odd).gen_tokens().sum() == 5
    forest = grown()
    forest.add_node(1, ids(1, 2), odd[2:4], np.zeros(2, np.float32), DONE, 0)
    assert forest.gen_tokens()[-1] == 2
    with pytest.raises(TypeError, match="not contiguous"):
        forest.add_node(1, ids(1, 2), np.ones(4, bool)[::2], np.zeros(2, np.float32), DONE, 0)


@pytest.mark.parametrize("entropy", [math.inf, -math.inf])
def test_an_entropy_is_finite_or_missing(entropy: float) -> None:
    with pytest.raises(CoreError, match=r"tree 1, node 5: entropy -?inf is not finite"):
        batch(entropy=[1.0, 1.0, math.nan, 0.0, 2.0, entropy])
    with pytest.raises(CoreError, match=r"tree 1, node 5: entropy -?inf is not finite"):
        batch(entropies=[*DRAWN["entropies"][:-1], entropy])
    with pytest.raises(CoreError, match=r"tree 1, node 5: confidence -?inf is not finite"):
        batch(confidence=[NAN] * 5 + [entropy])
    forest, tokens = grown(), (ids(1), np.ones(1, bool), np.zeros(1, np.float32))
    with pytest.raises(CoreError, match=r"tree 0, node 3: entropy -?inf is not finite"):
        forest.add_node(1, *tokens, DONE, 0, entropies=np.array([entropy], np.float32))
    with pytest.raises(CoreError, match=r"tree 0, node 3: confidence -?inf is not finite"):
        forest.add_node(1, *tokens, DONE, 0, confidence=entropy)
    with pytest.raises(CoreError, match="entropies has 2 entries, expected 1"):
        forest.add_node(1, *tokens, DONE, 0, entropies=np.zeros(2, np.float32))
    assert forest.num_nodes == 3


def test_an_error_says_where_and_what_without_its_text_being_read() -> None:
    with pytest.raises(CoreError) as caught:
        batch(reward=[math.nan, math.nan, math.nan, 1.0, 0.0, math.inf])
    error = caught.value
    assert (error.tree, error.node, error.reason) == (1, 5, "reward inf is not finite")
    assert str(error) == "tree 1, node 5: reward inf is not finite"
    with pytest.raises(CoreError) as caught:
        grown().context(9)
    assert (caught.value.tree, caught.value.node, caught.value.reason) == (None, None, str(caught.value))
    assert issubclass(CoreError, ValueError)


@pytest.mark.parametrize("number", [-1, 2**32, 5_000_000_000, 2**5000])
def test_numbers_out_of_range_are_value_errors(number: int) -> None:
    forest = grown()
    calls = (
        lambda: forest.context(number),
        lambda: forest.path(number),
        lambda: forest.leaves(number),
        lambda: forest.set_reward(number, 1.0),
        lambda: forest.add_tree(number, ids(1)),
        lambda: add(forest, number, DONE),
        lambda: add(forest, 1, number),
        lambda: forest.score("grpo", {}).explain(number),
        lambda: forest.select(ids(1), number, [0]),
    )
    for call in calls:
        with pytest.raises(ValueError, match="an integer is out of range, expected 0 to "):
            call()
    layout = forest.pack(forest.score("grpo", {}))
    for max_tokens in (-1, 2**64, 2**5000):
        with pytest.raises(ValueError, match="an integer is out of range, expected 0 to "):
            layout.micro_batches(max_tokens)


def test_given_advantages_become_scores() -> None:
    forest = batch()
    by_node = forest.given_scores(np.arange(6.0), leaf_level=False, estimator="mine")
    assert (by_node.estimator, by_node.options, by_node.leaf_level) == ("mine", {}, False)
    assert by_node.advantage.tolist() == [0, 0, 2, 3, 4, 5]
    by_leaf = forest.given_scores(np.arange(6.0), leaf_level=True)
    assert by_leaf.advantage.tolist() == [0, 0, 3.5, 3, 4, 5]
    assert by_leaf.value.tolist() == forest.score("grpo", {}).value.tolist()
    own = forest.score("tree-grpo", {})
    again = forest.given_scores(own.advantage, leaf_level=True)
    for first, second in zip(forest.pack(own).micro_batches(9), forest.pack(again).micro_batches(9), strict=True):
        assert (first.gain.tolist(), first.penalty.tolist()) == (second.gain.tolist(), second.penalty.tolist())
    with pytest.raises(CoreError, match="tree 0, node 3: advantage NaN is not finite"):
        forest.given_scores(np.full(6, math.nan), leaf_level=True)
    with pytest.raises(CoreError, match="advantage has 5 entries, expected 6"):
        forest.given_scores(np.zeros(5), leaf_level=False)


def test_what_overflows_is_refused_instead_of_becoming_zero_or_infinite() -> None:
    reward = [math.nan, math.nan, math.nan, 1e308, -1e308, 1e308]
    for estimator, options in (("grpo", {}), ("sibling", {"scale": "std"}), ("parent", {"scale": "std"})):
        with pytest.raises(CoreError, match="the advantage is not finite: rewards or options are too large"):
            batch(reward=reward).score(estimator, options)
    with pytest.raises(CoreError, match="the advantage is not finite"):
        batch().score("grpo", {"scale": 5e-324})
    forest = batch()
    with pytest.raises(CoreError, match=r"prefix_weight: got .*, expected one whose weights are finite"):
        forest.pack(forest.score("grpo", {}), 1e308)


def chain(length: int) -> Forest:
    """One path of `length` nodes, a token each; its end is scored 1."""
    nodes = np.arange(length, dtype=np.uint32)
    reward = np.full(length, math.nan)
    reward[-1] = 1.0
    return Forest.from_columns(
        prompt=np.zeros(1, np.uint32),
        parent=nodes - np.uint32(1),
        tree=np.zeros(length, np.uint32),
        status=np.append(np.zeros(length - 1, np.uint8), np.uint8(DONE)),
        reward=reward,
        token_start=np.arange(length + 1, dtype=np.uint64),
        token_ids=nodes,
        sampled=nodes > 0,
        logprobs=np.zeros(length, np.float32),
        round=np.zeros(length, np.uint32),
    )


def test_a_chain_of_a_million_nodes_needs_no_recursion() -> None:
    length = 1_000_000
    forest = chain(length)
    assert (forest.path(length - 1) == np.arange(length)).all()
    assert (forest.context(length - 1) == np.arange(length)).all()
    for estimator in estimators():
        scores = forest.score(estimator, {})
        assert (scores.value == 1).all()
        alone = 1 if estimator == "causal" else 0  # nothing was drawn to compare with: its baseline is 0
        assert (scores.advantage[1:] == alone).all()
        assert (scores.num_leaves == 1).all()
        rows = forest.chain_rows(scores)
        assert (rows.row_start.tolist(), rows.leaf.tolist()) == ([0, length], [length - 1])
        assert (rows.input_ids == np.arange(length)).all()
    assert scores.depth[-1] == length - 1
    for value in ("child-mean", "max", "smoothed"):
        assert (forest.score("parent", {"value": value}).value == 1).all()
    del forest
    gc.collect()


def test_a_chain_of_two_million_nodes_is_joined_explained_listed_and_packed_at_once() -> None:
    length = 2_000_000
    forest = Forest.concat([chain(length)], [np.arange(length, dtype=np.uint32)])
    scores = forest.score("tree-grpo", {"singleton": "raw"})
    assert scores.explain(1)["nodes"] == [length - 1] * 2
    assert forest.leaf_columns()["path_tokens"].tolist() == [length]
    [micro] = forest.pack(scores).micro_batches(1)
    assert len(micro.target_ids) == length - 1
    columns = forest.columns()
    merged, leaf = Forest.from_chains(
        row_start=np.array([0, length], dtype=np.uint64),
        token_ids=columns["token_ids"],  # type: ignore[arg-type]
        sampled=np.arange(length) % 2 == 1,
        prompt=np.zeros(1, np.uint32),
        reward=np.ones(1),
    )
    assert (merged.num_nodes, leaf.tolist()) == (length // 2 + 1, [length // 2])


def test_scoring_lets_other_threads_run() -> None:
    forest, turns, done = chain(1_000_000), [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            turns[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # no thread is made to wait: the counter runs where scoring lets go of the interpreter
    counter = threading.Thread(target=count)
    counter.start()
    try:
        before = turns[0]
        for _ in range(20):
            forest.score("sibling", {"value": "child-mean"})
        after = turns[0]
    finally:
        sys.setswitchinterval(interval)
        done.set()
        counter.join()
    assert after > before
