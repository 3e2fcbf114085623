"""Selection rules score as the slow reference does, and their draws are in proportion, pure in the key, and legal."""

import math
import random
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import (
    NO_PARENT,
    CoreError,
    Forest,
    describe_selection_rules,
    draw_by_scores,
    resolve_selection_options,
    select_uniform,
)
from treegrpo_cli.types import NodeStatus

from tests import reference_rules
from tests.core.test_core_select import KEYS, chi_square_limit
from tests.forests import forest_of, trees
from tests.reference import Tree

EXAMPLES = settings(max_examples=200, deadline=None)
NUM_KEYS = 4000
NAN = math.nan
RULES: dict[str, Any] = {
    "uniform": st.fixed_dictionaries({"replacement": st.booleans()}),
    "entropy": st.fixed_dictionaries(
        {
            "alpha": st.sampled_from([0.0, 0.1, 1.0]),
            "first_tokens": st.sampled_from([0, 1, 2]),
            "temperature": st.sampled_from([0.0, 0.5]),
        }
    ),
    "bernoulli": st.fixed_dictionaries({"p0": st.sampled_from([0.0, 0.5, 1.0]), "w": st.sampled_from([0.2, -1.0])}),
    "uct": st.fixed_dictionaries({"c": st.sampled_from([0.0, 1.0, 2.5])}),
    "puct": st.fixed_dictionaries({"c": st.sampled_from([0.0, 1.0, 2.5])}),
    "contrast": st.fixed_dictionaries({"kappa": st.sampled_from([0.0, 1.0, 3.0])}),
    "confidence": st.fixed_dictionaries({"window": st.sampled_from([1, 2, 32]), "stop_below": st.just("none")}),
}
RULES["surprisal"] = RULES["entropy"]
KNOWN = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"prior": st.sampled_from([0.0, 0.25, 1.0])}),
    st.just({"prior": 0.4, "reward_range": (-1.0, 3.0)}),
)
REWARDS = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(-2, 4, width=32))


def may_be_asked(place: reference_rules.Place, rule: str) -> bool:
    """A node with a turn below it, and with the tokens that every rule reads."""
    is_sampled = rule != "puct" or place.above is None or bool(reference_rules.sampled(place.node))
    return is_sampled and any(reference_rules.sampled(child.node) for child in place.children)


def asked(forest: list[Tree], rule: str, shuffle: Any = None) -> tuple[Forest, Any, list[reference_rules.Place]]:
    """The core's forest, its candidates, and the reference's, in the same order."""
    core, nodes = forest_of(forest, shuffle)
    row = {id(node): number for number, node in enumerate(nodes)}
    places = [place for place in reference_rules.places(forest) if may_be_asked(place, rule)]
    if rule == "bernoulli":  # the root's own turns are what all are compared with
        places = [place for place in places if may_be_asked(place.root, rule)]
    return core, np.array([row[id(place.node)] for place in places], dtype=np.uint32), places


def test_every_rule_is_compared_with_the_reference() -> None:
    described = describe_selection_rules()
    assert {rule["name"] for rule in described} == set(RULES)
    for rule in described:
        defaults = {name: option["default"] for name, option in rule["options"].items()}
        assert resolve_selection_options(rule["name"], {}) == defaults
        assert rule["summary"]
        assert rule["formula"]
        assert set(rule["needs"]) <= {"rewards", "entropies", "logprobs"}
    assert [rule["name"] for rule in described if rule["reads_prompt"]] == ["contrast"]
    assert resolve_selection_options("confidence", {"stop_below": "-0.5"}) == {"window": 32, "stop_below": -0.5}


@pytest.mark.parametrize("rule", sorted(RULES))
@settings(max_examples=100, deadline=None)
@given(forest=trees(rewards=REWARDS, vocabulary=3), known=KNOWN, data=st.data(), seed=st.integers(0, 9))
def test_scores_agree_with_the_definition(
    rule: str, forest: list[Tree], known: dict[str, Any], data: st.DataObject, seed: int
) -> None:
    options = data.draw(RULES[rule])
    core, candidates, places = asked(forest, rule, random.Random(seed))
    found = core.selection_scores(candidates, rule, options, rewards_asked=True, **known)
    expected = reference_rules.scores(forest, places, rule, options, **known)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("rule", sorted(RULES))
@settings(max_examples=40, deadline=None)
@given(forest=trees(vocabulary=3), data=st.data(), n=st.integers(0, 6), key=KEYS)
def test_draws_follow_from_the_scores(
    rule: str, forest: list[Tree], data: st.DataObject, n: int, key: list[int]
) -> None:
    options = data.draw(RULES[rule])
    core, candidates, _ = asked(forest, rule)
    assume(len(candidates))
    drawn = core.select(candidates, n, key, rule, options, rewards_asked=True).tolist()
    scores = core.selection_scores(candidates, rule, options, rewards_asked=True)
    if rule == "uniform":
        places = select_uniform(len(candidates), n, options["replacement"], key).tolist()
    elif rule == "bernoulli":
        places = reference_rules.draw_each(scores.tolist(), n, key)
    elif rule == "contrast":
        logs = [math.log(score) if score else -math.inf for score in scores] if scores.any() else [0.0] * len(scores)
        places = reference_rules.draw_by_scores(logs, n, key, 1.0, True)
    else:
        places = reference_rules.draw_by_scores(scores.tolist(), n, key, options.get("temperature", 0.0))
    assert drawn == candidates[places].tolist()
    assert drawn == core.select(candidates, n, tuple(key), rule, options, rewards_asked=True).tolist()
    if rule not in ("uniform", "contrast", "bernoulli"):
        assert len(drawn) == len(set(drawn)) == min(n, len(candidates))


@pytest.mark.parametrize("rule", sorted(RULES))
@settings(max_examples=40, deadline=None)
@given(forest=trees(rewards=REWARDS, vocabulary=3))
def test_a_score_reads_its_own_tree_alone_or_its_prompts_trees(rule: str, forest: list[Tree]) -> None:
    [reads_prompt] = [known["reads_prompt"] for known in describe_selection_rules() if known["name"] == rule]
    alone = [asked([tree], rule)[:2] for tree in forest]

    def scores(numbers: list[int]) -> list[list[float]]:
        """Of the candidates of each of these trees, which stand in one forest."""
        joined = Forest.concat([alone[number][0] for number in numbers])
        starts = np.cumsum([0, *(alone[number][0].num_nodes for number in numbers)])
        rows = [alone[number][1] + np.uint32(start) for number, start in zip(numbers, starts, strict=False)]
        return [joined.selection_scores(own, rule, rewards_asked=True).tolist() for own in rows]

    everywhere = scores(list(range(len(forest))))
    for number, tree in enumerate(forest):
        prompt = [other for other, of in enumerate(forest) if of["prompt"] == tree["prompt"]]
        seen = prompt if reads_prompt else [number]
        assert scores(seen)[seen.index(number)] == everywhere[number]


@EXAMPLES
@given(
    scores=st.lists(st.one_of(st.floats(-4, 4), st.just(-math.inf)), min_size=1, max_size=9),
    n=st.integers(0, 12),
    key=KEYS,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    replacement=st.booleans(),
)
def test_draws_by_scores_agree_with_the_definition(
    scores: list[float], n: int, key: list[int], temperature: float, replacement: bool
) -> None:
    assume(temperature or not replacement)
    drawn = draw_by_scores(np.array(scores), n, key, temperature, replacement)
    assert drawn.dtype == np.uint32
    if max(scores) == -math.inf:
        assert drawn.tolist() == []
    else:
        assert drawn.tolist() == reference_rules.draw_by_scores(scores, n, key, temperature, replacement)


def test_draws_by_scores_never_change() -> None:
    scores = np.array([0.5, 0.5, -1.0, 0.5, 2.0])
    assert draw_by_scores(scores, 3, [1, 2, 3]).tolist() == [4, 0, 1]
    assert draw_by_scores(scores, 5, [1, 2, 3], 1.0).tolist() == [4, 0, 1, 3, 2]
    assert draw_by_scores(scores, 6, [1, 2, 3], 1.0, True).tolist() == [4, 3, 1, 0, 4, 4]


def assert_in_proportion(drawn: list[Any], chances: dict[Any, float]) -> None:
    expected = {outcome: chance * len(drawn) for outcome, chance in chances.items()}
    assert set(drawn) <= set(expected)
    assert sum(expected.values()) == pytest.approx(len(drawn))
    deviation = sum((drawn.count(outcome) - number) ** 2 / number for outcome, number in expected.items())
    assert deviation < chi_square_limit(len(expected))


def test_gumbel_draws_are_draws_in_proportion_without_replacement() -> None:
    scores, temperature = np.array([0.0, 0.5, 1.0, -0.5]), 0.5
    pairs = [tuple(draw_by_scores(scores, 2, [0, prompt, 1], temperature).tolist()) for prompt in range(NUM_KEYS)]
    weights = np.exp(scores / temperature)
    chances = {
        (first, second): weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        for first, second in permutations(range(4), 2)
    }
    assert_in_proportion(pairs, chances)


def test_draws_with_replacement_are_in_proportion_and_independent() -> None:
    weights = np.array([1.0, 3.0, 0.0, 4.0])
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    pairs = [tuple(draw_by_scores(logs, 2, [prompt], 1.0, True).tolist()) for prompt in range(NUM_KEYS)]
    chance = weights / weights.sum()
    live = [0, 1, 3]
    assert_in_proportion(pairs, {(a, b): chance[a] * chance[b] for a in live for b in live})


def test_ties_fall_evenly() -> None:
    scores = np.array([1.0, 0.0, 1.0, 1.0, -2.0])
    firsts = [tuple(draw_by_scores(scores, 2, [prompt, 7]).tolist()) for prompt in range(NUM_KEYS)]
    assert_in_proportion(firsts, dict.fromkeys(permutations([0, 2, 3], 2), 1 / 6))


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ([0.0, NAN], {}, "the score of candidate 1 is NaN"),
        ([0.0], {"temperature": -1.0}, "temperature: got -1, expected a finite number, 0 or more"),
        ([0.0], {"temperature": math.inf}, "temperature: got inf"),
        ([0.0], {"replacement": True}, "replacement: got true at temperature 0, expected a temperature above 0"),
        ([], {}, "cannot choose 1 of 0"),
    ],
)
def test_what_cannot_be_drawn_by_is_refused(scores: list[float], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CoreError, match=message):
        draw_by_scores(np.array(scores), 1, [0], **arguments)
    with pytest.raises(CoreError, match="more than 16777216 draws"):
        draw_by_scores(np.zeros(1), 2**24 + 1, [0], 1.0, True)


def turn(forest: Forest, parent: int, *token_ids: int, logprob: float = -1.0, **drawn: Any) -> int:
    count, status = len(token_ids), drawn.pop("status", NodeStatus.OPEN)
    tokens = np.array(token_ids, dtype=np.uint32)
    entropy = drawn.pop("entropy", 1.0)
    entropies = np.full(count, entropy, np.float32)
    logprobs = np.full(count, logprob, np.float32)
    node = forest.add_node(parent, tokens, np.ones(count, bool), logprobs, status, 0, entropies=entropies, **drawn)
    if status is NodeStatus.DONE:
        forest.set_reward(node, drawn.get("reward", 0.0))
    return node


def ids(*nodes: int) -> Any:
    return np.array(nodes, dtype=np.uint32)


def test_chances_of_bernoulli_are_of_each_candidate_by_itself() -> None:
    forest = Forest()
    root = forest.add_tree(0, ids(1))
    middle = turn(forest, root, 2, entropy=1.0)
    low = turn(forest, middle, 3, entropy=2.0)
    turn(forest, low, 4, entropy=0.0)
    chances = forest.selection_scores(ids(root, middle, low), "bernoulli")
    assert chances.tolist() == pytest.approx([0.5, 0.7, 0.3])
    drawn = [frozenset(forest.select(ids(root, middle, low), 3, [k], "bernoulli").tolist()) for k in range(NUM_KEYS)]
    for node, chance in zip((root, middle, low), chances, strict=True):
        assert_in_proportion([node in nodes for nodes in drawn], {True: chance, False: 1 - chance})
    both = [root in nodes and middle in nodes for nodes in drawn]
    assert_in_proportion(both, {True: 0.35, False: 0.65})
    one = [forest.select(ids(root, middle, low), 1, [k], "bernoulli").tolist() for k in range(NUM_KEYS)]
    likeliest = {(middle,): 0.7, (root,): 0.3 * 0.5, (low,): 0.3 * 0.5 * 0.3, (): 0.3 * 0.5 * 0.7}
    assert_in_proportion([tuple(nodes) for nodes in one], likeliest)


def test_repeated_turns_leave_the_residual_as_it_is_and_new_ones_take_from_it() -> None:
    def residual(*turns: tuple[int, float]) -> float:
        """Of a prompt's state where these turns were drawn, in a tree each; q is 0.5 and stays so."""
        forest = Forest()
        roots = [forest.add_tree(0, ids(1)) for _ in turns]
        for root, (token, chance) in zip(roots, turns, strict=True):
            turn(forest, root, token, logprob=math.log(chance), status=NodeStatus.TRUNCATED_TURNS)
        scores = forest.selection_scores(ids(*roots), "contrast")
        assert len(set(scores.tolist())) == 1, "the roots of a prompt are one state"
        return float(scores[0]) / 0.25 - 0.02

    assert residual((5, 0.25)) == pytest.approx(0.75, abs=1e-6)
    assert residual((5, 0.25), (5, 0.25), (5, 0.25)) == pytest.approx(0.75, abs=1e-6)
    assert residual((5, 0.25), (6, 0.5)) == pytest.approx(0.25, abs=1e-6)
    assert residual((5, 0.75), (6, 0.5)) == 0


def test_contrast_draws_in_proportion_and_alike_where_every_score_is_0() -> None:
    forest = Forest()
    root = forest.add_tree(0, ids(1))
    for token in (5, 6):
        middle = turn(forest, root, token, logprob=math.log(0.25))
        for reward in (0.0, 1.0):
            leaf = turn(forest, middle, 7, logprob=-0.5 - token / 4, status=NodeStatus.TRUNCATED_TURNS)
            forest.set_reward(leaf, reward)
    candidates = ids(root, 1, 4)
    scores = forest.selection_scores(candidates, "contrast")
    assert scores[2] > scores[1], "the turn below was less likely, so more is left"
    drawn = [forest.select(candidates, 1, [k], "contrast")[0] for k in range(NUM_KEYS)]
    assert_in_proportion(drawn, dict(zip(candidates.tolist(), scores / scores.sum(), strict=True)))

    dull = forest_with_a_turn()
    assert dull.selection_scores(ids(0, 1), "contrast", prior=0.0).tolist() == [0, 0]
    alike = [dull.select(ids(0, 1), 1, [k], "contrast", prior=0.0)[0] for k in range(NUM_KEYS)]
    assert_in_proportion(alike, {0: 0.5, 1: 0.5})


def test_a_failed_branch_does_not_take_all_draws() -> None:
    forest = Forest()
    root = forest.add_tree(0, ids(1))
    good, bad = turn(forest, root, 2), turn(forest, root, 3)
    for _ in range(2):
        forest.set_reward(turn(forest, good, 4, status=NodeStatus.TRUNCATED_TURNS), 0.5)
    turn(forest, bad, 5, status=NodeStatus.ERROR)
    turn(forest, bad, 6, status=NodeStatus.PRUNED)
    scores = forest.selection_scores(ids(root, good, bad), "uct")
    assert scores.tolist() == pytest.approx(
        [0.5 + math.sqrt(math.log(4) / 2), 0.5 + math.sqrt(math.log(2) / 2), 0.5 + math.sqrt(math.log(2))]
    )
    assert np.isfinite(forest.selection_scores(ids(root, good, bad), "puct")).all()


def test_what_a_rule_needs_and_the_forest_lacks_is_named_in_one_line() -> None:
    bare = Forest.from_columns(
        prompt=ids(0),
        parent=ids(NO_PARENT, 0, 1),
        tree=ids(0, 0, 0),
        status=np.array([0, 0, 1], np.uint8),
        reward=np.full(3, NAN),
        token_start=np.array([0, 1, 2, 3], np.uint64),
        token_ids=ids(1, 2, 3),
        sampled=np.array([False, True, True]),
    )
    lacking = "tree 0, node 0: selection rule {} needs the {} of the turns below, and this node has none"
    for rule, message in {
        "entropy": lacking.format("entropy", "entropies"),
        "bernoulli": lacking.format("bernoulli", "entropies"),
        "confidence": lacking.format("confidence", "log-probabilities"),
        "surprisal": "selection rule surprisal needs log-probabilities, and the forest has none",
        "puct": "selection rule puct needs log-probabilities, and the forest has none",
        "contrast": "selection rule contrast needs log-probabilities, and the forest has none",
        "uct": "selection rule uct needs rewards, and the forest has none",
    }.items():
        with pytest.raises(CoreError) as caught:
            bare.select(ids(0, 1), 1, [0], rule)
        assert str(caught.value) == message
    assert bare.select(ids(0, 1), 2, [0], "uct", rewards_asked=True).size == 2
    with pytest.raises(CoreError, match="tree 0, node 0: selection rule entropy needs"):
        bare.selection_scores(ids(0), "entropy", {"first_tokens": 4})
    known = forest_with_a_turn()
    with pytest.raises(CoreError, match="tree 0, node 2: selection rule entropy needs"):
        known.selection_scores(ids(0, 2), "entropy")


def forest_with_a_turn() -> Forest:
    forest = Forest()
    turn(forest, turn(forest, forest.add_tree(0, ids(1)), 2), 3)
    return forest


def test_a_file_without_tokens_may_know_how_sure_each_turn_was() -> None:
    forest = Forest.from_columns(
        prompt=ids(0),
        parent=ids(NO_PARENT, 0, 1, 1),
        tree=ids(0, 0, 0, 0),
        status=np.array([0, 0, 1, 1], np.uint8),
        reward=np.array([NAN, NAN, 0.0, 1.0]),
        confidence=np.array([NAN, -0.5, -1.0, -3.0]),
    )
    assert forest.selection_scores(ids(0, 1), "confidence").tolist() == [0.5, 2.0]
    assert forest.select(ids(0, 1), 1, [0], "confidence").tolist() == [1]


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("entropi", {}, "unknown selection rule 'entropi'; did you mean 'entropy'"),
        ("uct", {"temperature": 1}, "uct has no option 'temperature'; it has c"),
        ("entropy", {"first_tokens": 1.5}, "option first_tokens: got 1.5, expected a whole number, 0 or more"),
        ("entropy", {"alpha": -1}, "option alpha: got -1, expected a finite number, 0 or more"),
        ("bernoulli", {"p0": 2}, "option p0: got 2, expected a number from 0 to 1"),
        ("confidence", {"window": 0}, "option window: got 0, expected a whole number, 1 or more"),
        ("confidence", {"stop_below": 1}, "option stop_below: got 1, expected none or a finite number below 0, nats"),
    ],
)
def test_a_wrong_name_or_option_is_refused(rule: str, options: dict[str, Any], message: str) -> None:
    forest = forest_with_a_turn()
    for call in (
        lambda: forest.select(ids(0), 1, [0], rule, options),
        lambda: forest.selection_scores(ids(0), rule, options),
        lambda: resolve_selection_options(rule, options),
    ):
        with pytest.raises(CoreError, match=message):
            call()


def test_what_is_known_beside_the_forest_is_checked() -> None:
    forest = forest_with_a_turn()
    for known, message in (
        ({"prior": 1.5}, "prior: got 1.5, expected a number from 0 to 1"),
        ({"prior": NAN}, "prior: got NaN"),
        ({"reward_range": (1.0, 1.0)}, r"reward_range: got \(1, 1\), expected two finite numbers, the lower one first"),
        ({"reward_range": (0.0, math.inf)}, r"reward_range: got \(0, inf\)"),
    ):
        with pytest.raises(CoreError, match=message):
            forest.select(ids(0), 1, [0], "contrast", **known)  # type: ignore[arg-type]
    for call in (
        lambda: forest.select(ids(1, 0, 1), 1, [0], "surprisal"),
        lambda: forest.selection_scores(ids(1, 0, 1), "uniform"),
    ):
        with pytest.raises(CoreError, match="candidates name node 1 twice"):
            call()
    assert len(forest.select(ids(1, 0, 1), 2, [0], "uniform")) == 2
    with pytest.raises(CoreError, match="no node 9: the forest has 3"):
        forest.selection_scores(ids(9), "entropy")


@cache
def a_million(is_chain: bool) -> tuple[Forest, Any]:
    """One tree and its inner nodes: a chain, or each node with two children."""
    length = 1_000_000
    nodes = np.arange(length, dtype=np.uint32)
    parent = nodes - np.uint32(1) if is_chain else (nodes - np.uint32(1)) // np.uint32(2)
    parent[0] = NO_PARENT
    inner = np.unique(parent[1:])
    status = np.full(length, NodeStatus.DONE, np.uint8)
    status[inner] = NodeStatus.OPEN
    reward = np.where(status == NodeStatus.DONE, nodes % 2, NAN).astype(np.float64)
    forest = Forest.from_columns(
        prompt=ids(0),
        parent=parent,
        tree=np.zeros(length, np.uint32),
        status=status,
        reward=reward,
        token_start=np.arange(length + 1, dtype=np.uint64),
        token_ids=nodes % np.uint32(50),
        sampled=nodes > 0,
        logprobs=np.where(nodes > 0, -1 / 16, 0).astype(np.float32),
        entropies=np.full(length, 0.25, np.float32),
    )
    return forest, inner


@pytest.mark.parametrize("is_chain", [True, False])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_million_nodes_need_no_recursion(rule: str, is_chain: bool) -> None:
    forest, inner = a_million(is_chain)
    scores = forest.selection_scores(inner, rule)
    assert len(scores) == len(inner)
    assert np.isfinite(scores).all()
    drawn = forest.select(inner, 1000, [5], rule)
    assert len(drawn) == 1000
    assert set(drawn.tolist()) <= set(inner.tolist())
