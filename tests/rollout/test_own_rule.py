"""A selection rule of one's own: columns in, a score a candidate out, and one line for each of its mistakes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from treegrpo_cli._core import NO_PARENT, Forest
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.own_rule import OwnRule, load_own_rule
from treegrpo_cli.rollout.selection import Candidates, load_rule
from treegrpo_cli.trees.node_columns import columns_of

EXAMPLE = "examples/own_selection.py:undecided"


def rule_of(function: Callable[..., Any], **selection: Any) -> OwnRule:
    globals()["function"] = function
    rule = load_rule(make_config({"selection": {"rule": f"{__name__}:function", **selection}}))
    assert isinstance(rule, OwnRule)
    return rule


class Grown(Candidates):
    """Trees that did not grow here: root 0 -> 1, 2 (open), 3 · 1 -> 4 (reward 1), 5 (0) · 2 -> 6 (1)."""

    def __init__(self) -> None:
        self.forest = Forest.from_columns(
            prompt=np.array([7], dtype=np.uint32),
            parent=np.array([NO_PARENT, 0, 0, 0, 1, 1, 2], dtype=np.uint32),
            tree=np.zeros(7, dtype=np.uint32),
            status=np.array([0, 0, 0, 5, 1, 1, 1], dtype=np.uint8),
            reward=np.array([np.nan] * 4 + [1.0, 0.0, 1.0]),
            round=np.array([0, 0, 1, 2, 0, 1, 1], dtype=np.uint32),
            token_start=np.array([0, 2, 4, 5, 5, 6, 6, 8], dtype=np.uint64),
            token_ids=np.arange(8, dtype=np.uint32),
            sampled=np.array([False, False, True, False, True, True, True, True]),
            logprobs=np.array([0, 0, -1, 0, -0.5, -0.25, -2, -3], dtype=np.float32),
        )
        self.nodes = [np.array([0, 1, 2], dtype=np.uint32)]


def scores(rule: OwnRule) -> list[float]:
    grown = Grown()
    return asyncio.run(rule.scores(grown, grown.nodes[0])).tolist()


def test_the_example_prefers_what_is_undecided_and_little_seen() -> None:
    rule = load_own_rule(make_config({"selection": {"rule": EXAMPLE}}).selection)
    assert rule.options == {"few": 2.0}
    assert (rule.needs_rewards, rule.reads_prompt) == (True, False)
    assert scores(rule) == pytest.approx([(2 / 9) / 5, 0.25 / 4, 0.0])
    drawn = asyncio.run(rule.draw(Grown(), Grown().nodes[0], 2, [1]))
    assert drawn.tolist() == [1, 0]


def test_a_rule_sees_read_only_columns_of_all_nodes() -> None:
    columns = columns_of(Grown().forest)
    assert columns["prompt"].tolist() == [7] * 7
    assert columns["depth"].tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert columns["round"].tolist() == [0, 0, 1, 2, 0, 1, 1]
    assert columns["num_children"].tolist() == [3, 2, 1, 0, 0, 0, 0]
    assert columns["num_leaves"].tolist() == [3, 2, 1, 0, 1, 1, 1]
    assert columns["value"].tolist() == pytest.approx([2 / 3, 0.5, 1, np.nan, 1, 0, 1], nan_ok=True)
    assert columns["num_tokens"].tolist() == [2, 2, 1, 0, 1, 0, 2]
    assert columns["num_sampled"].tolist() == [0, 1, 1, 0, 1, 0, 2]
    assert columns["logprob"].tolist() == [0, -1, -0.5, 0, -0.25, 0, -5]
    for column in columns.values():
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0


def nan(columns: Any, candidates: Any) -> Any:
    return np.where(candidates == 1, np.nan, 1.0)


def too_few(columns: Any, candidates: Any) -> Any:
    return [1.0]


def a_table(columns: Any, candidates: Any) -> Any:
    return np.zeros((3, 2))


def nothing(columns: Any, candidates: Any) -> Any:
    return None


def words(columns: Any, candidates: Any) -> Any:
    return ["a", "b", "c"]


def raises(columns: Any, candidates: Any) -> Any:
    return columns["valeu"]


def ends(columns: Any, candidates: Any) -> Any:
    raise SystemExit(3)


def writes(columns: Any, candidates: Any) -> Any:
    columns["value"][0] = 1


def sleeps(columns: Any, candidates: Any) -> Any:
    time.sleep(0.3)
    return candidates


MISTAKES: dict[Callable[..., Any], str] = {
    nan: "must return finite scores, got nan",
    too_few: "must return 3 scores, one a candidate, got 1",
    a_table: r"must return 3 scores, one a candidate, got an array of shape \(3, 2\)",
    nothing: r"must return 3 scores, one a candidate, got an array of shape \(\)",
    words: "raised ValueError: could not convert string to float: 'a'",
    raises: "raised KeyError: 'valeu'",
    ends: "raised SystemExit: 3",
    writes: "raised ValueError: assignment destination is read-only",
    sleeps: r"no answer within 0.05 s \(selection.timeout_s\)",
}


@pytest.mark.parametrize("function", MISTAKES, ids=lambda function: function.__name__)
def test_a_mistake_is_one_line_that_names_the_rule(function: Callable[..., Any]) -> None:
    rule = rule_of(function, timeout_s=0.05 if function is sleeps else 60)
    with pytest.raises(UserError, match=f"^selection.rule {__name__}:function: {MISTAKES[function]}") as raised:
        scores(rule)
    assert "\n" not in str(raised.value)


def test_keyword_arguments_are_options_with_their_defaults_and_types() -> None:
    def score(columns: Any, candidates: Any, alpha: float = 0.1, *, depth: int = 3, few: bool = False) -> Any:
        return candidates * alpha + depth

    assert rule_of(score).options == {"alpha": 0.1, "depth": 3, "few": False}
    assert scores(rule_of(score, alpha=2, depth=1)) == [1.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"aplha": 1}, "has no option 'aplha'; did you mean 'alpha'?"),
        ({"alpha": "much"}, "option 'alpha' is a number, got 'much'"),
        ({"alpha": True}, "option 'alpha' is a number, got True"),
        ({"depth": 1.5}, "option 'depth' is an integer, got 1.5"),
    ],
)
def test_an_option_that_is_none_or_of_another_type_is_refused(selection: dict[str, Any], message: str) -> None:
    def score(columns: Any, candidates: Any, alpha: float = 0.1, depth: int = 3) -> Any: ...

    with pytest.raises(UserError, match="^selection.rule: .*" + message.replace("?", r"\?")):
        rule_of(score, **selection)


def test_what_is_no_rule_is_refused() -> None:
    def alone(columns: Any) -> Any: ...

    def needy(columns: Any, candidates: Any, alpha: float) -> Any: ...

    with pytest.raises(UserError, match=r"alone must take 2 arguments and then options, got \(columns: Any\)"):
        rule_of(alone)
    with pytest.raises(UserError, match="needy needs the option 'alpha'; give it beside the name"):
        rule_of(needy)
    with pytest.raises(UserError, match=r"selection.rule: .* is no function"):
        rule_of(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"selection.rule: no such file: nowhere.py"):
        load_rule(make_config({"selection": {"rule": "nowhere.py:score"}}))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"temperature": -1}, "temperature is -1, expected a number of 0 or more"),
        ({"temperature": True}, "temperature is True, expected a number of 0 or more"),
        ({"temperature": 1, "replacement": 1}, "replacement is 1, expected true or false"),
        ({"replacement": True}, "replacement draws by chance: give a temperature above 0 beside it"),
        ({"timeout_s": 0}, "selection.timeout_s"),
    ],
)
def test_how_scores_are_drawn_by_is_checked(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config({"selection": {"rule": EXAMPLE, **selection}})


def test_temperature_draws_by_chance_and_minus_infinity_never() -> None:
    def half(columns: Any, candidates: Any) -> Any:
        return np.where(candidates == 1, -np.inf, 0.0)

    def drawn(rule: OwnRule, n: int, key: int) -> list[int]:
        grown = Grown()
        return asyncio.run(rule.draw(grown, grown.nodes[0], n, [key])).tolist()

    assert sorted(drawn(rule_of(half), 3, 0)) == [0, 2]
    warm = rule_of(half, temperature=1.0)
    assert {drawn(warm, 1, key)[0] for key in range(20)} == {0, 2}
    again = rule_of(half, temperature=1.0, replacement=True)
    assert {len(drawn(again, 5, key)) for key in range(5)} == {5}
