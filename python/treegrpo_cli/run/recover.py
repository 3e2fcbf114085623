"""Tree file that an earlier run left -> the same without damage, ready to be gone on with; nothing whole is lost.

Whole groups stay in the file. Whole trees of groups that are not complete go to the journal. Bytes that are no whole
tree go to a file of their own, which the log names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from treegrpo_cli.data.salvage import MAGIC, Found, find_lines, move_aside
from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.rollout.journal import Journal
from treegrpo_cli.run.origin import Origin
from treegrpo_cli.trees.format import SCHEMA
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.trees.tree_file import TreeRecord, TreeWriter
from treegrpo_cli.types import Limits

FIRST_BYTES = b'{"schema":"' + SCHEMA.encode()

Group = dict[int, tuple[TreeRecord, Found]]


@dataclass(slots=True)
class _State:
    """What stands in a file: prompts with all their trees, trees of other prompts, and places of what is neither."""

    done: set[str] = field(default_factory=set)
    loose: list[TreeRecord] = field(default_factory=list)
    damage: list[tuple[int, int]] = field(default_factory=list)
    num_lines: int = 0
    is_clean: bool = True


def recover(
    output: Path, journal: Journal, origin: Origin, num_trees: int, limits: Limits, stats: RolloutStats
) -> tuple[set[str], list[str]]:
    """Mend `output` where it needs it, start the journal, and return the prompts that are done and lines for the log.

    Raises UserError, before anything is changed, where trees come from elsewhere or the file is none that a
    rollout left.
    """
    for group in journal.trees.values():
        for record in group.values():
            origin.check(record)
    state = _State()
    if output.exists():
        for records in _whole_groups(output, num_trees, limits, state, origin):
            stats.add_group(records)
        _check_ours(output, journal, state)
    waiting = [record for record in state.loose if record.prompt_id not in state.done]
    for record in waiting:
        journal.trees.setdefault(record.prompt_id, {})[record.tree_id] = record
    for prompt_id in state.done:
        journal.forget(prompt_id)
    is_whole = state.is_clean and not state.loose and not state.damage
    if is_whole and output.exists():
        _sync(output)
    aside = move_aside(output, state.damage)
    journal.start()
    if not is_whole:
        _rewrite(output, num_trees, limits)
    said = [(journal.path, journal.moved_aside), (output, aside)]
    num_kept = stats.num_trees + sum(map(len, journal.trees.values()))
    return state.done, [
        f"{path} was damaged: all {num_kept} whole trees are kept, {to.stat().st_size} bytes moved to {to}"
        for path, to in said
        if to is not None
    ]


def _whole_groups(
    output: Path, num_trees: int, limits: Limits, state: _State, origin: Origin | None = None
) -> Iterator[list[TreeRecord]]:
    """Yield the groups of `num_trees` trees, by tree_id, each prompt once, and note in `state` what else there is."""
    group: Group = {}
    prompt_id = ""
    for found in find_lines(output, limits):
        state.is_clean &= found.is_clean
        state.num_lines += found.line is not None
        record = _tree(found, output, limits)
        if record is None or record.tree_id >= num_trees:
            state.damage.append((found.start, found.end))
            continue
        if origin is not None:
            origin.check(record)
        if record.prompt_id != prompt_id or record.tree_id in group:
            yield from _ended(group, num_trees, state)
            group, prompt_id = {}, record.prompt_id
        group[record.tree_id] = record, found
    yield from _ended(group, num_trees, state)


def _tree(found: Found, output: Path, limits: Limits) -> TreeRecord | None:
    try:
        return None if found.line is None else TreeRecord.parse(found.line, output, limits=limits)
    except UserError:
        return None


def _ended(group: Group, num_trees: int, state: _State) -> Iterator[list[TreeRecord]]:
    if not group:
        return
    records = [record for _, (record, _) in sorted(group.items())]
    prompt_id = records[0].prompt_id
    if prompt_id in state.done:  # a second time: what is there already stays
        state.damage += [(found.start, found.end) for _, found in group.values()]
    elif len(group) == num_trees:
        state.done.add(prompt_id)
        yield records
    else:
        state.loose += records


def _check_ours(output: Path, journal: Journal, state: _State) -> None:
    """Refuse a file that no killed rollout can have left: it has lines and no tree, or begins like none."""
    if state.done or state.loose or journal.trees:
        return
    with open(output, "rb") as file:
        begin = file.read(len(FIRST_BYTES))
    ours = MAGIC if output.suffix == ".zst" else FIRST_BYTES
    complete = state.num_lines - (not state.is_clean and output.suffix != ".zst")
    if complete > 0 or not (begin.startswith(ours) or ours.startswith(begin)):
        raise FileError(output, "is not a tree file that a rollout wrote; choose another --output")


def _rewrite(output: Path, num_trees: int, limits: Limits) -> None:
    partial = output.with_name(f".partial.{output.name}")
    try:
        with TreeWriter(partial) as writer:
            for records in _whole_groups(output, num_trees, limits, _State()):
                writer.write_group(records)
        partial.replace(output)
    except OSError as error:
        raise FileError(output, said(error)) from None


def _sync(output: Path) -> None:
    """What the journal is about to forget must be on the disk."""
    with open(output, "rb") as file:
        os.fsync(file.fileno())
