"""Commands without their start-up: one process imports the program, and every command is a fork of it.

Importing torch and transformers takes 7 s of a core, a fork milliseconds, and from there on both run the same code.
Requests and answers are lines of JSON on standard input and output. Where standard input ends, because whoever started
this is gone, the commands are asked to stop, as by Ctrl-C.

    {"module": "treegrpo_cli", "arguments": [...], "log": "FILE", "num_threads": 1}  -> 4711, the process
    {"poll": 4711}                                                                    -> null, or its exit code
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import traceback
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

from treegrpo_cli.signals import SIGNALS, install

PRELOADED = (
    "treegrpo_cli.cli.app",
    "treegrpo_cli.cli.train",
    "treegrpo_cli.cli.settings",
    "treegrpo_cli.run.loop",
    "treegrpo_cli.samplers.transformers",
    "treegrpo_cli.envs.search",
    "treegrpo_cli.envs.calculator",
    "transformers.models.auto.modeling_auto",
)


def main() -> None:
    """Answer requests until standard input ends."""
    for name in PRELOADED:
        if find_spec(name.partition(".")[0]):
            import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    running: set[int] = set()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        answer = _poll(request["poll"], running) if "poll" in request else _fork(request, running)
        answers.write(json.dumps(answer) + "\n")
    for pid in running:
        os.kill(pid, signal.SIGINT)
    for pid in running:
        os.waitpid(pid, 0)


def _poll(pid: int, running: set[int]) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    running.discard(ended)
    return os.waitstatus_to_exitcode(status) if ended else None


def _fork(request: dict[str, Any], running: set[int]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the command itself sees to signals
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads that numpy keeps: they wait, and hold nothing
        pid = os.fork()
    if pid == 0:
        _become(request)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    running.add(pid)
    return pid


def _become(request: dict[str, Any]) -> NoReturn:
    """Run `python -m MODULE ARGUMENTS` as a process of its own would, and never return."""
    code = 1
    try:
        _take_streams(request["log"])
        _take_threads(request["num_threads"])
        install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _take_streams(log: str) -> None:
    """Nothing comes in, and all that is said goes to the log; the pipes stay the parent's."""
    for descriptor, source, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
        opened = os.open(source, flags, 0o666)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    os.closerange(3, 256)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115


def _take_threads(num_threads: int) -> None:
    """So many threads of torch; 0 leaves them as they are."""
    if num_threads:
        import torch

        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        torch.set_num_threads(num_threads)


if __name__ == "__main__":
    main()
