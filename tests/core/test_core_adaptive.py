"""`causal` and `state-loo`: the core agrees with the slow reference, and what they cannot take is one line."""

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import CoreError, Forest, Scores, estimator_options

from tests import reference_adaptive
from tests.forests import columns_of, make_node, trees
from tests.reference import Node, Tree, scored_leaves, walk

SCALES = st.sampled_from(["none", "std", 0.5])
COMMON = {"scale": SCALES, "ddof": st.sampled_from([0, 1]), "eps": st.sampled_from([0.0, 1e-6])}
CAUSAL = st.fixed_dictionaries(COMMON | {"weight": st.sampled_from(["one", "reach"])})
STATE_LOO = st.fixed_dictionaries(
    {"kappa": st.sampled_from([0.0, 0.5, 3.0])} | COMMON | {"siblings": st.sampled_from(["independent", "distinct"])}
)
FORESTS = trees(vocabulary=2, shared_prompts=True)
REFERENCES = {"causal": reference_adaptive.causal, "state-loo": reference_adaptive.state_loo}


def grown(forest: list[Tree], draw: random.Random, shuffle: bool) -> tuple[Forest, list[Node]]:
    """With rounds as growth gives them: one child at most goes on in its parent's round."""

    def give(node: Node, round_: int) -> None:
        node["round"] = round_
        later = [False, *[True] * len(node["children"])]
        if draw.random() < 0.1:
            later[0] = True
        draw.shuffle(later)
        for child, is_later in zip(node["children"], later, strict=False):
            give(child, round_ + (draw.choice([1, 1, 2, 7]) if is_later else 0))

    for tree in forest:
        give(tree["root"], 0)
        tree["root"]["children"].sort(key=lambda child: child["round"])
    columns, nodes = columns_of(forest, draw if shuffle else None)
    columns["round"] = np.array([node["round"] for node in nodes], dtype=np.uint32)
    return Forest.from_columns(**columns), nodes


def drawn_twice(forest: list[Tree]) -> bool:
    """Whether siblings hold the same sampled tokens."""
    for node in [node for tree in forest for node in walk(tree["root"])]:
        turns = [tuple(token for token, sampled, _ in child["tokens"] if sampled) for child in node["children"]]
        if len(set(turns)) < len(turns):
            return True
    return False


def assert_as_the_reference(estimator: str, forest: list[Tree], options: dict[str, Any], seed: int) -> None:
    # siblings of one round are in the order of their rows, which a shuffle may change
    core, nodes = grown(forest, random.Random(seed), shuffle=options.get("siblings") != "distinct")
    scores = core.score(estimator, options)
    assert scores.options == options
    for prompt in {tree["prompt"] for tree in forest}:
        group = [tree for tree in forest if tree["prompt"] == prompt]
        expected = REFERENCES[estimator](group, options)
        roots = {id(tree["root"]) for tree in group}
        members = {id(node) for tree in group for node in walk(tree["root"])}
        for row, node in enumerate(nodes):
            if id(node) not in members or not scored_leaves(node):
                assert id(node) not in members or math.isnan(scores.advantage[row])
                continue
            ours = expected[id(node)]
            assert scores.value[row] == pytest.approx(ours["value"], rel=1e-9, abs=1e-9)
            if id(node) not in roots:
                assert scores.advantage[row] == pytest.approx(ours["advantage"], rel=1e-7, abs=1e-7)
                assert weights_of(scores)[row] == pytest.approx(ours["weight"], rel=1e-9, abs=1e-12)


def weights_of(scores: Scores) -> Any:
    assert scores.weight is not None
    return scores.weight


def clear(forest: list[Tree]) -> bool:
    """No two rewards so close that rounding decides whether a prompt is flat."""
    rewards = sorted({leaf["reward"] for tree in forest for leaf in scored_leaves(tree["root"])})
    return all(b - a > 1e-4 for a, b in pairwise(rewards))


@settings(max_examples=200, deadline=None)
@given(forest=FORESTS, options=CAUSAL, seed=st.integers(0, 9))
def test_causal_agrees_with_the_reference(forest: list[Tree], options: dict[str, Any], seed: int) -> None:
    assume(clear(forest))
    assert_as_the_reference("causal", forest, options, seed)


@settings(max_examples=250, deadline=None)
@given(forest=FORESTS, options=STATE_LOO, seed=st.integers(0, 9))
def test_state_loo_agrees_with_the_reference(forest: list[Tree], options: dict[str, Any], seed: int) -> None:
    assume(clear(forest))
    if options["siblings"] == "distinct" and drawn_twice(forest):
        core, _ = grown(forest, random.Random(seed), shuffle=False)
        with pytest.raises(CoreError, match="siblings=distinct says that no turn was drawn twice"):
            core.score("state-loo", options)
        return
    assert_as_the_reference("state-loo", forest, options, seed)


def turn(token: int, children: list[Node] | None = None, reward: float | None = None, p: float = 0.5) -> Node:
    return make_node(children, reward) | {"tokens": [(token, True, math.log(p))]}


def scored(forest: list[Tree], rounds: list[int], estimator: str, **options: Any) -> Scores:
    """Rounds are those of the rows: trees one after the other, level by level."""
    columns, _ = columns_of(forest)
    columns["round"] = np.array(rounds, dtype=np.uint32)
    return Forest.from_columns(**columns).score(estimator, options)


def tree_of(*children: Node) -> list[Tree]:
    return [{"prompt": 0, "root": make_node(list(children))}]


def test_a_later_expansion_below_a_turn_does_not_enter_its_credit() -> None:
    forest = tree_of(turn(1, [turn(2, reward=0.0), turn(3, reward=1.0)]), turn(4, reward=1.0))
    scores = scored(forest, [0, 0, 2, 0, 1], "causal")
    # the first chain failed, and nothing was known before it; what succeeded in round 2 is measured from it
    assert scores.advantage.tolist() == [0.0, 0.0, 1.0, 0.0, 1.0]
    assert weights_of(scores).tolist()[1:] == [1.0] * 4
    assert scores.value.tolist() == pytest.approx([2 / 3, 0.5, 1.0, 0.0, 1.0])


def test_continuations_that_start_together_are_measured_from_each_other() -> None:
    forest = tree_of(turn(1, reward=1.0), turn(2, reward=0.0), turn(3, reward=0.5), turn(4, reward=0.25))
    assert scored(forest, [0, 0, 0, 0, 1], "causal").advantage.tolist() == [0.0, 0.75, -0.75, 0.0, -0.25]


def test_weights_are_one_on_plain_chains() -> None:
    chains = [{"prompt": 3, "root": make_node([turn(token, [turn(9, reward=token / 4)])])} for token in (1, 2, 2, 4)]
    for estimator, options in (("causal", {}), ("causal", {"weight": "reach"}), ("state-loo", {})):
        scores = scored(chains, [0] * 12, estimator, **options)
        drawn = [node for node in range(12) if node >= 4]
        assert weights_of(scores)[drawn].tolist() == pytest.approx([1.0] * 8)


def test_a_turn_without_alternatives_keeps_the_credit_of_the_last_branching() -> None:
    forest = tree_of(turn(1, [turn(2, [turn(3, reward=1.0)])]), turn(4, reward=0.0))
    for kappa in (0.0, 3.0):
        scores = scored(forest, [0, 0, 1, 0, 0], "state-loo", scale="none", kappa=kappa)
        assert scores.advantage.tolist() == [0.0, 1.0, -1.0, 1.0, 1.0]


def test_token_identical_siblings_are_one_state() -> None:
    forest = tree_of(turn(1, [turn(2, reward=1.0)]), turn(1, [turn(3, reward=0.0)]), turn(4, reward=0.0))
    scores = scored(forest, [0, 0, 1, 2, 0, 1], "state-loo", scale="none", kappa=1)
    # V = 1/2 behind both of the equal turns; each is measured from the other and from the failure
    assert scores.value.tolist() == pytest.approx([1 / 3, 0.5, 0.5, 0.0, 1.0, 0.0])
    assert scores.advantage.tolist() == pytest.approx([0.0, 0.25, 0.25, -0.5, 0.875, -0.625])
    assert weights_of(scores)[1:].tolist() == pytest.approx([1.0] * 5)


def test_a_lone_draw_at_the_root_has_no_credit() -> None:
    forest = tree_of(turn(1, [turn(2, reward=1.0), turn(3, reward=0.0)]))
    scores = scored(forest, [0, 0, 0, 1], "state-loo", scale="none", kappa=0)
    assert scores.advantage.tolist() == [0.0, 0.0, 1.0, -1.0]


def test_equal_rewards_give_no_credit_but_to_continuations_that_nothing_was_known_before() -> None:
    forest = tree_of(turn(1, [turn(2, reward=1.0), turn(3, reward=1.0)]), turn(4, reward=1.0))
    rounds = [0, 0, 1, 0, 2]
    for options in ({}, {"scale": "none"}):
        assert scored(forest, rounds, "state-loo", **options).advantage.tolist() == [0.0] * 5
    assert scored(forest, rounds, "causal", scale="std").advantage.tolist() == [0.0] * 5
    assert scored(forest, rounds, "causal").advantage.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_a_continuation_that_failed_has_no_credit_though_others_went_on_from_it() -> None:
    forest = tree_of(turn(1, [turn(2), turn(3, reward=1.0)]))
    scores = scored(forest, [0, 0, 0, 1], "causal")
    assert scores.advantage[[1, 3]].tolist() == [0.0, 1.0]
    assert math.isnan(scores.advantage[2])
    assert weights_of(scores)[[1, 3]].tolist() == [0.0, 1.0]
    weighed = scored(forest, [0, 0, 0, 1], "causal", weight="reach")
    assert weights_of(weighed)[3] == 0.5


def test_of_siblings_without_replacement_the_last_one_stands_for_the_rest_of_the_mass() -> None:
    forest = tree_of(turn(1, reward=1.0, p=0.6), turn(2, reward=0.0, p=0.3))
    scores = scored(forest, [0, 0, 1], "state-loo", siblings="distinct", scale="none")
    # estimates: the first alone, then 0.6 of the first and 0.4 of the second
    assert weights_of(scores)[1:].tolist() == pytest.approx([1.6, 0.4])
    assert scores.value[0] == pytest.approx(0.8)


def test_causal_is_refused_where_rounds_are_not_known() -> None:
    columns, _ = columns_of(tree_of(turn(1, reward=1.0)))
    del columns["round"]
    with pytest.raises(CoreError, match=r"^causal needs to know in which round each turn was drawn"):
        Forest.from_columns(**columns).score("causal", {})
    Forest.from_columns(**columns).score("state-loo", {})


def test_a_continuation_that_goes_on_twice_is_named() -> None:
    forest = tree_of(turn(1, [turn(2, reward=1.0), turn(3, reward=0.0)]))
    with pytest.raises(CoreError, match=r"^tree 0, node 1: two turns go on from this one in its own round, 0"):
        scored(forest, [0, 0, 0, 0], "causal")


def test_distinct_siblings_need_the_log_probabilities_of_their_turns() -> None:
    columns, _ = columns_of(tree_of(turn(1, reward=1.0), turn(2, reward=0.0)))
    del columns["logprobs"]
    with pytest.raises(CoreError, match=r"^siblings=distinct needs the log-probabilities"):
        Forest.from_columns(**columns).score("state-loo", {"siblings": "distinct"})


def test_an_own_weight_goes_with_no_other_one() -> None:
    columns, _ = columns_of(tree_of(turn(1, reward=1.0), turn(2, reward=0.0)))
    forest = Forest.from_columns(**columns)
    for estimator in ("causal", "state-loo"):
        scores = forest.score(estimator, {})
        with pytest.raises(CoreError, match="weighs turns itself"):
            forest.pack(scores, 0.5)


@pytest.mark.parametrize("estimator", ["causal", "state-loo"])
def test_what_made_an_advantage_is_told(estimator: str) -> None:
    forest = tree_of(turn(1, [turn(2, reward=1.0), turn(3, reward=0.0)]), turn(4, reward=0.5))
    scores = scored(forest, [0, 0, 1, 0, 2], estimator)
    for node in range(1, 5):
        told = scores.explain(node)
        assert sum(told["contribution"]) == pytest.approx(scores.advantage[node])
        assert told["nodes"] == [node]


def test_an_empty_forest_has_no_scores() -> None:
    for estimator in REFERENCES:
        assert len(Forest().score(estimator, estimator_options(estimator)).advantage) == 0
