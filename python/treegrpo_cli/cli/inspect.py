"""Tree files -> drawn trees, scored lines or a summary: what `treegrpo inspect-tree` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treegrpo_cli.cli.chosen import Wanted, choose, first_trees, wanted_trees
from treegrpo_cli.cli.show.as_json import write_json
from treegrpo_cli.cli.show.difference import print_difference
from treegrpo_cli.cli.show.drawing import draw
from treegrpo_cli.cli.show.explanation import print_explanation
from treegrpo_cli.cli.show.page import write_page
from treegrpo_cli.cli.show.pairs import write_pairs
from treegrpo_cli.cli.show.summary import write_summary
from treegrpo_cli.cli.show.terminal import Screen
from treegrpo_cli.errors import UserError
from treegrpo_cli.terms import parse_term
from treegrpo_cli.trees.sources import tree_files


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
    html: Path | None = None,
    tokenizer: Path | None = None,
    diff: tuple[int, int] | None = None,
    screen: Screen | None = None,
) -> None:
    """Write the chosen trees of files to standard output, group by group; or `explain` one `node` of one tree.

    Or show how the paths to the two nodes of `diff`, of one tree, differ.

    Or write them to one `html` page, with the texts of tokens by a `tokenizer`.

    Without `estimator` the scoring of the file is kept, and `tree-grpo` computed where there is none. Several are the
    terms of a sum, `[weight*]name[,option=value ...]` each.
    Trees are chosen after scoring, the first `limit` of them. Raises UserError for anything wrong with
    files or arguments.
    """
    asked = [estimator] if isinstance(estimator, str) else list(estimator or ())
    _check_arguments(asked, options, output_format, nested=nested, summary=summary, full=full, node=node)
    if diff is not None and (nested or summary or full or node is not None or output_format != "tree"):
        raise UserError("--diff goes with what chooses and scores one tree, and no other way of showing it")
    screen = screen or Screen()
    terms = [parse_term(text) for text in asked]
    if options and output_format != "pairs":
        terms[0]["options"].update(options)
    files = tree_files(paths, step)
    chosen = choose(files, None if output_format == "pairs" else terms, Wanted(prompt_id, tree_id))
    if node is not None:
        print_explanation(chosen, node, screen)
        return
    if diff is not None:
        print_difference(chosen, *diff, screen)
        return
    if html is not None:
        write_page(chosen, html, paths, tokenizer=tokenizer, limit=limit, together=len(files) > 1)
        return
    groups = first_trees(wanted_trees(chosen), limit)
    if output_format == "pairs":
        write_pairs(groups, dict(options or {}))
    elif summary:
        write_summary(groups, output_format, screen)
    elif output_format == "json":
        write_json(groups, nested=nested)
    else:
        draw(groups, screen, full=full)


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
