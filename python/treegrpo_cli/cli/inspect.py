"""Tree file -> drawn trees, scored lines or a summary: what `treegrpo inspect-tree` does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.trees.draw import draw_tree
from treegrpo_cli.trees.scoring import keep_or_score, score_group
from treegrpo_cli.trees.summary import Summary
from treegrpo_cli.trees.tree_file import read_groups
from treegrpo_cli.trees.tree_record import TreeRecord

MAX_NESTED_DEPTH = 200
PLAIN_WIDTH = 80
MIN_WIDTH = 60


def inspect(
    path: str | Path,
    *,
    estimator: str | None = None,
    options: Mapping[str, Any] | None = None,
    prompt_id: str | None = None,
    tree_id: int | None = None,
    limit: int | None = None,
    output_format: str = "tree",
    nested: bool = False,
    summary: bool = False,
) -> None:
    """Write the chosen trees of a file to standard output, group by group.

    Without `estimator` the scoring of the file is kept, and `tree-grpo` computed where there is none.
    Trees are chosen after scoring, the first `limit` of them. Raises UserError for anything wrong with
    file or arguments.
    """
    if options and estimator is None:
        raise UserError("--option needs --estimator: options are an estimator's")
    if nested and (summary or output_format != "json"):
        raise UserError("--nested needs --format json, and goes without --summary")
    groups = _first(_chosen(path, estimator, options or {}, prompt_id, tree_id), limit)
    if summary:
        _write_summary(groups, output_format)
    elif output_format == "json":
        for group in groups:
            for record in group:
                sys.stdout.buffer.write((nested_json(record) if nested else record.to_json()) + b"\n")
        sys.stdout.buffer.flush()
    else:
        _draw(groups)


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


def _chosen(
    path: str | Path,
    estimator: str | None,
    options: Mapping[str, Any],
    prompt_id: str | None,
    tree_id: int | None,
) -> Iterator[Sequence[TreeRecord]]:
    found = False
    for group in read_groups(path):
        if prompt_id is not None and group[0].prompt_id != prompt_id:
            continue
        scored = keep_or_score(group) if estimator is None else score_group(group, estimator, options)
        chosen = [record for record in scored if tree_id is None or record.tree_id == tree_id]
        found = found or bool(chosen)
        if chosen:
            yield chosen
    if not found:
        wanted = [f"prompt_id {prompt_id!r}"] if prompt_id is not None else []
        wanted += [f"tree_id {tree_id}"] if tree_id is not None else []
        raise FileError(path, f"no tree with {' and '.join(wanted)}")


def _first(groups: Iterator[Sequence[TreeRecord]], limit: int | None) -> Iterator[Sequence[TreeRecord]]:
    """The first `limit` trees, in their groups; what is behind them is not read."""
    num_left = sys.maxsize if limit is None else limit
    while num_left > 0 and (group := next(groups, None)):
        yield group[:num_left]
        num_left -= len(group)


def _write_summary(groups: Iterator[Sequence[TreeRecord]], output_format: str) -> None:
    summary = Summary()
    for group in groups:
        summary.add_group(group)
    if output_format == "json":
        sys.stdout.buffer.write(orjson.dumps(summary.to_json()) + b"\n")
        sys.stdout.buffer.flush()
    else:
        _print(_console(), summary.lines())


def _draw(groups: Iterator[Sequence[TreeRecord]]) -> None:
    console = _console()
    between = False
    for group in groups:
        for record in group:
            if between:
                _print(console, iter([Text("")]))
            _print(console, draw_tree(record, console.width))
            between = True


def _console() -> Console:
    """A console as wide as the terminal, or 80 columns where there is none; `COLUMNS` says otherwise."""
    given = os.environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() and int(given) else None if sys.stdout.isatty() else PLAIN_WIDTH
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign shows another
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    return Console(width=max(console.width, MIN_WIDTH), highlight=False, markup=False, emoji=False)


def _print(console: Console, lines: Iterator[Text]) -> None:
    for line in lines:
        line.rstrip()
        if console.color_system is None:
            console.file.write(f"{line.plain}\n")
        else:
            console.print(line, no_wrap=True, crop=False, overflow="ignore")
