"""Path of an output -> the right to write it: one process at a time, and a clear line for the second.

The kernel gives a lock back when its holder dies, however it dies; a lock file that a kill left behind locks nothing.
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from treegrpo_cli.errors import FileError

_held: set[int] = set()


@contextmanager
def output_lock(path: str | Path) -> Iterator[None]:
    """Hold the right to write `path` while entered: a folder, by `.lock` in it, or a file, by `.NAME.lock` beside it.

    The lock file goes when the lock does. Links are followed, so that two names of one output are one lock.

    Raises:
        FileError: somebody else writes `path`, in this process or another; or no lock file can be made beside it.
    """
    output = Path(os.path.realpath(path))
    lock_file = output / ".lock" if output.is_dir() else output.with_name(f".{output.name}.lock")
    descriptor = _acquire(lock_file, path)
    _held.add(descriptor)
    try:
        yield
    finally:
        if same_file(descriptor, lock_file):
            with suppress(OSError):
                lock_file.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def same_file(descriptor: int, path: str | Path) -> bool:
    """Whether the open file is still the one of that name: neither deleted nor replaced since."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def check_same_file(descriptor: int, path: str | Path) -> None:
    """Raise FileError where an output that is being written has lost its name."""
    if not same_file(descriptor, path):
        raise FileError(path, "was deleted or replaced while it was written")


def _acquire(lock_file: Path, path: str | Path) -> int:
    """Return the locked descriptor of a file that still has its name: its last holder may just have removed it."""
    while True:
        try:
            descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise FileError(path, f"cannot be locked: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise FileError(path, f"is being written by another run{holder and f', process {holder}'}") from None
        except OSError as error:
            warnings.warn(
                f"{path}: this file system cannot lock files ({error.strerror}): do not start a second run here",
                stacklevel=3,
            )
            return descriptor
        if same_file(descriptor, lock_file):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)


def _forget_in_child() -> None:
    """A forked child holds no lock: it may outlive the run."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
