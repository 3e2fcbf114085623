"""The command line in a terminal of its own: what it shows there, what is typed, and its exit code."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
import traceback
import warnings
from pathlib import Path

DEADLINE_S = 60


class Terminal:
    """`treegrpo` in a terminal of `columns` and `rows`: a fork of this process, so that it starts at once."""

    def __init__(self, *arguments: str | Path, columns: int = 80, rows: int = 24, **environment: str) -> None:
        self._read_so_far = b""
        self.pid, self._screen = pty.fork()
        if not self.pid:
            try:
                _run([str(argument) for argument in arguments], columns, rows, environment)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(99)

    def read_until(self, text: str) -> None:
        """Read what is shown until `text` is there."""
        while text not in self.shown:
            assert self._read(), f"{text!r} never came: {self.shown!r}"

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._screen, keys.encode())

    def end(self) -> int:
        """Read to the end and return the exit code."""
        while self._read():
            pass
        os.close(self._screen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def shown(self) -> str:
        return self._read_so_far.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.shown.replace("\r", "").splitlines()

    def _read(self) -> bool:
        started = time.monotonic()
        while not select.select([self._screen], [], [], 1)[0]:
            assert time.monotonic() - started < DEADLINE_S, f"nothing more comes: {self.shown!r}"
        try:
            read = os.read(self._screen, 65536)
        except OSError:  # the other end is closed
            return False
        self._read_so_far += read
        return bool(read)


def shown_in_terminal(*arguments: str | Path, columns: int = 80, rows: int = 24, **environment: str) -> Terminal:
    """A command that ended well in a terminal."""
    terminal = Terminal(*arguments, columns=columns, rows=rows, **environment)
    assert terminal.end() == 0, terminal.shown
    return terminal


def _run(arguments: list[str], columns: int, rows: int, environment: dict[str, str]) -> None:
    from rich.style import Style
    from treegrpo_cli import signals
    from treegrpo_cli.cli.app import main

    for remembered in (Style.parse, Style._add):
        remembered.cache_clear()  # with the escape sequences of another terminal
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    for name in ("COLUMNS", "LINES", "PAGER", "LESS", "NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLORTERM"):
        os.environ.pop(name, None)
    os.environ.update({"TERM": "xterm-256color", **environment})
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        number = ("stdin", "stdout", "stderr").index(name)
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - as long as the process
    sys.argv = ["treegrpo", *arguments]
    signals.install()
    warnings.simplefilter("default")
    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(int(ended.code or 0))
