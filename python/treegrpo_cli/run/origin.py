"""Tree + settings and rows of today -> whether it may stand beside trees that are grown now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.config import Config
from treegrpo_cli.config.values import flat
from treegrpo_cli.data.tasks import row_digest
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.records import config_digest, relevant_settings
from treegrpo_cli.types import Task

if TYPE_CHECKING:
    from treegrpo_cli.trees.tree_file import TreeRecord

MAX_NAMED = 3


class Origin:
    """What trees of this rollout come from: its settings, and the rows of its data."""

    def __init__(self, config: Config, tasks: Sequence[Task], output: Path) -> None:
        self._config, self._tasks, self._output = config, tasks, output
        self._digest = config_digest(config)
        self._row_digests: dict[int, str] = {}

    def check(self, record: TreeRecord) -> None:
        """Raise UserError, naming what differs, where a tree of `output` comes from other settings or another row."""
        meta = record.meta or {}
        if meta.get("config_digest") != self._digest:
            raise UserError(
                f"{self._output}: holds trees grown with other settings{self._named(meta.get('settings'))}; "
                "use the same settings, or choose another --output"
            )
        number, digest = meta.get("number"), meta.get("row_digest")
        if not isinstance(number, int) or digest is None:
            return
        if number < len(self._tasks) and self._row_digest(number) != digest:
            raise self._changed(number, "differs from what it was")
        if number >= len(self._tasks) and not 0 < self._config.data.limit <= number:
            raise self._changed(number, "is missing, but was there")

    def _changed(self, number: int, what: str) -> UserError:
        return UserError(
            f"data.train: row {number + 1} of {self._config.data.train} {what} when {self._output} was begun; "
            "rows may be added at the end, but not changed; choose another --output"
        )

    def _row_digest(self, number: int) -> str:
        if number not in self._row_digests:
            self._row_digests[number] = row_digest(self._tasks[number].columns)
        return self._row_digests[number]

    def _named(self, settings: Any) -> str:
        """`: seed was 0 and is 5`, the first few of them; nothing where the tree does not say."""
        if not isinstance(settings, dict):
            return ""
        default = flat(relevant_settings(Config(), all_of_them=True))
        before, now = default | flat(settings), default | flat(relevant_settings(self._config))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        lines = [f"{key} was {before.get(key)!r:.60} and is {now.get(key)!r:.60}" for key in changed[:MAX_NAMED]]
        more = [f"{len(changed) - MAX_NAMED} more"] if len(changed) > MAX_NAMED else []
        return f": {', '.join([*lines, *more])}" if changed else ""
