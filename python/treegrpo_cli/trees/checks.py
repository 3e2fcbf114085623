"""Parsed JSON -> nothing where it is a valid tree, else one clear line: columns at once, then node by node."""

from __future__ import annotations

import re
import sys
from typing import Any

from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.trees.column_checks import are_plainly_valid
from treegrpo_cli.trees.format import (
    COUNTS,
    MAX_F32,
    MAX_U32,
    NAMES,
    NODE_TYPES,
    SCHEMA,
    STATUS_CODES,
    UNREWARDED,
    Fields,
    inner_nodes,
    lie_within,
    shown,
    status_of,
)


def check_tree(tree: Any) -> None:
    """Raise UserError, without a place, where `tree` breaks the format."""
    if type(tree) is not dict:
        raise UserError(f"a tree is an object, got {shown(tree)}")
    _check_version(tree.get("schema"))
    _require(tree, "prompt_id", (str,), "the tree")
    _require(tree, "tree_id", (int,), "the tree")
    _require(tree, "nodes", (list,), "the tree")
    if not 0 <= tree["tree_id"] <= MAX_U32:
        raise UserError(f"tree_id is {tree['tree_id']}, expected 0 or more")
    for name in ("task", "meta", "scoring"):
        _check_type(tree, name, (dict,), "the tree")
    if not tree["nodes"]:
        raise UserError("the tree has no nodes")
    scoring = tree.get("scoring")
    plain = are_plainly_valid(tree["nodes"], scored=scoring is not None)
    if not plain:
        check_nodes(tree["nodes"])
    if scoring is not None:
        _check_scoring(scoring)
        _check_scored([] if plain else tree["nodes"])


def _check_version(schema: Any) -> None:
    if type(schema) is not str or not re.fullmatch(re.escape(SCHEMA) + r"(\.\d+)?", schema):
        raise UserError(f"schema is {shown(schema)}, expected {SCHEMA!r}")


def check_nodes(nodes: list[Any]) -> None:
    """Raise UserError that names the first node which breaks the format, and how."""
    for place, node in enumerate(nodes):
        if type(node) is not dict:
            raise UserError(f"node {place} is {shown(node)}, expected an object")
        _check_link(node, place)
    inner = inner_nodes(nodes)
    for place, node in enumerate(nodes):
        where = f"node {place}"
        for name in node:
            if name in NODE_TYPES:
                _check_type(node, name, NODE_TYPES[name], where)
        _check_outcome(node, where, place in inner)
        _check_tokens(node, where)
        if place:
            _check_round(node, nodes[node["parent"]], where)


def _check_link(node: Fields, place: int) -> None:
    where = f"node {place}"
    _require(node, "id", (int,), where)
    if node["id"] != place:
        raise UserError(f"{where} has id {node['id']}: ids are places in nodes, 0, 1, 2, ...")
    if "parent" not in node:
        raise UserError(f"{where} has no 'parent' (null on the root)")
    _check_type(node, "parent", (int,), where)
    parent = node["parent"]
    if (parent is None) != (place == 0):
        root = (
            "the root stands first and its parent is null" if place == 0 else "a second root: only node 0 has no parent"
        )
        raise UserError(f"{where}: {root}")
    if parent is not None and not 0 <= parent < place:
        raise UserError(f"{where} has parent {parent}: a parent stands before its child")


def _check_outcome(node: Fields, where: str, is_inner: bool) -> None:
    if "reward" not in node:
        raise UserError(f"{where} has no 'reward' (null where it is unscored)")
    _check_type(node, "reward", (int, float), where)
    status = status_of(node, is_inner)
    if status not in STATUS_CODES:
        raise UserError(f"{where} has status {shown(status)}; {nearest(status[:60], STATUS_CODES)}")
    if is_inner and status != "open":
        raise UserError(f"{where} has status {status!r} but children: an inner node is 'open'")
    if is_inner and node.get("kept") is False:
        raise UserError(f"{where} has kept=false but children: only a leaf is kept or not")
    if node["reward"] is None:
        return
    if where == "node 0" or is_inner:
        raise UserError(
            f"{where} is {'an inner node' if is_inner else 'the root'} and has a reward: only a leaf has one"
        )
    if status in UNREWARDED:
        raise UserError(f"{where} has a reward, but status {status!r}")
    if node.get("kept") is False:
        raise UserError(f"{where} has a reward, but kept=false")


def _check_tokens(node: Fields, where: str) -> None:
    for name in COUNTS:
        if not 0 <= (given := node.get(name) or 0) <= MAX_U32:
            expected = "0 or more" if given < 0 else f"at most {MAX_U32}"
            raise UserError(f"{where}: {name} is {shown(given)}, expected {expected}")
    token_ids = node.get("token_ids") or []
    if token_ids and (set(map(type, token_ids)) != {int} or not 0 <= min(token_ids) <= max(token_ids) <= MAX_U32):
        raise UserError(f"{where}: token_ids are integers from 0 to {MAX_U32}")
    num_sampled = _num_in_spans(node, "sampled", len(token_ids), where)
    _num_in_spans(node, "tool_call_spans", len(token_ids), where)
    if not lie_within(node.get("tool_call_spans") or [], node.get("sampled") or []):
        raise UserError(f"{where}: each span of tool_call_spans lies within one of sampled")
    if num_sampled and where == "node 0":
        raise UserError("node 0 is the prompt: none of its tokens is sampled")
    if node.get("logprobs") is None:
        return
    logprobs = node["logprobs"]
    if len(logprobs) != num_sampled:
        raise UserError(f"{where} has {len(logprobs)} logprobs for {num_sampled} sampled tokens")
    numbers = set(map(type, logprobs)) <= {int, float}
    if not numbers or not all(abs(logprob) <= MAX_F32 for logprob in logprobs):
        raise UserError(f"{where}: logprobs are finite numbers")


def _check_round(node: Fields, parent: Fields, where: str) -> None:
    given, before = node.get("round") or 0, parent.get("round") or 0
    if given < before:
        raise UserError(f"{where} has round {given}, but its parent {before}: a turn is drawn after its parent")


def _num_in_spans(node: Fields, name: str, num_tokens: int, where: str) -> int:
    before = num_in_spans = 0
    for span in node.get(name) or []:
        if type(span) is not list or [type(bound) for bound in span] != [int, int]:
            raise UserError(f"{where}: {name} is a list of [start, end) pairs of integers")
        start, end = span
        if not before <= start <= end <= num_tokens:
            raise UserError(f"{where}: span [{start}, {end}) of {name} does not fit between {before} and {num_tokens}")
        before, num_in_spans = end, num_in_spans + end - start
    return num_in_spans


def _check_scoring(scoring: Fields) -> None:
    """An estimator with its options, or the terms of a sum."""
    if "terms" not in scoring:
        _require(scoring, "estimator", (str,), "scoring")
        _require(scoring, "options", (dict,), "scoring")
        return
    _require(scoring, "terms", (list,), "scoring")
    if not scoring["terms"]:
        raise UserError("scoring: terms is empty")
    for place, term in enumerate(scoring["terms"]):
        where = f"scoring: term {place}"
        if type(term) is not dict:
            raise UserError(f"{where} is {shown(term)}, expected an object")
        _require(term, "estimator", (str,), where)
        _require(term, "weight", (int, float), where)
        _require(term, "options", (dict,), where)
        if "mask" in term:
            _require(term, "mask", (str,), where)


def _check_scored(nodes: list[Fields]) -> None:
    for place, node in enumerate(nodes):
        for name in ("depth", "num_leaves"):
            _require(node, name, (int,), f"the tree has a scoring, node {place}")
        for name in ("value", "advantage"):
            if name not in node:
                raise UserError(f"the tree has a scoring, but node {place} has no {name!r}")


def _require(fields: Fields, name: str, types: tuple[type, ...], where: str) -> None:
    if name not in fields:
        raise UserError(f"{where} has no {name!r}")
    if fields[name] is None:
        raise UserError(f"{where}: {name} is null, expected {NAMES[types[-1]]}")
    _check_type(fields, name, types, where)


def _check_type(fields: Fields, name: str, types: tuple[type, ...], where: str) -> None:
    value = fields.get(name)
    if value is None:
        return
    if type(value) not in types:
        raise UserError(f"{where}: {name} is {shown(value)}, expected {NAMES[types[-1]]}")
    if float in types and not abs(value) <= sys.float_info.max:
        raise UserError(f"{where}: {name} is {shown(value)}, expected a finite number")
