"""Sums of estimators from settings, a command line or Python to the tree file, training rows and words."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treegrpo_cli import UserError, read_trees, score, training_rows
from treegrpo_cli.config.files import dump_config, load_config
from treegrpo_cli.trees.explain import explain
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.tree_file import TreeWriter
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.command_line import refused, run
from tests.sample_trees import vector_trees, write_lines

SUM = [{"estimator": "tree-grpo", "scale": "none"}, {"estimator": "parent", "weight": 0.5, "roots": "tree"}]
RESOLVED = [
    {
        "estimator": "tree-grpo",
        "weight": 1.0,
        "options": {"center": "mean", "scale": "none", "ddof": 1, "eps": 1e-6, "singleton": "zero"}
        | {"variant": "sum", "inter": 1.0, "intra": 1.0},
    },
    {
        "estimator": "parent",
        "weight": 0.5,
        "options": {"roots": "tree", "value": "leaf-mean", "scale": "none", "ddof": 0, "eps": 1e-6},
    },
]


def with_tokens() -> list[TreeRecord]:
    """The published trees, each turn with two tokens of which the first was sampled."""
    trees = [TreeRecord.from_dict(fields) for fields in vector_trees()]
    for record in trees:
        for node in record.nodes:
            node["token_ids"] = [node["id"], 7]
            node["sampled"] = [[0, 1]] if node["id"] else []
            node["logprobs"] = [-0.5] if node["id"] else []
    return trees


def test_rows_of_a_file_have_the_sums_of_the_core(tmp_path: Path) -> None:
    with TreeWriter(tmp_path / "trees.jsonl") as writer:
        writer.write_group(score(with_tokens(), terms=SUM))
    read = list(read_trees(tmp_path / "trees.jsonl"))
    assert read[0].scoring == {"terms": RESOLVED}
    forest = to_forest(with_tokens())
    expected = forest.chain_rows(forest.score(RESOLVED))  # type: ignore[arg-type]
    actual = np.concatenate([row["advantages"] for row in training_rows(read)])
    np.testing.assert_allclose(actual, np.where(expected.loss_mask, expected.advantages, 0), rtol=1e-6)
    shared = [row["advantages"][2] for row in training_rows(read) if row["node_ids"][2] == 1 and row["tree_id"] == 0]
    assert len(set(shared)) > 1, "a shared turn has the same advantage in all its rows"


def test_another_scoring_leaves_nothing_of_a_sum_behind() -> None:
    plain = score(vector_trees(), "parent")
    assert score(score(vector_trees(), terms=SUM), "parent") == plain
    assert score(score(vector_trees(), terms=SUM[:1]), "parent") == plain


def test_a_term_alone_of_weight_one_is_written_as_an_estimator() -> None:
    assert score(vector_trees(), terms=SUM[:1]) == score(vector_trees(), "tree-grpo", scale="none")


def test_settings_have_terms_and_read_back_the_same(tmp_path: Path) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text(
        '[[advantage.terms]]\nestimator = "tree-grpo"\nscale = "none"\n'
        '[[advantage.terms]]\nestimator = "parent"\nweight = 0.5\nroots = "tree"\n'
        '[[advantage.terms]]\nestimator = "ancestor"\nweight = 2\noptions = { weight = "leaves" }\n'
    )
    config = load_config(toml)
    assert to_forest(with_tokens()).score(config.advantage.score_terms).terms == [
        *RESOLVED,
        {"estimator": "ancestor", "weight": 2.0, "options": {"weight": "leaves"}},
    ]
    saved = tmp_path / "saved.toml"
    saved.write_text(dump_config(config))
    assert load_config(saved) == config


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ('[advantage]\nestimator = "grpo"\n[[advantage.terms]]\nestimator = "parent"', "stand in a term of their own"),
        ('[advantage]\nscale = "none"\n[[advantage.terms]]\nestimator = "parent"', "stand in a term of their own"),
        ("[[advantage.terms]]\nweight = 1", "a term has no estimator"),
        ('[[advantage.terms]]\nestimator = "grop"', "unknown estimator 'grop'; did you mean 'grpo'?"),
        ('[[advantage.terms]]\nestimator = "grpo"\nroots = "tree"', "grpo has no option 'roots'"),
        ('[[advantage.terms]]\nestimator = "grpo"\nweight = -1', "option weight: got -1"),
        ('[[advantage.terms]]\nestimator = "ancestor"\nweight = "leaves"', "weight of ancestor: got 'leaves'"),
        ('[[advantage.terms]]\nestimator = "grpo"\noptions = 3', "options of grpo: expected a table"),
    ],
)
def test_terms_without_meaning_are_refused_in_one_line(settings: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(settings)
    with pytest.raises(UserError, match=rf"^.*advantage: .*{re.escape(complaint)}.*$"):
        load_config(tmp_path / "settings.toml")


def test_a_sum_is_asked_for_on_the_command_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", vector_trees())
    asked = ["--estimator", "tree-grpo,scale=none", "--estimator", "0.5*parent,roots=tree"]
    lines = run("inspect-tree", path, *asked, "--format", "json").stdout
    assert [json.loads(line) for line in lines.splitlines()] == [
        tree.fields for tree in score(vector_trees(), terms=SUM)
    ]
    assert "tree-grpo + 0.5 parent" in run("inspect-tree", "-", stdin=lines.encode()).stdout
    for wrong in ("x*grpo", "grpo,scale", ",scale=none"):
        assert "[weight*]name[,option=value ...]" in refused(run("inspect-tree", path, "--estimator", wrong))
    assert "--option needs one --estimator" in refused(run("inspect-tree", path, *asked, "--option", "eps=0"))


def test_a_sum_is_explained_leaf_by_leaf_and_then_the_node_itself() -> None:
    group = score(vector_trees(), terms=SUM)
    node = next(node for node in group[0].nodes[1:] if node["num_leaves"] > 1)
    lines = list(explain(group, 0, node["id"]))
    sums = [line for line in lines if line.startswith("  node ")]
    assert len(sums) == node["num_leaves"] + 1
    assert f"the mean over {node['num_leaves']} leaves at or below it:" in lines
    assert sums[-1].startswith(f"  node {node['id']}: ")
    assert lines[lines.index(sums[-1]) - 1] == "and of the node itself:"
    assert any(line.startswith("0.500·parent: A(n) = ") for line in lines)
    assert "0.500·parent = " in sums[-1]


@pytest.mark.parametrize(
    ("scoring", "complaint"),
    [
        ({"terms": []}, "scoring: terms is empty"),
        ({"terms": [3]}, "scoring: term 0 is 3, expected an object"),
        ({"terms": [{"estimator": "grpo", "options": {}}]}, "scoring: term 0 has no 'weight'"),
        ({"terms": [{"estimator": "grpo", "weight": "x", "options": {}}]}, "scoring: term 0: weight is 'x'"),
    ],
)
def test_a_wrong_sum_in_a_file_is_named(scoring: dict[str, Any], complaint: str) -> None:
    fields = score(vector_trees(), "grpo")[0].fields | {"scoring": scoring}
    with pytest.raises(UserError, match=re.escape(complaint)):
        TreeRecord.from_dict(fields)


def test_a_term_without_meaning_is_refused_in_python() -> None:
    with pytest.raises(UserError, match="beside terms: they stand in a term of their own"):
        score(vector_trees(), "grpo", terms=SUM)
    with pytest.raises(UserError, match=r"^terms: a term has no estimator"):
        score(vector_trees(), terms=[{"weight": 1}])


def test_an_estimator_that_knows_states_by_their_tokens_reads_them_from_a_file() -> None:
    forest = to_forest(with_tokens())
    for estimator in ("anchor", "state-loo"):
        expected = forest.score(estimator).advantage.tolist()
        actual = [node["advantage"] for tree in score(with_tokens(), estimator) for node in tree.nodes]
        assert actual == pytest.approx(expected)
        with pytest.raises(UserError, match=f"^node 0 has no 'token_ids', by which {estimator} knows equal states"):
            score(vector_trees(), estimator)


def test_rows_of_an_estimator_of_both_levels_have_its_sums() -> None:
    forest = to_forest(with_tokens())
    expected = forest.chain_rows(forest.score("anchor"))
    actual = np.concatenate([row["advantages"] for row in training_rows(score(with_tokens(), "anchor"))])
    np.testing.assert_allclose(actual, np.where(expected.loss_mask, expected.advantages, 0), rtol=1e-6)


def test_an_estimator_that_weighs_turns_itself_stands_beside_no_other_weights() -> None:
    for beside in ("loss.prefix_weight=0.5", "loss.denominator=sequence-mean"):
        with pytest.raises(UserError, match=r"state-loo weighs turns itself: loss\."):
            load_config(None, ["advantage.estimator=state-loo", beside])
    forest = to_forest(with_tokens())
    expected = forest.chain_rows(forest.score("state-loo"))
    actual = np.concatenate([row["weights"] for row in training_rows(score(with_tokens(), "state-loo"))])
    np.testing.assert_allclose(actual, expected.weights, rtol=1e-6)
    assert np.isfinite(actual).all()


@pytest.mark.parametrize("estimator", ["anchor", "state-loo"])
def test_an_estimator_that_knows_states_is_explained(estimator: str) -> None:
    group = score(with_tokens(), estimator)
    for node in group[0].nodes[1:]:
        lines = list(explain(group, 0, node["id"]))
        assert "the file says" not in "\n".join(lines)
        assert any(line.startswith(f"  node {node['id']}: ") for line in lines)
