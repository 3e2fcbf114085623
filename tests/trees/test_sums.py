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


def with_rounds() -> list[TreeRecord]:
    """The same, of chains that were branched at A and at B1: once in round 1, and at B1 in round 2 again."""
    trees = with_tokens()
    for record in trees:
        for node in record.nodes:
            node["round"] = {4: 1, 8: 1, 9: 2}.get(node["id"], 0)
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
        ('[[advantage.terms]]\nestimator = "grpo"\nmask = "tool-call"', "unknown mask 'tool-call'; did you mean"),
        ('[[advantage.terms]]\nestimator = "grpo"\nmask = 3', "mask of grpo: got 3, expected the name of one"),
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
    nothing = refused(run("inspect-tree", path, "--estimator", "grpo", "--estimator", "0*parent"))
    assert "--estimator '0*parent': a term of weight 0 adds nothing" in nothing
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
    forest = to_forest(with_rounds())
    for estimator in ("anchor", "causal", "state-loo"):
        expected = forest.score(estimator).advantage.tolist()
        actual = [node["advantage"] for tree in score(with_rounds(), estimator) for node in tree.nodes]
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


MASKED: list[dict[str, Any]] = [
    {"estimator": "tree-grpo", "scale": "none"},
    {"estimator": "grpo", "mask": "tool-calls"},
    {"estimator": "parent", "weight": 2.0, "mask": "tool-calls"},
]


def with_calls() -> list[TreeRecord]:
    """The published trees, each turn with three tokens of which two were sampled, the second for a tool call."""
    trees = [TreeRecord.from_dict(fields) for fields in vector_trees()]
    for record in trees:
        for node in record.nodes:
            node["token_ids"] = [node["id"], 7, 8]
            if node["id"]:
                node |= {"sampled": [[0, 2]], "tool_call_spans": [[1, 2]], "logprobs": [-0.5, -0.25]}
            else:
                node |= {"sampled": [], "logprobs": []}
    return trees


@pytest.mark.parametrize("own", [False, True])
def test_a_masked_term_stands_in_the_advantages_of_tool_calls_alone(own: bool, tmp_path: Path) -> None:
    terms = MASKED
    if own:
        (tmp_path / "mine.py").write_text("def steps(columns):\n    return columns['value'] - 0.25\n")
        terms = [*MASKED, {"estimator": f"{tmp_path}/mine.py:steps", "weight": 0.5, "mask": "tool-calls"}]
    with TreeWriter(tmp_path / "trees.jsonl") as writer:
        writer.write_group(score(with_calls(), terms=terms))
    read = list(read_trees(tmp_path / "trees.jsonl"))
    everything = score(with_calls(), terms=[{**term, "mask": None} for term in terms])
    unmasked = score(with_calls(), terms=terms[:1])
    for rows in zip(*map(training_rows, (read, everything, unmasked)), strict=True):
        ours, whole, rest = (row["advantages"].tolist() for row in rows)
        in_call = [place % 3 == 1 and place > 2 for place in range(len(ours))]
        expected = [a if call else b for a, b, call in zip(whole, rest, in_call, strict=True)]
        assert ours == pytest.approx(expected, rel=1e-6)
        assert whole != rest
    for tree, whole_tree, rest_tree in zip(read, everything, unmasked, strict=True):
        for node, of_all, of_rest in zip(tree.nodes, whole_tree.nodes, rest_tree.nodes, strict=True):
            assert node["advantage"] == pytest.approx(of_all["advantage"])
            assert node["unmasked_advantage"] == pytest.approx(of_rest["advantage"])
    assert score(read, "parent") == score(with_calls(), "parent"), "another scoring leaves something behind"
    assert score(read, terms=terms) == read


def test_a_mask_needs_to_know_the_tool_calls(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [tree.fields for tree in with_tokens()])
    asked = ["--estimator", "grpo", "--estimator", "0.5*parent,mask=tool-calls"]
    complaint = "a.jsonl, line 1: node 1 has no 'tool_call_spans', which a term's mask tool-calls reads"
    assert complaint in refused(run("inspect-tree", path, *asked)).replace(":1:", ", line 1:")
    path = write_lines(tmp_path / "a.jsonl", [tree.fields for tree in with_calls()])
    assert "grpo + 0.5 parent on tool-calls" in run("inspect-tree", path, *asked).stdout
    wrong = ["--estimator", "grpo,mask=tool-call"]
    assert "unknown mask 'tool-call'; did you mean 'tool-calls'" in refused(run("inspect-tree", path, *wrong))


def test_a_masked_sum_is_explained() -> None:
    group = score(with_calls(), terms=MASKED)
    lines = "\n".join(explain(group, 0, 1))
    assert ", 0.000 outside tool calls" in lines
    assert "2.000·parent on tool-calls: A(n) = " in lines
    assert "what is on tool-calls where they are part of one" in lines


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"tool_call_spans": [[1, 3]]}, "node 1: each span of tool_call_spans lies within one of sampled"),
        ({"tool_call_spans": [[1, 4]]}, "node 1: span [1, 4) of tool_call_spans does not fit between 0 and 3"),
        ({"tool_call_spans": [1]}, "node 1: tool_call_spans is a list of [start, end) pairs of integers"),
        ({"state_key": 5}, "node 1: state_key is 5, expected a string"),
    ],
)
def test_wrong_spans_of_tool_calls_are_named(fields: dict[str, Any], complaint: str) -> None:
    line = with_calls()[0].fields
    line["nodes"][1] |= fields
    with pytest.raises(UserError, match=re.escape(complaint)):
        TreeRecord.from_dict(line)


def test_anchor_reads_keys_of_states_from_a_file() -> None:
    trees = vector_trees()
    for tree in trees:
        for node in tree["nodes"][1:]:
            node["state_key"] = "start" if node["parent"] == 0 else f"{tree['tree_id']}-{node['parent']}"
    keyed = score(trees, "anchor", scale="none")
    tokens = score(
        [
            {
                **tree,
                "nodes": [
                    {k: v for k, v in node.items() if k != "state_key"}
                    | {"token_ids": [] if node["parent"] is None else [tree["tree_id"], node["id"]], "sampled": []}
                    for node in tree["nodes"]
                ],
            }
            for tree in trees
        ],
        "anchor",
        scale="none",
    )
    advantages = [[node["node_advantage"] for tree in group for node in tree.nodes] for group in (keyed, tokens)]
    assert advantages[0] == pytest.approx(advantages[1])
    del trees[0]["nodes"][2]["state_key"]
    with pytest.raises(UserError, match="node 0 has no 'token_ids', by which anchor knows equal states"):
        score(trees, "anchor")
