"""An advantage in words: the terms that are shown add up to it, under every estimator and option."""

import random
import re
from typing import Any

import pytest
from treegrpo_cli import UserError, estimators, score
from treegrpo_cli.trees.explain import explain
from treegrpo_cli.trees.texts import number
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.sample_trees import nodes_of, vector_trees

CHOICES = [
    ("grpo", {"center": "loo", "scale": "none"}),
    ("grpo", {"singleton": "raw"}),
    ("tree-grpo", {"inter": 0.5, "intra": 2}),
    ("tree-grpo", {"variant": "intra_only"}),
    ("tree-grpo", {"variant": "two_norm"}),
    ("parent", {"scale": "std", "value": "child-mean"}),
    ("parent", {"roots": "tree", "value": "smoothed"}),
    ("sibling", {"center": "loo"}),
    ("ancestor", {}),
    ("ancestor", {"weight": "leaves"}),
    ("redistribute", {"base": "tree-grpo"}),
    ("global-local", {"local": 0.5}),
    ("depth", {"roots": "tree"}),
    ("sibling", {"scale": "std", "ddof": 0, "value": "max"}),
]


def random_group(seed: int) -> list[TreeRecord]:
    draw, group = random.Random(seed), []
    for tree_id in range(draw.randint(2, 3)):
        parents = [None, *(draw.randrange(place) for place in range(1, draw.randint(2, 10)))]
        leaves = set(range(1, len(parents))) - set(parents)
        rewards = [draw.choice([None, 0.0, 0.5, 1.0]) if place in leaves else None for place in range(len(parents))]
        group.append(TreeRecord(prompt_id="p", tree_id=tree_id, nodes=nodes_of(parents, rewards)))
    return group


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


@pytest.mark.parametrize(("estimator", "options"), CHOICES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_last_sum_of_a_node_is_its_advantage(estimator: str, options: dict[str, Any], seed: int) -> None:
    group = score(random_group(seed), estimator, **options)
    for place, record in enumerate(group):
        for node in record.nodes:
            lines = list(explain(group, place, node["id"]))
            assert f"{estimator}: {estimators()[estimator]['formula']}" in lines
            if node["advantage"] is None:
                assert lines[-1] == "no scored leaf below: it is left out"
                continue
            assert f"advantage {signed(node['advantage'])}" in lines[1]
            sums = [line for line in lines if line.startswith("  node ")]
            below = [leaf for leaf in record.nodes if leaf["reward"] is not None and is_below(record, leaf, node["id"])]
            leaf_level = estimators()[estimator]["level"] == "leaf"
            told = below if leaf_level else [node]
            assert len(sums) == (len(told) if node["id"] else 0)
            for line, other in zip(sums, told, strict=False):
                assert line.startswith(f"  node {other['id']}: ")
                assert line.endswith(f" = {signed(other['advantage'])}")


def is_below(record: TreeRecord, node: dict[str, Any], above: int) -> bool:
    while node["id"] != above and node["parent"] is not None:
        node = record.nodes[node["parent"]]
    return bool(node["id"] == above)


def test_a_group_whose_rewards_are_equal_says_so() -> None:
    trees = [TreeRecord(prompt_id="p", tree_id=n, nodes=nodes_of([None, 0, 0], [None, 1, 1])) for n in range(2)]
    shown = "\n".join(explain(score(trees, "grpo"), 0, 1))
    assert "grpo: 0, all equal, so the term is 0 (prompt: 4 values, mean 1.000" in shown
    alone = TreeRecord(prompt_id="p", tree_id=0, nodes=nodes_of([None, 0], [None, 1]))
    assert "alone in its group" in "\n".join(explain(score(alone, "grpo"), 0, 1))


def test_a_scoring_of_somebody_else_is_named_and_no_traceback() -> None:
    group = [tree.replaced(scoring={"estimator": "oracle", "options": {}}) for tree in score(vector_trees(), "grpo")]
    with pytest.raises(UserError, match=r"scoring: unknown estimator 'oracle'"):
        list(explain(group, 0, 1))


def test_of_many_leaves_the_first_are_listed() -> None:
    tree = TreeRecord(prompt_id="p", tree_id=0, nodes=nodes_of([None, 0, *[1] * 50], [None, None, *[0, 1] * 25]))
    shown = list(explain(score(tree, "grpo"), 0, 1))
    assert len([line for line in shown if re.match(r"  node \d+: ", line)]) == 40
    assert "  … 10 more" in shown
