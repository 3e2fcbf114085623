"""The workers of a run: started together, and started again where one ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import weakref
from collections.abc import Iterable
from typing import Any

from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.errors import FailedRunError, UserError, said
from treegrpo_cli.types import Limits
from treegrpo_cli.workers.plain import NotPlainError, to_bytes
from treegrpo_cli.workers.worker import DiedError, EvictedError, Worker

FREE_ENDS, ENDS_A_TREE = 20, 0.1
"""So many workers may end, and one more for every tenth tree, before the run is given up."""

logger = logging.getLogger(__name__)


class Pool:
    """`environment.workers` processes, each with the same world.

    Raises UserError where the world cannot be opened, or an option cannot be sent.
    """

    def __init__(self, config: EnvironmentConfig, limits: Limits) -> None:
        for name, value in config.options.items():
            _check_plain(f"environment.options.{name}", value)
        self._opening = {
            "environment": config.model_dump(),
            "limits": limits,
            "level": logging.getLogger().getEffectiveLevel(),
            "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        }
        self._folder, self._patience_s = os.getcwd(), config.tool_timeout_s
        self._told: list[dict[str, Any]] = []
        self._logged: set[tuple[str, int, str]] = set()
        self._numbers = itertools.count(1)
        self.num_trees = self.num_ends = 0
        """So far: trees that were planted, workers that ended before their time."""
        self._refusal, self._is_open = "", False
        self.workers: list[Worker] = []
        weakref.finalize(self, _kill, self.workers)
        try:
            for _ in range(config.workers):
                self.workers.append(self._start())
            for worker in self.workers:
                worker.wait()
        except BaseException:
            self.kill()
            raise
        self._is_open = True
        self.facts: dict[str, Any] = self.workers[0].facts or {}

    def number(self) -> int:
        """The next request's."""
        return next(self._numbers)

    def tell(self, message: dict[str, Any]) -> None:
        """Send what each worker must know, those too that are started later."""
        self._told.append(message)
        for worker in self.workers:
            worker.tell(message)

    def home(self) -> Worker:
        """Where a tree is best planted: with the fewest trees, and nothing given up that still runs there."""
        self.check()
        return min(self.workers, key=lambda worker: (not worker.is_ready, worker.is_doubtful, worker.num_trees))

    def check(self) -> None:
        """Raise FailedRunError where too many workers have ended."""
        if self._refusal:
            raise FailedRunError(self._refusal)

    async def ask_all(self, do: str, **given: Any) -> None:
        """Ask every worker the same."""
        await asyncio.gather(*(worker.ask(self.number(), do, **given) for worker in self.workers))

    async def close(self) -> None:
        """Close all worlds and end all processes, whatever they do."""
        try:
            await asyncio.gather(*(self._close(worker) for worker in self.workers))
        finally:
            self.kill()

    def kill(self) -> None:
        """End all processes at once."""
        _kill(self.workers)

    async def _close(self, worker: Worker) -> None:
        try:
            await worker.close(self.number())
        except (DiedError, EvictedError) as error:
            logger.warning("environment: a worker ended before its world was closed (%s)", error)

    def _start(self) -> Worker:
        pool = weakref.ref(self)

        def ended(worker: Worker, why: str) -> None:
            if (this := pool()) is not None:
                this._replace(worker, why)

        def logged(name: str, level: int, text: str) -> None:
            if (this := pool()) is not None:
                this._log(name, level, text)

        worker = Worker(self._opening, self._folder, self._patience_s, ended, logged)
        for message in self._told:
            worker.tell(message)
        return worker

    def _replace(self, worker: Worker, why: str) -> None:
        if not self._is_open:
            return
        self.num_ends += 1
        why = str(worker.failure or why)
        if self.num_ends > FREE_ENDS + ENDS_A_TREE * self.num_trees:
            self._refusal = f"environment: {self.num_ends} workers ended before their time; the last: {why}"
        logger.warning(
            "environment: worker %d ended (%s) and is started again; its %d trees go on where their turns, "
            "played again, give the same results (ended so far: %d)",
            self.workers.index(worker) + 1,
            why,
            worker.num_trees,
            self.num_ends,
        )
        try:
            self.workers[self.workers.index(worker)] = self._start()
        except OSError as error:  # no process or descriptor is left: nobody would ask the one that is gone
            self._refusal = f"environment: a worker cannot be started again: {said(error)}"

    def _log(self, name: str, level: int, text: str) -> None:
        """Say what a worker logged; what each of them has to say of the run, once."""
        if name.startswith("treegrpo_cli"):
            if (name, level, text) in self._logged:
                return
            self._logged.add((name, level, text))
        logging.getLogger(name).log(level, "%s", text)


def _check_plain(key: str, value: Any) -> None:
    try:
        to_bytes(value)
    except NotPlainError as error:
        raise UserError(f"{key}: with environment.workers, an option must be plain data, got {error}") from None


def _kill(workers: Iterable[Worker]) -> None:
    for worker in workers:
        worker.is_closing = True
        worker.kill("it is not needed any more")
