"""A replica that is gone -> the same one, back with the current weights, or given up."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Thread

from treegrpo_cli.errors import said
from treegrpo_cli.samplers.replicas import Replica, ReplicaGoneError, Update

CLOSE_S = 5.0
"""Seconds that closing waits for a replica that is on its way back."""


class Seat:
    """A replica's place among the others: whether it serves, and its way back where it does not.

    The way back runs in a thread of its own, so that it goes on while the driver trains. `sending` is held while
    weights are on their way: a replica never joins in the middle of an update. `update` is the newest one.
    """

    def __init__(
        self, replica: Replica, sending: Lock, update: Callable[[], Update | None], say: Callable[[str], None]
    ) -> None:
        self.replica = replica
        self.is_live, self.is_lost = True, False
        self.num_returns, self.reason = 0, ""
        self._sending, self._newest, self._say = sending, update, say
        self._leaving = Lock()
        self._waits_for_update = self._is_closed = False
        self._thread: Thread | None = None

    def leave(self, spell: int, reason: str) -> bool:
        """Go out of service, and begin to come back; False where it is out, or has been back since return `spell`."""
        with self._leaving:
            if not self.is_live or spell != self.num_returns or self._is_closed:
                return False
            self.is_live, self.reason = False, reason
        self._say(f"{self.replica.name} is gone ({reason}): its turns are sampled again elsewhere")
        self._begin_to_come_back()
        return True

    def catch_up(self, update: Update) -> None:
        """Take an update that it waited for, and serve again; called with `sending` held."""
        if self._waits_for_update:
            self._waits_for_update = False
            try:
                self.replica.take(update)
                self._serve()
            except ReplicaGoneError as error:
                self.reason = said(error)
                self._begin_to_come_back()

    def close(self) -> None:
        """End the replica, and the thread that waits for it."""
        with self._leaving:
            self._is_closed, self.is_live, self.is_lost = True, False, True
        self.reason = self.reason or "closed"
        self.replica.close()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _begin_to_come_back(self) -> None:
        self._thread = Thread(target=self._come_back, name=f"return of {self.replica.name}", daemon=True)
        self._thread.start()

    def _come_back(self) -> None:
        """Until it serves, waits for the next update, or is given up: whatever is raised, the others go on."""
        try:
            while not self._is_closed and not self._comes_back():
                pass
        except Exception as error:
            self._give_up(said(error))

    def _comes_back(self) -> bool:
        """Try once; False where it was gone again before it had the weights."""
        version = self.replica.revive()
        try:
            with self._sending:
                self._join(version)
        except ReplicaGoneError as error:
            self.reason = said(error)
            return False
        return True

    def _join(self, version: int | None) -> None:
        update = self._newest()
        if update is not None and update.policy_version != version:
            if not update.lasts:
                self._waits_for_update = True
                return
            self.replica.take(update)
        self._serve()

    def _serve(self) -> None:
        with self._leaving:
            if not self._is_closed:
                self.num_returns += 1
                self.is_live = True
                self._say(f"{self.replica.name} is back")

    def _give_up(self, reason: str) -> None:
        if not self._is_closed:
            self.reason, self.is_lost = reason, True
            self._say(f"{self.replica.name} is given up: {reason}")
