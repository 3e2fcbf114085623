"""Groups of trees -> counts and depths: what `treegrpo inspect-tree --summary` writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import orjson

from treegrpo_cli.cli.show.terminal import Screen, show
from treegrpo_cli.trees.summary import Summary
from treegrpo_cli.trees.summary_lines import lines_of_summary
from treegrpo_cli.trees.tree_record import TreeRecord


def write_summary(groups: Iterator[Sequence[TreeRecord]], output_format: str, screen: Screen) -> None:
    """Count all trees, then print the counts for people, or as one object of JSON."""
    summary = Summary()
    for group in groups:
        summary.add_group(group)
    if output_format == "json":
        sys.stdout.buffer.write(orjson.dumps(summary.to_json()) + b"\n")
        sys.stdout.buffer.flush()
    else:
        show(lambda width: lines_of_summary(summary, width), screen)
