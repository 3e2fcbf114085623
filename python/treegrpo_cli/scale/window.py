"""One pass over something large -> several readers side by side, with a few of its parts alive at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Condition
from typing import Generic, TypeVar

Part = TypeVar("Part")


class MissedError(RuntimeError):
    """A reader came when the first parts were gone already; it needs a pass of its own."""


class Window(Generic[Part]):
    """Readers in threads of their own share one pass: each part is made once, when the first of them wants it.

    The last `size` parts are kept, so that who begins a little later still finds the first, and no part is made before
    all readers are done with the one that goes for it. A reader that stops in the middle holds nobody up, and behind
    the last one nothing is kept.
    """

    def __init__(self, parts: Iterator[Part], size: int) -> None:
        self._parts, self._size = parts, size
        self._kept: deque[Part] = deque()
        self._num_made = 0
        self._done: dict[object, int] = {}
        """Parts that each reader is done with."""
        self._is_making = self._is_whole = self._is_over = False
        self._error: BaseException | None = None
        self._changed = Condition()

    def read(self) -> Iterator[Part]:
        """Return a reader of all parts.

        Raises MissedError where the first are gone already. A reader raises what making a part raised.
        """
        reader = object()
        with self._changed:
            if self._num_made > self._size or self._is_over:
                raise MissedError(f"{self._num_made} parts were made, and {len(self._kept)} are kept")
            self._done[reader] = 0
        return self._read(reader)

    def _read(self, reader: object) -> Iterator[Part]:
        try:
            while found := self._advance(reader):
                yield found.pop()  # and not held here
                with self._changed:
                    self._done[reader] += 1
                    self._changed.notify_all()
        finally:
            with self._changed:
                del self._done[reader]
                self._changed.notify_all()
                if not self._done:
                    self._is_over = True
                    self._kept.clear()

    def _advance(self, reader: object) -> list[Part]:
        """Wait for the reader's next part, or make it, and return it; nothing where it has read all."""
        with self._changed:
            place = self._done[reader]
            while place == self._num_made and not self._is_whole:
                if self._error is not None:
                    raise self._error
                if self._is_making or min(self._done.values()) <= place - self._size:
                    self._changed.wait()
                else:
                    self._make()
            return [self._kept[place - self._num_made]] if place < self._num_made else []

    def _make(self) -> None:
        """Make one more part, while others read those that are there; the oldest goes first."""
        self._is_making = True
        if len(self._kept) == self._size:
            self._kept.popleft()
        self._changed.release()
        made: list[Part] = []
        error = None
        try:
            made = [part for _, part in zip(range(1), self._parts, strict=False)]
        except BaseException as raised:
            error = raised
        self._changed.acquire()
        self._kept.extend(made)
        self._num_made += len(made)
        self._is_making, self._is_whole, self._error = False, not made and error is None, error
        self._changed.notify_all()
