"""Tree files -> drawn trees, scored lines or a summary: what `treegrpo inspect-tree` does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console
from rich.text import Text

from treegrpo_cli.cli.pairs import write_pairs
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.terms import parse_term
from treegrpo_cli.trees.draw import draw_tree
from treegrpo_cli.trees.explain import explain
from treegrpo_cli.trees.scoring import keep_or_score, score_group
from treegrpo_cli.trees.sources import tree_files
from treegrpo_cli.trees.summary import Summary
from treegrpo_cli.trees.tree_file import read_groups
from treegrpo_cli.trees.tree_record import TreeRecord

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm

MAX_NESTED_DEPTH = 200
PLAIN_WIDTH = 80
MIN_WIDTH = 60


def inspect(
    paths: Sequence[str | Path],
    *,
    step: int | None = None,
    estimator: str | Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    prompt_id: str | None = None,
    tree_id: int | None = None,
    limit: int | None = None,
    output_format: str = "tree",
    nested: bool = False,
    summary: bool = False,
    full: bool = False,
    node: int | None = None,
) -> None:
    """Write the chosen trees of files to standard output, group by group; or `explain` one `node` of one tree.

    Without `estimator` the scoring of the file is kept, and `tree-grpo` computed where there is none. Several are the
    terms of a sum, `[weight*]name[,option=value ...]` each.
    Trees are chosen after scoring, the first `limit` of them. Raises UserError for anything wrong with
    files or arguments.
    """
    asked = [estimator] if isinstance(estimator, str) else list(estimator or ())
    _check_arguments(asked, options, output_format, nested=nested, summary=summary, full=full, node=node)
    terms = [parse_term(text) for text in asked]
    if output_format == "pairs":
        raw = _chosen(tree_files(paths, step), None, Wanted(prompt_id, tree_id))
        write_pairs(_first(_wanted(raw), limit), dict(options or {}))
        return
    if options:
        terms[0]["options"].update(options)
    files = tree_files(paths, step)
    chosen = _chosen(files, terms, Wanted(prompt_id, tree_id))
    if node is not None:
        _print(_console(), map(Text, _explained(chosen, node)))
        return
    groups = _first(_wanted(chosen), limit)
    if summary:
        _write_summary(groups, output_format)
    elif output_format == "json":
        for group in groups:
            for record in group:
                sys.stdout.buffer.write((nested_json(record) if nested else record.to_json()) + b"\n")
        sys.stdout.buffer.flush()
    else:
        _draw(groups, full)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which trees are shown: those of a prompt, those of a number, or all."""

    prompt_id: str | None
    tree_id: int | None

    def __str__(self) -> str:
        said = [f"prompt_id {self.prompt_id!r}"] if self.prompt_id is not None else []
        return " and ".join(said + ([f"tree_id {self.tree_id}"] if self.tree_id is not None else []))


def _check_arguments(
    estimators: Sequence[str],
    options: Mapping[str, Any] | None,
    output_format: str,
    *,
    nested: bool,
    summary: bool,
    full: bool,
    node: int | None,
) -> None:
    if output_format == "pairs":
        if estimators or nested or summary or full or node is not None:
            raise UserError("--format pairs goes with --option, and with what chooses trees: values are their means")
        return
    if options and len(estimators) != 1:
        several = ": with several, write options behind their names, as in parent,roots=tree" if estimators else ""
        raise UserError(f"--option needs {'one ' if estimators else ''}--estimator{several}")
    if nested and (summary or output_format != "json"):
        raise UserError("--nested needs --format json and cannot be combined with --summary")
    if (full or node is not None) and (summary or output_format != "tree"):
        raise UserError(f"--{'full' if full else 'explain'} cannot be combined with --format json or --summary")


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
    files: Sequence[str], terms: Sequence[ScoreTerm] | None, wanted: Wanted
) -> Iterator[tuple[Sequence[TreeRecord], set[int]]]:
    """Yield each prompt's trees, scored unless `terms` is None, and the tree_ids of those that are wanted."""
    found = False
    for file in files:
        for group in read_groups(file):
            if wanted.prompt_id not in (None, group[0].prompt_id):
                continue
            ids = {record.tree_id for record in group if wanted.tree_id in (None, record.tree_id)}
            if ids:
                found = True
                yield group if terms is None else _scored(group, terms), ids
    if not found:
        where = files[0] if len(files) == 1 else f"{files[0]} … {files[-1]}"
        raise FileError(where, f"no tree with {wanted}")


def _scored(group: Sequence[TreeRecord], terms: Sequence[ScoreTerm]) -> list[TreeRecord]:
    return score_group(group, terms, in_place=True) if terms else keep_or_score(group, in_place=True)


def _wanted(chosen: Iterator[tuple[Sequence[TreeRecord], set[int]]]) -> Iterator[Sequence[TreeRecord]]:
    return ([record for record in group if record.tree_id in ids] for group, ids in chosen)


def _explained(chosen: Iterator[tuple[Sequence[TreeRecord], set[int]]], node: int) -> Iterator[str]:
    """Lines on a node of the one tree that was chosen."""
    group, ids = next(chosen)
    if len(ids) > 1 or next(chosen, None) is not None:
        raise UserError("--explain needs one tree: choose it by --prompt-id, --tree-id and --step")
    [place] = [place for place, record in enumerate(group) if record.tree_id in ids]
    return explain(group, place, node)


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


def _draw(groups: Iterator[Sequence[TreeRecord]], full: bool) -> None:
    console = _console()
    between = False
    for group in groups:
        for record in group:
            if between:
                _print(console, iter([Text("")]))
            _print(console, draw_tree(record, console.width, full=full))
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
