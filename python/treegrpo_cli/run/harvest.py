"""Trees that ended -> the journal, where they wait for the last of their prompt, and from there to the tree file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.rollout.grove import trees_wait
from treegrpo_cli.rollout.journal import Journal
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.selection import load_rule
from treegrpo_cli.run.origin import Origin
from treegrpo_cli.run.recover import recover
from treegrpo_cli.trees.scoring import score_group
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.trees.tree_file import TreeWriter

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.rollout.collect import TreeId
    from treegrpo_cli.rollout.tree import Tree
    from treegrpo_cli.types import Task


class Harvest:
    """A rollout's output and the journal beside it; `stats` are of all whole groups, those of an earlier run too."""

    def __init__(self, config: Config, output: Path, *, resume: bool) -> None:
        self._config, self._output, self._resume = config, output, resume
        self._journal = Journal(output, resume=resume, limits=config.limits.resolved)
        self.stats = RolloutStats()

    def recover(self, tasks: Sequence[Task]) -> tuple[set[str], list[str]]:
        """Mend what an earlier run left, and return the prompts that are done and lines for the log."""
        config, origin = self._config, Origin(self._config, tasks, self._output)
        num_trees, limits = config.rollout.num_trees, config.limits.resolved
        done, mended = recover(self._output, self._journal, origin, num_trees, limits, self.stats)
        if trees_wait(config, load_rule(config)):  # a tree without the others of its prompt cannot be gone on from
            for prompt_id in list(self._journal.trees):
                self._journal.forget(prompt_id)
        return done, mended

    def open_writer(self) -> TreeWriter:
        """Open the tree file; closing it is the caller's."""
        self._writer = TreeWriter(self._output, append=self._resume)
        return self._writer

    def waiting(self) -> set[TreeId]:
        """The trees that an earlier run has grown of prompts that are not done."""
        return {(prompt_id, tree_id) for prompt_id, trees in self._journal.trees.items() for tree_id in trees}

    def keep(self, tree: Tree) -> None:
        """Take a tree that has ended."""
        self._journal.add(tree_record(tree))

    def drop(self, prompt_id: str) -> None:
        """Forget the trees of a prompt that failed."""
        self._journal.forget(prompt_id)

    def write(self, prompt_id: str) -> None:
        """Score a prompt's trees and write them."""
        advantage = self._config.advantage
        group = score_group(self._journal.group(prompt_id), advantage.score_terms, timeout_s=advantage.timeout_s)
        self._writer.write_group(group)
        self._journal.forget(prompt_id)
        if self._journal.is_stale:
            self._writer.sync()
            self._journal.compact()
        self.stats.add_group(group)

    def close(self) -> None:
        """Remove a journal where nothing waits, and an output that a run which could not start left empty."""
        self._journal.close(complete=not self._journal.trees)
        if not self._journal.trees and self._output.is_file() and self._output.stat().st_size == 0:
            self._output.unlink()
