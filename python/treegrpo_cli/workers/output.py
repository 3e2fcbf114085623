"""What a worker's code prints -> where the driver's own prints go, progress bars and redirections included."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import threading
from typing import IO


def relay(process: subprocess.Popen[bytes]) -> None:
    """Hand on what the process writes to its standard streams, until it closes them."""
    for stream, name in ((process.stdout, "stdout"), (process.stderr, "stderr")):
        assert stream is not None  # both are pipes
        threading.Thread(target=_hand_on, args=(stream, name), daemon=True, name="treegrpo-worker-output").start()


def _hand_on(stream: IO[bytes], name: str) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with stream:
        while data := os.read(stream.fileno(), 1 << 16):
            try:
                shown = getattr(sys, name)
                shown.write(decoder.decode(data))
                shown.flush()
            except (OSError, ValueError, AttributeError):  # our own are closed: the process need not notice
                continue
