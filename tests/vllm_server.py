"""vLLM's own server in a process of its own, as a user starts it for training on a CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

START_S = 300.0


class VllmServer:
    """Started by `start`, and gone behind `end`, with all its processes."""

    def __init__(self, model: Path, log: Path, port: int = 0) -> None:
        self.model, self.log, self.port = model, log, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> VllmServer:
        """Start it; `wait` waits for it."""
        settings = {
            "--model": str(self.model),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--block-size": "32",
            "--kv-cache-memory-bytes": str(64 << 20),
            "--max-model-len": "512",
            "--max-num-batched-tokens": "8192",
            "--max-num-seqs": "64",
            "--logprobs-mode": "processed_logprobs",
        }
        flags = [
            "--enforce-eager",
            "--no-enable-chunked-prefill",
            "--enable-scale-out",
            "--enable-prompt-tokens-details",
        ]
        environment = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "fork",
            "VLLM_NO_USAGE_STATS": "1",
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        }
        ours = (
            "VLLM_CONFIGURE_LOGGING",
            "VLLM_ENABLE_V1_MULTIPROCESSING",
        )  # what an engine of this process may have set
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
                + [word for pair in settings.items() for word in pair],
                env={**kept, **environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self

    def wait(self) -> VllmServer:
        """Wait until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urlopen(f"{self.url}/health", timeout=5):
                    return self
            except (URLError, OSError):
                time.sleep(0.1)
        self.end()
        raise AssertionError(self.log.read_text(errors="replace")[-3000:])

    def end(self) -> None:
        """Kill it, as a machine that fails does. Twice is fine."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
