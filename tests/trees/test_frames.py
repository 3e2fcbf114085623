"""Tables of trees, forests and scores hold what a loop over nodes and tokens finds in the records."""

import io
import math
import sys
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli import TreeRecord, Trees, UserError, from_chains, read_trees, score
from treegrpo_cli._core import Forest
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.frames import Rows, to_arrow, to_pandas
from treegrpo_cli.types import NodeStatus

from tests.forests import forest_of, trees
from tests.reference import Node
from tests.sample_trees import full_tree, tree, vector_trees, write_lines

ROWS = ("nodes", "leaves", "tokens")
FIELDS = ("reward", "num_leaves", "value", "advantage", "node_advantage", "policy_version", "round", "draw", "kept")


@st.composite
def records(draw: st.DrawFn) -> list[TreeRecord]:
    """Trees of records, scored or not, whose nodes leave out fields at random."""
    made = []
    for number, grown in enumerate(draw(trees(max_nodes=8))):
        nodes: list[dict[str, Any]] = []
        flatten(grown["root"], None, nodes)
        for node in nodes[1:]:
            node |= {
                "policy_version": draw(st.none() | st.integers(0, 9)),
                "text": draw(st.none() | st.text(max_size=4)),
            }
            for name in draw(st.sets(st.sampled_from(["logprobs", "policy_version", "tool_call_spans"]))):
                node.pop(name, None)
        made.append(TreeRecord(prompt_id=f"q{grown['prompt']}", tree_id=number, nodes=nodes))
    return list(score(made, "parent", scale="std")) if draw(st.booleans()) else made


def flatten(node: Node, parent: int | None, nodes: list[dict[str, Any]]) -> None:
    """Append the node and those below it as a file has them."""
    tokens = node["tokens"]
    place = len(nodes)
    sampled = [[at, at + 1] for at, (_, is_sampled, _) in enumerate(tokens) if is_sampled]
    nodes.append(
        {"id": place, "parent": parent, "reward": node["reward"], "token_ids": [token for token, _, _ in tokens]}
    )
    if parent is not None:
        logprobs = [logprob for _, is_sampled, logprob in tokens if is_sampled]
        nodes[-1] |= {"sampled": sampled, "logprobs": logprobs, "round": 0, "draw": 1, "tool_call_spans": sampled[:1]}
    for child in node["children"]:
        flatten(child, place, nodes)


def path(record: TreeRecord, node: dict[str, Any]) -> list[dict[str, Any]]:
    above = [] if node["parent"] is None else path(record, record.nodes[node["parent"]])
    return [*above, node]


def node_row(record: TreeRecord, node: dict[str, Any], **more: Any) -> dict[str, Any]:
    inner = {other["parent"] for other in record.nodes}
    tokens, logprobs = node.get("token_ids"), node.get("logprobs")
    spans = node.get("sampled") or []
    return {
        "prompt_id": record.prompt_id,
        "tree_id": record.tree_id,
        "node_id": node["id"],
        "parent_id": node["parent"],
        "depth": len(path(record, node)) - 1,
        "status": node.get("status") or ("open" if node["id"] in inner else "done"),
        "num_tokens": None if tokens is None else len(tokens),
        "num_sampled": None if tokens is None else sum(end - start for start, end in spans),
        "logprob": math.fsum(logprobs) if logprobs else None,
        "text": node.get("text"),
        "observation": node.get("observation"),
        **{name: node.get(name) for name in FIELDS},
        **more,
    }


def leaf_row(record: TreeRecord, node: dict[str, Any]) -> dict[str, Any]:
    rows = [node_row(record, above) for above in path(record, node)]
    total = {f"path_{name}": [row[f"num_{name}"] for row in rows] for name in ("tokens", "sampled")}
    return node_row(record, node, **{name: None if None in sizes else sum(sizes) for name, sizes in total.items()})


def token_rows(record: TreeRecord, node: dict[str, Any]) -> list[dict[str, Any]]:
    start = sum(len(above.get("token_ids") or ()) for above in path(record, node)[:-1])
    inside = [at for first, last in node.get("sampled") or () for at in range(first, last)]
    calls = node.get("tool_call_spans")
    rows = []
    for at, token in enumerate(node.get("token_ids") or ()):
        is_sampled, logprobs, advantage = at in inside, node.get("logprobs"), node.get("advantage")
        rows.append(
            {name: node_row(record, node)[name] for name in ("prompt_id", "tree_id", "node_id", "depth")}
            | {"position": start + at, "token_id": token, "sampled": is_sampled}
            | {"tool_call": None if calls is None else any(first <= at < last for first, last in calls)}
            | {
                "logprob": float(np.float32(logprobs[inside.index(at)]))
                if is_sampled and logprobs is not None
                else None
            }
            | {"advantage": float(np.float32(advantage)) if is_sampled and advantage is not None else None}
        )
    return rows


def slow(records: list[TreeRecord], rows: str) -> list[dict[str, Any]]:
    nodes = [(record, node) for record in records for node in record.nodes]
    if rows == "tokens":
        return [row for record, node in nodes for row in token_rows(record, node)]
    if rows == "nodes":
        return [node_row(record, node) for record, node in nodes]
    inner = [{node["parent"] for node in record.nodes} for record in records]
    leaves = [(r, n) for r, inside in zip(records, inner, strict=True) for n in r.nodes if n["id"] not in inside]
    return [leaf_row(record, node) for record, node in leaves]


def same(table: pa.Table, expected: list[dict[str, Any]]) -> bool:
    """Whether each column holds what the loop found; one that is left out, nothing at all."""
    found = table.to_pylist()
    assert len(found) == len(expected)
    for got, row in zip(found, expected, strict=True):
        for name, value in row.items():
            if name not in got:
                assert value is None, name
            elif isinstance(value, float) and got[name] is not None:
                assert math.isclose(got[name], value, rel_tol=1e-12, abs_tol=1e-12), name
            else:
                assert got[name] == value, name
        assert set(got) <= set(row)
    return True


@settings(deadline=None, max_examples=30)
@given(records())
def test_tables_hold_what_a_loop_over_the_records_finds(made: list[TreeRecord]) -> None:
    for rows in ROWS:
        table = to_arrow(made, rows)
        assert same(table, slow(made, rows))
        assert table.schema.names == list(to_pandas(made, rows).columns)


@settings(deadline=None, max_examples=15)
@given(trees(), st.sampled_from(["parent", "tree-grpo", "state-loo"]))
def test_a_forest_and_its_scores_give_what_their_columns_say(grown: list[Any], estimator: str) -> None:
    forest, _ = forest_of(grown)
    scores, columns = forest.score(estimator), forest.columns()
    nodes, tokens = scores.to_arrow().to_pydict(), scores.to_pandas("tokens")
    assert nodes["node_id"] == list(range(forest.num_nodes))
    assert nodes["parent_id"] == [None if parent == 2**32 - 1 else parent for parent in columns["parent"].tolist()]
    assert nodes["advantage"] == [None if math.isnan(x) else x for x in scores.advantage.tolist()]
    assert nodes["status"] == [NodeStatus(code).name.lower() for code in columns["status"].tolist()]
    assert ("weight" in nodes) == (estimator == "state-loo")
    owner = np.repeat(np.arange(forest.num_nodes), np.diff(columns["token_start"].astype(np.int64)))
    expected = np.where(columns["sampled"], scores.advantage[owner], np.nan).astype(np.float32)
    np.testing.assert_array_equal(tokens["advantage"].to_numpy(), expected)
    contexts = [forest.context(node) for node in range(forest.num_nodes)]
    for node, position, token in zip(tokens["node_id"], tokens["position"], tokens["token_id"], strict=True):
        assert contexts[node][position] == token
    leaves, told = forest.to_arrow("leaves"), forest.leaf_columns()
    assert leaves["node_id"].to_pylist() == told["node"].tolist()
    assert leaves["path_tokens"].to_pylist() == told["path_tokens"].tolist()
    assert leaves["path_sampled"].to_pylist() == told["gen_tokens"].tolist()


def test_a_masked_term_shows_in_the_tokens_of_tool_calls_alone() -> None:
    leaf = {"token_ids": [7, 8, 9], "sampled": [[0, 2]], "tool_call_spans": [[0, 1]]}
    nodes = [{"id": 0, "parent": None, "reward": None}]
    nodes += [{"id": 1 + place, "parent": 0, "reward": float(place), **leaf} for place in range(2)]
    masked = {"estimator": "parent", "mask": "tool-calls"}
    scored = score(tree(nodes=nodes), terms=[{"estimator": "grpo", "scale": "none"}, masked])
    assert scored.to_arrow("tokens")["advantage"].to_pylist() == [-1.0, -0.5, None, 1.0, 0.5, None]


def test_columns_have_the_types_that_their_numbers_ask_for() -> None:
    frame = Trees([TreeRecord.from_dict(full_tree())]).to_pandas()
    types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert [types[name] for name in ("node_id", "parent_id", "depth", "kept")] == ["int64", "Int64", "int64", "boolean"]
    assert [types[name] for name in ("reward", "policy_version", "num_tokens")] == ["float64", "Int64", "Int64"]
    assert frame["error"].tolist()[4] == "retriever: no answer"
    assert frame["zeta"].tolist()[2] == 0.0
    assert "mystery" not in frame
    tokens = Trees([TreeRecord.from_dict(full_tree())]).to_pandas("tokens")
    assert [str(tokens[name].dtype) for name in ("prompt_id", "node_id", "token_id", "sampled", "logprob")] == [
        *("category", "int32", "uint32", "bool", "float32")
    ]
    assert tokens["token_id"].max() == 2**32 - 1


@pytest.mark.parametrize("rows", ROWS)
def test_a_table_comes_back_from_parquet_as_it_went(rows: Any) -> None:
    scored = score([*vector_trees(), full_tree()], "parent")
    table, file = scored.to_arrow(rows), io.BytesIO()
    pq.write_table(table, file)
    assert pq.read_table(file).equals(table)
    assert to_arrow([], rows).num_rows == 0


def test_one_tree_many_and_a_file_give_one_table(tmp_path: Any) -> None:
    path = write_lines(tmp_path / "trees.jsonl", vector_trees())
    held = Trees(read_trees(path))
    pd.testing.assert_frame_equal(read_trees(path).to_pandas(), held.to_pandas())
    pd.testing.assert_frame_equal(pd.concat([tree.to_pandas() for tree in held], ignore_index=True), held.to_pandas())
    assert read_trees(path).to_arrow("leaves").equals(held.to_arrow("leaves"))
    assert isinstance(held[:1], Trees)
    assert held[:1] == [held[0]]
    assert len(from_chains([]).to_pandas()) == 0


def test_a_forest_grows_on_behind_its_table_and_shares_its_memory() -> None:
    forest = Forest()
    forest.add_tree(0, np.array([1, 2], dtype=np.uint32))
    table = forest.to_arrow("tokens")
    scores = forest.score("grpo")
    forest.add_tree(1, np.array([3], dtype=np.uint32))
    assert (table.num_rows, forest.num_tokens) == (2, 3)
    assert table["token_id"].to_pylist() == [1, 2]
    with pytest.raises(ValueError, match="before it changed"):
        scores.to_pandas()
    columns = forest.columns()
    assert forest.to_arrow("tokens")["token_id"].chunk(0).buffers()[1].address == columns["token_ids"].ctypes.data


def test_a_half_of_a_surrogate_pair_does_not_stop_a_table() -> None:
    node = {"id": 0, "parent": None, "reward": None, "text": "a\ud800b"}
    assert Trees([TreeRecord(prompt_id="q", tree_id=0, nodes=[node])]).to_pandas()["text"].tolist() == ["a?b"]


def test_what_is_missing_or_misspelt_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    forest = to_forest([TreeRecord.from_dict(vector_trees()[0])])
    with pytest.raises(UserError, match=r"rows are 'leafs'; did you mean 'leaves'"):
        forest.to_pandas("leafs")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"to_arrow needs pyarrow: pip install 'treegrpo\[frames\]'"):
        forest.to_arrow()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"to_pandas needs pandas and pyarrow: pip install 'treegrpo\[frames\]'"):
        forest.to_pandas()


def test_the_largest_tree_id_of_a_file_is_the_same_in_every_table() -> None:
    root = {"id": 0, "parent": None, "reward": None, "token_ids": [7], "sampled": []}
    tree = TreeRecord(prompt_id="q", tree_id=2**32 - 1, nodes=[root])
    for rows in get_args(Rows):
        assert tree.to_pandas(rows)["tree_id"].tolist() == [2**32 - 1]
