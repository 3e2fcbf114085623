"""Records through the core: the published numbers come out, nothing else changes, and rows fit a trainer."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli import UserError, collate, read_trees, score, training_rows
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.scoring import score_group
from treegrpo_cli.trees.tree_record import TreeRecord

from tests import reference
from tests.forests import ESTIMATORS
from tests.sample_trees import VECTOR_NAMES, Fields, full_tree, nodes_of, tree, vector_trees, write_lines

GOLDEN = Path(__file__).parents[1] / "golden"


def records_of(trees: list[Fields]) -> list[TreeRecord]:
    return [TreeRecord.parse(json.dumps(fields)) for fields in trees]


def random_tree(draw: random.Random, prompt_id: str, tree_id: int) -> Fields:
    """Any shape, some leaves unscored, with tokens, spans and log-probabilities."""
    size = draw.randint(1, 12)
    parents = [None, *(draw.randrange(place) for place in range(1, size))]
    nodes = []
    for place, parent in enumerate(parents):
        leaf = place > 0 and place not in parents
        num_tokens, num_sampled = draw.randint(1, 4), 0 if place == 0 else 1
        node = {"id": place, "parent": parent, "reward": draw.choice([None, 0.0, 0.1, 1.0]) if leaf else None}
        node |= {
            "token_ids": [draw.randrange(100) for _ in range(num_tokens)],
            "sampled": [[0, 1]] if place else [],
        }
        nodes.append(node | {"logprobs": [-draw.random()] * num_sampled, "policy_version": draw.randrange(3)})
    return tree(prompt_id, tree_id, nodes)


def random_group(seed: int, prompt_id: str = "p") -> list[TreeRecord]:
    draw = random.Random(seed)
    return records_of([random_tree(draw, prompt_id, tree_id) for tree_id in range(draw.randint(2, 4))])


def test_the_published_vectors_come_out_of_a_file() -> None:
    first, second = score(records_of(vector_trees()), "tree-grpo", eps=0)
    advantage = dict(zip(VECTOR_NAMES, [node["advantage"] for node in first.nodes], strict=True))
    win, loss = 1.848285, -1.848285
    expected = {
        "r": 0,
        "A": 0,
        "B": win / 3,
        "C": loss,
        "A1": win,
        "A2": loss,
        "B1": win / 3,
        "B1a": win,
        "B1b": win,
    }
    assert advantage == pytest.approx(expected | {"B1c": loss}, abs=1e-6)
    assert [node["advantage"] for node in second.nodes] == pytest.approx([0, -1.642521, 1.642521], abs=1e-6)
    assert [node["depth"] for node in first.nodes] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [node["num_leaves"] for node in first.nodes] == [6, 2, 3, 1, 1, 1, 3, 1, 1, 1]
    assert first.nodes[2]["value"] == pytest.approx(2 / 3)
    assert first.scoring is not None
    assert first.scoring["estimator"] == "tree-grpo"
    assert first.scoring["options"]["eps"] == 0
    assert first.scoring["options"]["variant"] == "sum"


def test_a_golden_file_is_scored_as_it_stands_there_byte_for_byte() -> None:
    scored = score(read_trees(GOLDEN / "vectors.jsonl"), "parent")
    assert b"".join(record.to_json() + b"\n" for record in scored) == (GOLDEN / "vectors-parent.jsonl").read_bytes()
    sixths = [0, 0, 1, -3, 3, -3, 0, 2, 2, -4]  # the published numbers, in sixths
    assert [6 * node["advantage"] for node in scored[0].nodes] == pytest.approx(sixths)
    assert [node["advantage"] for node in scored[1].nodes] == [0, -0.5, 0.5]


def test_scoring_adds_five_fields_behind_the_others_and_leaves_the_given_tree_alone() -> None:
    before = full_tree()
    given_record = TreeRecord.parse(json.dumps(before))
    [scored] = score([given_record], "grpo")
    after = json.loads(scored.to_json())
    assert json.loads(given_record.to_json()) == before
    assert list(after) == [*before, "scoring"]
    for node, was in zip(after["nodes"], before["nodes"], strict=True):
        assert list(node) == [*was, "depth", "num_leaves", "value", "advantage"]
        assert {name: node[name] for name in was} == was
    nowhere = after["nodes"][3]
    assert (nowhere["num_leaves"], nowhere["value"], nowhere["advantage"]) == (0, None, None)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_written_read_and_scored_again_is_the_same_byte_for_byte(estimator: str, seed: int) -> None:
    once = [record.to_json() for record in score_group(random_group(seed), estimator, {})]
    again = score_group([TreeRecord.parse(line) for line in once], estimator, {})
    assert [record.to_json() for record in again] == once


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_values_are_means_over_the_scored_leaves_below(seed: int) -> None:
    for record in score_group(random_group(seed), "grpo", {}):
        below: list[list[float]] = [[] for _ in record.nodes]
        for node in reversed(record.nodes):
            below[node["id"]] += [] if node["reward"] is None else [node["reward"]]
            if node["parent"] is not None:
                below[node["parent"]] += below[node["id"]]
        for node, rewards in zip(record.nodes, below, strict=True):
            assert node["num_leaves"] == len(rewards)
            assert node["value"] == (pytest.approx(sum(rewards) / len(rewards)) if rewards else None)


def reference_tree(record: TreeRecord) -> tuple[reference.Tree, list[reference.Node]]:
    """The same tree as the slow reference takes it, and its nodes in the order of the file."""
    nodes = [{"children": [], "reward": node["reward"], "entropy": None, "tokens": []} for node in record.nodes]
    for node in record.nodes[1:]:
        nodes[node["parent"]]["children"].append(nodes[node["id"]])
    return {"prompt": 0, "root": nodes[0]}, nodes


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_scoring_adds_to_a_file_is_what_the_slow_reference_says(estimator: str, seed: int) -> None:
    records = score_group(random_group(seed), estimator, {})
    trees, nodes = zip(*map(reference_tree, records), strict=True)
    assert records[0].scoring is not None
    expected = reference.score(list(trees), estimator, records[0].scoring["options"])
    for record, slow in zip(records, nodes, strict=True):
        for node, same in zip(record.nodes, slow, strict=True):
            for name in ("depth", "num_leaves", "value", "advantage"):
                assert node[name] == pytest.approx(expected[id(same)][name], abs=1e-9), name


def test_groups_are_prompts_whatever_the_order_of_trees() -> None:
    one, other = random_group(1, "one"), random_group(2, "other")
    mixed = [record for pair in zip(one, other, strict=False) for record in pair]
    expected = {record.prompt_id: record for group in (one[:2], other[:2]) for record in score(group, "grpo")}
    for record in score(mixed[:4], "grpo"):
        if record.tree_id == expected[record.prompt_id].tree_id:
            assert record == expected[record.prompt_id]
    assert [(record.prompt_id, record.tree_id) for record in score(mixed, "grpo")] == [
        (record.prompt_id, record.tree_id) for record in mixed
    ]


def test_no_trees_are_no_scores_and_no_rows() -> None:
    assert score([]) == []
    assert training_rows([]) == []


def test_two_trees_of_one_number_are_refused() -> None:
    with pytest.raises(UserError, match="second tree 0"):
        score(records_of([tree("a"), tree("a")]), "grpo")


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        ("gppo", {}, "gppo"),
        ("grpo", {"variant": "sum"}, "variant"),
        ("grpo", {"eps": float("nan")}, "eps"),
        ("grpo", {"eps": -1}, "eps"),
        ("grpo", {"ddof": 2}, "ddof"),
        ("grpo", {"scale": 0}, "scale"),
        ("grpo", {"center": None}, "center"),
        ("parent", {"value": "mean"}, "value"),
        ("sibling", {"value": "child-softmax"}, "entropy"),
    ],
)
def test_an_estimator_or_option_that_does_not_exist_is_the_users_mistake(
    estimator: str, options: Fields, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score(records_of(vector_trees()), estimator, **options)


def test_bernoulli_names_the_tree_and_node_whose_reward_is_out_of_range(tmp_path: Path) -> None:
    trees = [tree("q", 4), tree("q", 7, nodes_of([None, 0, 0], [None, 1.0, 1.5]))]
    path = write_lines(tmp_path / "t.jsonl", trees)
    with pytest.raises(UserError, match=r"t\.jsonl:2: tree 7, node 2: .*\[0, 1\]"):
        score(read_trees(path), "grpo", scale="bernoulli")


def test_a_file_without_rounds_is_named_where_they_are_needed(tmp_path: Path) -> None:
    nodes = [
        {
            **node,
            "token_ids": [node["id"]],
            "sampled": [[0, 1]] if node["id"] else [],
            "logprobs": [-0.5] * (node["id"] > 0),
        }
        for node in nodes_of([None, 0, 0], [None, 1.0, 0.0])
    ]
    path = write_lines(
        tmp_path / "t.jsonl", [tree("q", 0, [{**node, "round": 0} for node in nodes]), tree("q", 1, nodes)]
    )
    with pytest.raises(UserError, match=r"t\.jsonl:2: causal needs to know in which round"):
        score(read_trees(path), "causal")
    with pytest.raises(UserError, match=r"^option weight: got "):
        score(read_trees(path), "causal", weight="nope")


def test_rewards_too_large_for_float64_are_refused_and_no_nan_is_written() -> None:
    huge = tree(nodes=nodes_of([None, 0, 0, 0], [None, 1.7e308, 1.7e308, -1.7e308]))
    with pytest.raises(UserError, match="too large"):
        score(records_of([huge]), "grpo")


def test_tree_grpo_warns_of_a_single_tree_and_others_do_not() -> None:
    with pytest.warns(UserWarning, match="single tree"):
        score(records_of([tree()]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(records_of([tree()]), "grpo")
        score(records_of([tree()]), "tree-grpo", variant="intra_only")
        score(records_of(vector_trees()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_training_rows_are_the_chain_rows_of_the_core(estimator: str, seed: int) -> None:
    group = random_group(seed)
    forest = to_forest(group)
    chains = forest.chain_rows(forest.score(estimator, {}))
    rows = training_rows(score_group(group, estimator, {}))
    assert len(rows) == len(chains.group)
    for number, row in enumerate(rows):
        span = slice(*map(int, chains.row_start[number : number + 2]))
        mask = chains.loss_mask[span]
        np.testing.assert_array_equal(row["input_ids"], chains.input_ids[span])
        np.testing.assert_array_equal(row["loss_mask"], mask)
        np.testing.assert_array_equal(row["logprobs"], chains.logprobs[span])
        np.testing.assert_array_equal(row["advantages"], np.where(mask, chains.advantages[span], 0))
        assert row["group"] == "p"


def test_a_training_row_is_one_path_with_its_advantages() -> None:
    root = {"id": 0, "parent": None, "reward": None, "token_ids": [1, 2]}
    turn = {
        "id": 1,
        "parent": 0,
        "reward": None,
        "token_ids": [3, 4, 5],
        "sampled": [[0, 2]],
        "logprobs": [-0.5, -1.5],
    }
    good = {"id": 2, "parent": 1, "reward": 1.0, "token_ids": [6], "sampled": [[0, 1]], "logprobs": [-0.25]}
    bad = good | {"id": 3, "reward": 0.0, "token_ids": [7, 8], "sampled": [[1, 2]]}
    dropped = good | {"id": 4, "reward": None, "kept": False}
    record = TreeRecord(prompt_id="q", tree_id=0, nodes=[root, turn, good, bad, dropped])
    first, second = training_rows(score([record], "grpo", scale="none"))
    assert first["input_ids"].tolist() == [1, 2, 3, 4, 5, 6]
    assert first["loss_mask"].tolist() == [False, False, True, True, False, True]
    assert first["logprobs"].tolist() == [0, 0, -0.5, -1.5, 0, -0.25]
    assert first["advantages"].tolist() == [0, 0, 0.5, 0.5, 0, 0.5]
    assert second["loss_mask"].tolist() == [False, False, True, True, False, False, True]
    assert second["advantages"].tolist() == [0, 0, -0.5, -0.5, 0, 0, -0.5]
    [from_nodes, _] = training_rows(score([record], "parent"))
    assert from_nodes["advantages"].tolist() == [0, 0, 0, 0, 0, 0.5]


def test_a_row_says_where_it_comes_from_and_what_its_leaf_holds_beside() -> None:
    first = random_group(3)
    leaf = next(node for record in first for node in record.nodes if node["reward"] is not None)
    leaf |= {"length": 7, "text": "known to the format"}
    scored = score(first, "parent")
    rows = training_rows(scored)
    leaves = [(record, node) for record in scored for node in record.nodes if node["reward"] is not None]
    for row, (record, node) in zip(rows, leaves, strict=True):
        assert (row["group"], row["tree_id"], row["leaf_id"]) == (record.prompt_id, record.tree_id, node["id"])
        assert row["reward"] == node["reward"]
        assert row["extra"] == ({"length": 7} if "length" in node else {})
        path = [node["id"]]
        while (parent := record.nodes[path[0]]["parent"]) is not None:
            path.insert(0, parent)
        assert row["node_ids"].tolist() == [place for place in path for _ in record.nodes[place]["token_ids"]]
    assert [row["extra"] for row in rows].count({"length": 7}) == 1


def test_one_tree_dicts_and_numbers_of_numpy_are_scored_like_any() -> None:
    trees = vector_trees()
    expected = score(records_of(trees), "parent")
    assert score(trees, "parent") == expected
    nameless = [{name: value for name, value in fields.items() if name != "schema"} for fields in trees]
    assert score(iter(nameless), "parent") == expected
    for fields in trees:
        assert score(fields, "grpo") == score(records_of([fields])[0], "grpo")
        for node in fields["nodes"]:
            node["id"] = np.int64(node["id"])
            node["reward"] = None if node["reward"] is None else np.float32(node["reward"])
            node["extra"] = (np.array([1, 2]), np.bool_(True))
    taken = score(trees, "parent")
    assert [node["advantage"] for node in taken[0].nodes] == [node["advantage"] for node in expected[0].nodes]
    assert json.loads(taken[0].to_json())["nodes"][0]["extra"] == [[1, 2], True]
    with pytest.raises(UserError, match="prompt_id"):
        score({"tree_id": 0, "nodes": []})


def test_rows_are_padded_on_the_right_for_torch() -> None:
    rows = training_rows(score(random_group(3), "parent"))
    batch = collate(rows, pad_id=99)
    width = max(len(row["input_ids"]) for row in rows)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "loss_mask", "logprobs", "advantages"), (len(rows), width)
    )
    for place, row in enumerate(rows):
        num_tokens = len(row["input_ids"])
        for name in ("input_ids", "loss_mask", "logprobs", "advantages"):
            assert batch[name][place, :num_tokens].tolist() == dict(row)[name].tolist()
        assert batch["attention_mask"][place].tolist() == [1] * num_tokens + [0] * (width - num_tokens)
        assert batch["input_ids"][place, num_tokens:].tolist() == [99] * (width - num_tokens)
        assert not batch["loss_mask"][place, num_tokens:].any()
        assert not batch["advantages"][place, num_tokens:].any()
    rows[0]["logprobs"] = None
    assert "logprobs" not in collate(rows)
    with pytest.raises(UserError, match="no rows"):
        collate([])


def test_rows_without_logprobs_say_so() -> None:
    root = {"id": 0, "parent": None, "reward": None, "token_ids": [1]}
    leaf = {"id": 1, "parent": 0, "reward": 1.0, "token_ids": [2], "sampled": [[0, 1]]}
    record = TreeRecord(prompt_id="q", tree_id=0, nodes=[root, leaf, leaf | {"id": 2, "reward": 0.0}])
    assert [row["logprobs"] for row in training_rows(score([record], "grpo"))] == [None, None]


def test_rows_need_scores_tokens_and_a_known_estimator() -> None:
    with pytest.raises(UserError, match="unscored"):
        training_rows(records_of([tree()]))
    with pytest.raises(UserError, match=r"node 0 has no 'token_ids'"):
        training_rows(score(records_of([tree()]), "grpo"))
    [scored] = score(random_group(3)[:1], "grpo")
    foreign = json.loads(scored.to_json()) | {"scoring": {"estimator": "oracle", "options": {}}}
    with pytest.raises(UserError, match="oracle"):
        training_rows(records_of([foreign]))
