"""Line of a tree file <-> TreeRecord: parsed and checked, written the same byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from treegrpo_cli.data.json_values import JsonError, parse_json
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.trees.checks import check_tree
from treegrpo_cli.trees.format import SCHEMA, Fields
from treegrpo_cli.trees.framed import Framed
from treegrpo_cli.types import Limits

PLAIN = {int, float, str, bool, type(None)}


class TreeRecord(Framed):
    """One tree: a line of a tree file, checked. Fields that this version does not know are kept in place.

    `fields` is the line as JSON types, `path` and `line` are where it was read from. A node is a dict of
    the file's fields: `nodes[i]["parent"]`, `nodes[i]["reward"]`, ...

    >>> nodes = [{"id": 0, "parent": None, "reward": None}, {"id": 1, "parent": 0, "reward": 1.0}]
    >>> TreeRecord(prompt_id="q1", tree_id=0, nodes=nodes).nodes[1]["reward"]
    1.0
    """

    __slots__ = ("fields", "line", "path")

    def __init__(
        self,
        *,
        prompt_id: str,
        tree_id: int,
        nodes: Sequence[Fields],
        task: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a tree; numpy's numbers and arrays become Python's. Raises UserError where it breaks the format."""
        fields: Fields = {"schema": SCHEMA, "prompt_id": prompt_id, "tree_id": tree_id}
        fields |= {"task": task} if task is not None else {}
        fields |= {"meta": meta} if meta is not None else {}
        self._fill(json_types(fields | {"nodes": list(nodes)}), None, None)
        check_tree(self.fields)

    def _fill(self, fields: Fields, path: str | Path | None, line: int | None) -> None:
        self.fields, self.path, self.line = fields, path, line

    @classmethod
    def parse(
        cls,
        line: bytes | str,
        path: str | Path | None = None,
        number: int | None = None,
        limits: Limits | None = None,
    ) -> TreeRecord:
        """Read one line; raises UserError, with file and line where given, for anything wrong with it."""
        record = cls.__new__(cls)
        record._fill({}, path, number)
        try:
            record.fields = parse_json(line, limits or Limits())
            check_tree(record.fields)
        except (JsonError, UserError) as error:
            raise record.error(str(error)) from None
        return record

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TreeRecord:
        """Make a tree of a line's fields, `schema` aside, which may be left out; else as the constructor does."""
        record = cls.__new__(cls)
        given = json_types(fields)
        record._fill(given if "schema" in given else {"schema": SCHEMA, **given}, None, None)
        check_tree(record.fields)
        return record

    def replaced(self, **fields: Any) -> TreeRecord:
        """A copy with other fields, which are taken as valid; those it has keep their places."""
        record = type(self).__new__(type(self))
        record._fill(self.fields | fields, self.path, self.line)
        return record

    def to_json(self) -> bytes:
        """The line, without its end: what is read from it again is written the same, byte for byte."""
        return self.dump(self.fields)

    def dump(self, value: Any) -> bytes:
        """JSON of a part of this tree; raises UserError where foreign fields nest too deep to be written."""
        try:
            return orjson.dumps(value)
        except TypeError as error:
            raise self.error(f"cannot be written as JSON: {error}") from None

    def error(self, message: str) -> UserError:
        """`message`, with file and line where the tree came from a file."""
        if self.path is None:
            return UserError(message)
        return FileError(str(self.path), message, self.line)

    @property
    def prompt_id(self) -> str:
        """The group: all trees of one prompt."""
        return str(self.fields["prompt_id"])

    @property
    def tree_id(self) -> int:
        """0 ... M - 1 within the prompt."""
        return int(self.fields["tree_id"])

    @property
    def nodes(self) -> list[Fields]:
        """Topological: a node stands after its parent, the root first; `nodes[i]["id"] == i`."""
        nodes: list[Fields] = self.fields["nodes"]
        return nodes

    @property
    def task(self) -> Fields | None:
        """The dataset row."""
        return self.fields.get("task")

    @property
    def meta(self) -> Fields | None:
        """Model, sampling settings, seed, config digest, time, package version."""
        return self.fields.get("meta")

    @property
    def scoring(self) -> Fields | None:
        """`estimator` and its resolved `options`, or the `terms` of a sum, each with these and its `weight`; None where
        the tree is unscored.
        """
        return self.fields.get("scoring")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeRecord) and self.fields == other.fields

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TreeRecord(prompt_id={self.prompt_id!r}, tree_id={self.tree_id}, {len(self.nodes)} nodes)"


AnyTree: TypeAlias = TreeRecord | Mapping[str, Any]
"""A tree, or a line's fields."""


def as_records(trees: AnyTree | Iterable[AnyTree]) -> list[TreeRecord]:
    """Trees as records, whether one or many, records or dicts."""
    given = [trees] if isinstance(trees, TreeRecord | Mapping) else list(trees)
    return [tree if isinstance(tree, TreeRecord) else TreeRecord.from_dict(tree) for tree in given]


def json_types(value: Any) -> Any:
    """The value with lists for tuples and arrays, Python's numbers for numpy's; what JSON has is left as it is.

    >>> import numpy as np
    >>> json_types({"reward": np.float32(0.5), "token_ids": np.array([1, 2]), "sampled": [(0, 2)]})
    {'reward': 0.5, 'token_ids': [1, 2], 'sampled': [[0, 2]]}
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, Mapping):
        return {name: json_types(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return list(value) if PLAIN.issuperset(map(type, value)) else [json_types(inside) for inside in value]
    return value.tolist() if hasattr(value, "tolist") else value
