"""`treegrpo inspect-tree`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from treegrpo_cli.errors import UserError


class Format(StrEnum):
    """How `inspect-tree` shows trees."""

    TREE = "tree"
    JSON = "json"
    PAIRS = "pairs"


class Color(StrEnum):
    """When lines are coloured."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def inspect_tree(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="Tree files, .jsonl or .jsonl.zst, or a run's directory; - is standard input."
        ),
    ],
    step: Annotated[int | None, typer.Option(help="Show only the trees of this step of a run.")] = None,
    output_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="A drawing, scored trees as JSON Lines, or pairs of siblings, chosen and rejected, for TRL's DPO "
            "trainer (--option min_gap, which, value, roots, tokenizer).  [default: tree]",
            show_default=False,
        ),
    ] = None,
    nested: Annotated[bool, typer.Option("--nested", help="Write JSON with children inside their parents.")] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print counts, and how rewards differ at each depth.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Draw whole turns and observations.")] = False,
    explain: Annotated[
        int | None,
        typer.Option(
            metavar="NODE", help="Show how the advantage of this node came about, term by term; --full shows node ids."
        ),
    ] = None,
    diff: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="NODE NODE",
            help="Show two nodes of one tree, leaves or siblings, side by side from where they part; "
            "--full shows node ids.",
            show_default=False,
        ),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[WEIGHT*]NAME[,OPTION=VALUE...]",
            help="Score again with this one, or the sum of several; see treegrpo estimators.  "
            "[default: the file's scoring, else tree-grpo]",
            show_default=False,
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the estimator, or of pairs, name=value; may be repeated.")
    ] = None,
    prompt_id: Annotated[str | None, typer.Option(help="Show only the trees of this prompt.")] = None,
    tree_id: Annotated[int | None, typer.Option(help="Show only trees with this tree_id.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show this many trees, then stop.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write a page to look at the trees in a browser, NAME.html; under any other name a folder of pages "
            "with an index, for trees that are too many for one.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="--html: write tokens as this folder's tokenizer.json does.  [default: the model's that grew them]",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=20,
            max=999,
            help="Draw this many columns wide; narrow drawings leave out depth, then reward, then value.  "
            "[default: COLUMNS, else the terminal's, else 80]",
            show_default=False,
        ),
    ] = None,
    color: Annotated[
        Color,
        typer.Option(help="auto colours a terminal, and heeds NO_COLOR, FORCE_COLOR and CLICOLOR_FORCE."),
    ] = Color.AUTO,
    no_color: Annotated[bool, typer.Option("--no-color", help="The same as --color never.")] = False,
    no_pager: Annotated[
        bool,
        typer.Option(
            "--no-pager", help="Print all at once; else PAGER (less -FRX) shows what is longer than the terminal."
        ),
    ] = False,
) -> None:
    """Draw trees with rewards, values and advantages, write them scored as JSON, or make a page for a browser."""
    from treegrpo_cli.cli.inspect import inspect
    from treegrpo_cli.cli.show.page import check_page
    from treegrpo_cli.cli.show.terminal import Screen

    others = {
        "--format": output_format is not None,
        "--nested": nested,
        "--summary": summary,
        "--full": full,
        "--explain": explain is not None,
        "--diff": diff is not None,
        "--width": width is not None,
    }
    check_page(html, tokenizer, others, files)
    if no_color and color is Color.ALWAYS:
        raise UserError("--no-color and --color always contradict each other")
    inspect(
        files,
        step=step,
        estimator=estimator,
        options=_pairs(option or []),
        prompt_id=prompt_id,
        tree_id=tree_id,
        limit=limit,
        output_format=(output_format or (Format.JSON if nested else Format.TREE)).value,
        nested=nested,
        summary=summary,
        full=full,
        node=explain,
        diff=diff,
        html=html,
        tokenizer=tokenizer,
        screen=Screen(width, (Color.NEVER if no_color else color).value, not no_pager),
    )


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise UserError(f"--option {name!r}: expected name=value")
    return {name: value for name, _, value in pairs}
