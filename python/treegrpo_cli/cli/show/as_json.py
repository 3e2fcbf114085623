"""Groups of trees -> lines of JSON: what `treegrpo inspect-tree --format json` writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import orjson

from treegrpo_cli.trees.tree_record import TreeRecord

MAX_NESTED_DEPTH = 200


def write_json(groups: Iterator[Sequence[TreeRecord]], *, nested: bool) -> None:
    """Write a line a tree to standard output. Raises UserError for one too deep to be `nested`."""
    for group in groups:
        for record in group:
            sys.stdout.buffer.write((nested_json(record) if nested else record.to_json()) + b"\n")
    sys.stdout.buffer.flush()


def nested_json(record: TreeRecord) -> bytes:
    """The tree with `root` in place of `nodes` and `children` inside. Raises UserError beyond depth 200."""
    depths: list[int] = []
    for node in record.nodes:
        depths.append(0 if node["parent"] is None else depths[node["parent"]] + 1)
    if max(depths) > MAX_NESTED_DEPTH:
        raise record.error(
            f"tree {record.tree_id} of prompt_id {record.prompt_id!r} is {max(depths)} deep: "
            f"--nested goes to {MAX_NESTED_DEPTH}"
        )
    children: list[list[orjson.Fragment]] = [[] for _ in record.nodes]
    for node in reversed(record.nodes):
        inside = orjson.Fragment(record.dump({**node, "children": children[node["id"]][::-1]}))
        if node["parent"] is not None:
            children[node["parent"]].append(inside)
    fields = {("root" if name == "nodes" else name): value for name, value in record.fields.items()}
    return record.dump(fields | {"root": inside})
