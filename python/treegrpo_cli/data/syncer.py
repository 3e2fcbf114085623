"""Open file -> what was written to it on the disk, soon and in a thread: nobody waits for the disk.

Bytes that were written survive the death of their process whatever happens here; bytes that were synced survive
the machine's.
"""

from __future__ import annotations

import os
import threading

INTERVAL_S = 1.0
"""The most that a power failure costs, and the least time between two syncs."""


class Syncer:
    """Syncs a file at most every `INTERVAL_S` while it grows, and once more when it is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._changed, self._closing = threading.Event(), threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="treegrpo-sync")
        self._thread.start()

    def changed(self) -> None:
        """Say that there is more to sync. Raises OSError where an earlier sync failed."""
        self._changed.set()
        self._complain()

    def sync(self) -> None:
        """Sync now, and wait for it."""
        self._changed.clear()
        os.fsync(self._descriptor)
        self._complain()

    def close(self) -> None:
        """Sync what is left and end the thread. Raises OSError where this or an earlier sync failed."""
        self._closing.set()
        self._changed.set()
        self._thread.join()
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _complain(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while not self._closing.is_set():
            self._changed.wait()
            self._changed.clear()
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._error = error
            self._closing.wait(INTERVAL_S)
