"""An estimator of one's own: columns in, an advantage a node out, the same from files, settings and Python."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli import UserError, read_trees, score, training_rows
from treegrpo_cli._core import NO_PARENT
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rollout.forest import check_terms
from treegrpo_cli.rollout.forest import score as score_in_training
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.node_columns import by_prompt, columns_of
from treegrpo_cli.trees.sums import score_forest
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.command_line import refused, run
from tests.forests import forest_of
from tests.forests import trees as random_trees
from tests.reference import Tree
from tests.sample_trees import VECTOR_NAMES, nodes_of, tree, vector_trees, write_lines

EXAMPLE = "examples/own_estimator.py:steps"


def own_grpo(columns: Any) -> Any:
    """GRPO without a scale, as the user of a group of one prompt would write it."""
    return columns["reward"] - np.nanmean(columns["reward"])


own_grpo.level = "leaf"  # type: ignore[attr-defined]


def name_of(function: Callable[..., Any]) -> str:
    globals()["function"] = function
    return f"{__name__}:function"


def advantages(trees: list[TreeRecord]) -> list[float | None]:
    return [node["advantage"] for record in trees for node in record.nodes]


def test_the_example_without_a_discount_is_the_parent_estimator() -> None:
    own = score(vector_trees(), EXAMPLE, discount=1)
    assert advantages(own) == pytest.approx(advantages(score(vector_trees(), "parent")))
    assert own[0].scoring == {"estimator": EXAMPLE, "options": {"discount": 1.0}, "level": "node"}


def test_the_example_counts_later_turns_less() -> None:
    [first, _] = score(vector_trees(), EXAMPLE, discount=0.5)
    named = {name: first.nodes[place]["advantage"] for place, name in enumerate(VECTOR_NAMES)}
    expected = {"r": 0, "A": 0, "B": 1 / 6, "C": -0.5, "A1": 0.25, "A2": -0.25, "B1": 0, "B1a": 1 / 12, "B1c": -1 / 6}
    assert {name: named[name] for name in expected} == pytest.approx(expected)


def test_a_function_itself_will_do_and_may_be_of_leaves() -> None:
    own = score(vector_trees(), own_grpo)
    assert advantages(own) == pytest.approx(advantages(score(vector_trees(), "grpo", scale="none")))
    assert own[0].scoring == {"estimator": f"{__name__}:own_grpo", "options": {}, "level": "leaf"}


@settings(deadline=None)
@given(random_trees(), st.randoms())
def test_prompts_are_seen_one_at_a_time_and_own_grpo_is_the_cores(trees: list[Tree], random: Any) -> None:
    forest, _ = forest_of(trees, random)
    ours, own = (score_forest(forest, [{"estimator": name, "options": o}]) for name, o in OWN_AND_OURS)
    np.testing.assert_allclose(own.advantage, ours.advantage, atol=1e-9)
    assert own.leaf_level


OWN_AND_OURS: list[tuple[str, dict[str, Any]]] = [("grpo", {"scale": "none"}), (f"{__name__}:own_grpo", {})]


@settings(deadline=None)
@given(random_trees(), st.randoms())
def test_the_columns_of_a_prompt_are_those_of_its_trees_alone(trees: list[Tree], random: Any) -> None:
    forest, _ = forest_of(trees, random)
    whole, seen = columns_of(forest), []
    for nodes, columns in by_prompt(whole):
        seen += nodes.tolist()
        above = whole["parent"][nodes]
        inner = above != NO_PARENT
        assert nodes[columns["parent"][inner]].tolist() == above[inner].tolist()
        assert (columns["parent"][~inner] == NO_PARENT).all()
        assert len(set(whole["prompt"][nodes].tolist())) == 1
        assert (
            len(set(columns["tree"].tolist())) == len(set(whole["tree"][nodes].tolist())) == columns["tree"].max() + 1
        )
        for place, node in enumerate(nodes.tolist()):
            own, all_of_it = (
                slice(*map(int, c["token_start"][i : i + 2])) for c, i in ((columns, place), (whole, node))
            )
            assert columns["token_ids"][own].tolist() == whole["token_ids"][all_of_it].tolist()
            assert columns["num_tokens"][place] == all_of_it.stop - all_of_it.start
    assert sorted(seen) == list(range(forest.num_nodes))


def test_columns_are_read_only_and_have_an_entry_a_node() -> None:
    [(_, columns)] = by_prompt(columns_of(to_forest([TreeRecord.from_dict(fields) for fields in vector_trees()])))
    assert columns["depth"].tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 1, 1]
    assert columns["num_leaves"].tolist() == [6, 2, 3, 1, 1, 1, 3, 1, 1, 1, 2, 1, 1]
    assert columns["tree"].tolist() == [0] * 10 + [1] * 3
    assert columns["parent"][10:].tolist() == [NO_PARENT, 10, 10]
    assert np.isnan(columns["entropy"]).all()
    for column in columns.values():
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0


def test_sums_take_ones_own_and_ours(tmp_path: Path) -> None:
    terms = [
        {"estimator": "grpo", "scale": "none"},
        {"estimator": EXAMPLE, "weight": 0.5, "discount": 1},
        {"estimator": f"{__name__}:own_grpo", "weight": 2},
    ]
    own = score(vector_trees(), terms=terms)
    ours = score(
        vector_trees(),
        terms=[{"estimator": "grpo", "scale": "none", "weight": 3}, {"estimator": "parent", "weight": 0.5}],
    )
    for name in ("advantage", "leaf_advantage", "node_advantage", "value"):
        for mine, theirs in zip(own, ours, strict=True):
            assert [n[name] for n in mine.nodes] == pytest.approx([n[name] for n in theirs.nodes], nan_ok=True), name
    assert [term["estimator"] for term in (own[0].scoring or {})["terms"]] == [term["estimator"] for term in terms]
    with pytest.raises(UserError, match="causal weighs turns itself: it stands in no sum"):
        score(vector_trees(), terms=[{"estimator": "causal"}, {"estimator": EXAMPLE}])


def test_the_command_line_takes_a_path_and_options_and_scores_again_to_the_byte(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "trees.jsonl", vector_trees())
    command = ["inspect-tree", "--format", "json", "--estimator", EXAMPLE, "--option", "discount=0.5"]
    once = run(*command, file)
    assert once.returncode == 0, once.stderr
    assert [json.loads(line)["scoring"]["options"] for line in once.stdout.splitlines()] == [{"discount": 0.5}] * 2
    scored = tmp_path / "scored.jsonl"
    scored.write_text(once.stdout)
    assert run(*command, scored).stdout == once.stdout
    assert run("inspect-tree", "--format", "json", scored).stdout == once.stdout
    assert EXAMPLE in run("inspect-tree", scored).stdout
    with_weight = run("inspect-tree", "--format", "json", "--estimator", f"2*{EXAMPLE},discount=0.5", file)
    twice = [node["advantage"] for line in with_weight.stdout.splitlines() for node in json.loads(line)["nodes"]]
    assert twice == pytest.approx([2 * a for a in advantages(list(read_trees(scored))) if a is not None])
    explained = refused(run("inspect-tree", scored, "--tree-id", "0", "--width", "200", "--explain", "1"))
    assert f"scoring: {EXAMPLE} is a function of somebody's own, which cannot be explained" in explained


def test_a_file_that_was_scored_by_ones_own_gives_training_rows() -> None:
    trees = vector_trees()
    for fields in trees:
        for node in fields["nodes"]:
            node |= {"token_ids": [node["id"], 7], "sampled": [[0, 1]] if node["id"] else []}
    for estimator, same in ((own_grpo, ("grpo", {"scale": "none"})), (EXAMPLE, ("parent", {}))):
        options = {"discount": 1} if estimator is EXAMPLE else {}
        rows = training_rows(score(trees, estimator, **options))
        expected = training_rows(score(trees, same[0], **same[1]))
        for row, wanted in zip(rows, expected, strict=True):
            np.testing.assert_allclose(row["advantages"], wanted["advantages"], atol=1e-7)


def test_settings_name_it_and_training_scores_by_it() -> None:
    config = make_config({"advantage": {"estimator": EXAMPLE, "discount": 1}}).advantage
    check_terms(config)
    forest = to_forest([TreeRecord.from_dict(fields) for fields in vector_trees()])
    ours = make_config({"advantage": {"estimator": "parent"}}).advantage
    own, expected = (score_in_training(forest, (), advantage) for advantage in (config, ours))
    np.testing.assert_allclose(own.advantage, expected.advantage)
    terms = make_config({"advantage": {"terms": [{"estimator": EXAMPLE, "weight": 2, "discount": 1}]}}).advantage
    np.testing.assert_allclose(score_in_training(forest, (), terms).advantage, 2 * expected.advantage)


def missing(columns: Any) -> Any:
    return columns["valeu"]


def ends(columns: Any) -> Any:
    raise SystemExit(3)


def writes(columns: Any) -> Any:
    columns["value"][0] = 1


def too_few(columns: Any) -> Any:
    return [1.0]


def a_table(columns: Any) -> Any:
    return np.zeros((13, 2))


def nothing(columns: Any) -> Any:
    return None


def words(columns: Any) -> Any:
    return ["a"] * 13


def complex_ones(columns: Any) -> Any:
    return np.zeros(13) + 1j


def nan(columns: Any) -> Any:
    return np.where(columns["depth"] == 2, np.nan, 1.0)


def infinite(columns: Any) -> Any:
    return np.where(np.arange(13) == 12, np.inf, 1.0)


def sleeps(columns: Any) -> Any:
    time.sleep(0.3)


MISTAKES: dict[Callable[..., Any], str] = {
    missing: "estimator {}: raised KeyError: 'valeu'",
    ends: "estimator {}: raised SystemExit: 3",
    writes: "estimator {}: raised ValueError: assignment destination is read-only",
    too_few: "estimator {}: must return 13 advantages, one a node, got 1",
    a_table: "estimator {}: must return 13 advantages, one a node, got an array of shape (13, 2)",
    nothing: "estimator {}: must return 13 advantages, one a node, got an array of shape ()",
    words: "estimator {}: must return numbers, got <U1",
    complex_ones: "estimator {}: must return numbers, got complex128",
    nan: "tree 0, node 4: {}: advantage NaN is not finite",
    infinite: "tree 1, node 2: {}: advantage inf is not finite",
}


@pytest.mark.parametrize("function", MISTAKES, ids=lambda function: function.__name__)
def test_a_mistake_is_one_line_that_names_the_estimator(function: Callable[..., Any]) -> None:
    name = name_of(function)
    with pytest.raises(UserError) as raised:
        score(vector_trees(), name)
    assert str(raised.value) == MISTAKES[function].format(name)


@pytest.mark.parametrize("function", [missing, too_few])
def test_a_mistake_names_the_line_of_the_prompt_that_it_was_made_at(
    function: Callable[..., Any], tmp_path: Path
) -> None:
    unscored = tree("without", nodes=nodes_of([None, 0], [None, None]))
    path = write_lines(tmp_path / "a.jsonl", [unscored, *vector_trees()])
    name = name_of(function)
    with pytest.raises(UserError) as raised:
        score(read_trees(path), name)
    assert str(raised.value) == f"{path}:2: {MISTAKES[function].format(name)}"
    assert bool(raised.value.trace) == (function is missing)


def test_one_that_does_not_answer_is_left_alone() -> None:
    config = make_config({"advantage": {"estimator": name_of(sleeps), "timeout_s": 0.05}}).advantage
    forest = to_forest([TreeRecord.from_dict(fields) for fields in vector_trees()])
    with pytest.raises(UserError, match=r"^advantage.estimator .*: no answer within 0.05 s \(advantage.timeout_s\)$"):
        score_in_training(forest, (), config)


@pytest.mark.parametrize(
    ("advantage", "message"),
    [
        ({"estimator": "nowhere.py:credit"}, "advantage.estimator: no such file: nowhere.py"),
        ({"estimator": "examples/own_estimator.py:stepz"}, "has no 'stepz'; did you mean 'steps'?"),
        ({"estimator": EXAMPLE, "discout": 1}, "steps has no option 'discout'; did you mean 'discount'?"),
        ({"estimator": EXAMPLE, "discount": "much"}, "option 'discount' is a number, got 'much'"),
        ({"terms": [{"estimator": EXAMPLE, "weight": -1}]}, "advantage.terms: option weight: got -1.0"),
        ({"terms": [{"estimator": EXAMPLE}, {"estimator": "causal"}]}, "causal weighs turns itself"),
        ({"estimator": f"{__name__}:EXAMPLE"}, "is no function"),
    ],
)
def test_what_cannot_be_is_found_before_a_run(advantage: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_terms(make_config({"advantage": advantage}).advantage)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_estimator_is_refused() -> None:
    async def late(columns: Any) -> Any: ...

    def both(columns: Any) -> Any: ...

    both.level = "both"  # type: ignore[attr-defined]

    def alone() -> Any: ...

    for function, message in (
        (late, "is async: an estimator is a plain function"),
        (both, "has level 'both', expected 'leaf' or 'node'"),
        (alone, "must take 1 argument and then options"),
    ):
        with pytest.raises(UserError, match=message):
            score(vector_trees(), function)


def test_nodes_without_a_scored_leaf_and_prompts_without_a_reward_do_not_count() -> None:
    trees = [tree(nodes=nodes_of([None, 0, 0], [None, 1.0, None])), tree("r", nodes=nodes_of([None, 0], [None, None]))]
    calls = []

    def holes(columns: Any) -> Any:
        calls.append(columns["reward"].tolist())
        return np.where(np.isnan(columns["reward"]), np.nan, 2.0)

    assert advantages(score(trees, holes)) == [0, 2.0, None, None, None]
    assert len(calls) == 1


def test_values_that_json_does_not_know_are_written_as_python_shows_them() -> None:
    def credit(columns: Any, rate: float = np.inf, names: tuple[str, ...] = ("a",), none: Any = None) -> Any:
        return columns["value"]

    scoring = score(vector_trees(), credit)[0].scoring or {}
    assert scoring["options"] == {"rate": "inf", "names": "('a',)", "none": None}
