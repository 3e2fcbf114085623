"""A probe's figures -> tables for a terminal and in Markdown, numbers in JSON, a picture.

results.json        every figure with its interval, and how it stands to the first arm's
report.md           the tables
probe.png, .svg     quality for what each arm spends, and the cosine
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.table import Table

from treegrpo_cli.compare.probe_arms import REFERENCE
from treegrpo_cli.compare.probe_statistics import COSTS, ArmFigures, Interval
from treegrpo_cli.compare.tables import Rows, drawn, in_markdown
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, said

if TYPE_CHECKING:
    from treegrpo_cli.compare.probe import Probe

UNKNOWN = "–"
SPENT = {"token": "a token", "tool_call": "a tool call", "second": "a second"}
NOTES = (
    "Quality is the signal of a step's gradient over its variance, for what a step generates, calls or takes: how much "
    "sooner the noise averages out. It says nothing of a bias; the cosine does.",
    "Values are relative to the first arm, cosines and shares as they are; 95% bootstrap intervals over prompts; `*` "
    "marks an interval that leaves out 1.",
)


def write_probe(probe: Probe, folder: Path) -> list[Path]:
    """Write numbers, tables and picture; return the files. Raises FileError."""
    from treegrpo_cli.compare.probe_plot import draw_probe

    try:
        write_whole(folder / "results.json", orjson.dumps(in_json(probe), option=orjson.OPT_INDENT_2) + b"\n")
        write_whole(folder / "report.md", markdown(probe).encode())
        pictures = draw_probe(probe, folder)
    except OSError as error:
        raise FileError(error.filename or folder, said(error)) from None
    return [folder / "report.md", folder / "results.json", *pictures]


def tables(probe: Probe) -> list[Table]:
    """Return the tables for a terminal."""
    return [drawn(rows) for rows in all_rows(probe)]


def markdown(probe: Probe) -> str:
    """Return the whole report."""
    heading = f"# Probe of {', '.join(probe.figures)}"
    parts = [heading, describe(probe), *NOTES, "![probe](probe.png)", *map(in_markdown, all_rows(probe))]
    return "\n\n".join(parts) + "\n"


def describe(probe: Probe) -> str:
    """Return what was played, a sentence."""
    against = "unbiased chains" if probe.against == REFERENCE else f"{probe.against}'s own mean gradient"
    return (
        f"{probe.num_prompts} prompts, each {probe.num_repeats} times under every arm, at one policy; "
        f"cosines are with {against}."
    )


def in_json(probe: Probe) -> dict[str, Any]:
    """Return all figures as JSON has them: null where nothing is known, and where an interval has no bound."""
    return {
        "num_prompts": probe.num_prompts,
        "num_repeats": probe.num_repeats,
        "cosine_with": probe.against,
        "arms": [
            {
                "name": name,
                "figures": {key: _in_json(found) for key, found in arm.absolute.items()},
                "against_first": {key: _in_json(found) for key, found in arm.relative.items()},
            }
            for name, arm in probe.figures.items()
        ],
    }


def all_rows(probe: Probe) -> list[Rows]:
    """The tables: quality of the sum over prompts, prompt by prompt, and what a step is."""
    return [
        _quality(probe, "Quality of a step's gradient", "", shares=True),
        _quality(probe, "The same, prompt by prompt", "prompt_", shares=False),
        _steps(probe),
    ]


def _quality(probe: Probe, title: str, prefix: str, *, shares: bool) -> Rows:
    heads = ["arm", *SPENT.values(), "cosine", *(("prompts with signal", "nodes with signal") if shares else ())]
    cells = []
    for place, (name, arm) in enumerate(probe.figures.items()):
        row = [name, *(_ratio(arm.relative[f"{prefix}quality_per_{cost}"], first=place == 0) for cost in COSTS)]
        row.append(_plain(arm.absolute[f"{prefix}cosine"]))
        row += [_share(arm, key, first=place == 0) for key in ("share_prompts", "share_nodes")] if shares else []
        cells.append(row)
    return Rows(title, heads, cells)


def _steps(probe: Probe) -> Rows:
    heads = ["arm", "tokens", "tool calls", "seconds", "signal / variance", "prompt by prompt"]
    cells = []
    for name, arm in probe.figures.items():
        found = {key: figure.value for key, figure in arm.absolute.items()}
        ratios = [found[f"{prefix}quality_per_token"] * found["tokens"] for prefix in ("", "prompt_")]
        cells.append(
            [name, *(_amount(found[key]) for key in ("tokens", "tool_calls", "seconds")), *map(_amount, ratios)]
        )
    return Rows(f"A step of {probe.num_prompts} prompts, on average", heads, cells)


def _ratio(found: Interval, *, first: bool) -> str:
    if first:
        return "1"
    mark = " *" if found.low > 1 or found.high < 1 else ""
    return f"{_plain(found, 2)}{mark}"


def _share(arm: ArmFigures, key: str, *, first: bool) -> str:
    share = f"{arm.absolute[key].value:.2f}" if math.isfinite(arm.absolute[key].value) else UNKNOWN
    return share if first else f"{share} ×{_ratio(arm.relative[key], first=False)}"


def _plain(found: Interval, digits: int = 3) -> str:
    if math.isnan(found.value):
        return UNKNOWN
    return f"{_number(found.value, digits)} [{_number(found.low, digits)}, {_number(found.high, digits)}]"


def _number(number: float, digits: int) -> str:
    return f"{number:.{digits}f}" if math.isfinite(number) else "∞" if number > 0 else "-∞"


def _amount(number: float) -> str:
    return UNKNOWN if math.isnan(number) else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _in_json(found: Interval) -> dict[str, float | None]:
    ends: Sequence[tuple[str, float]] = (("value", found.value), ("low", found.low), ("high", found.high))
    return {name: number if math.isfinite(number) else None for name, number in ends}
