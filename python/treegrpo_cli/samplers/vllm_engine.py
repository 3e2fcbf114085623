"""Settings + a model -> vLLM's engine, started in this process on CPU or GPU.

It sets the environment that the engine needs before vllm is imported, and leaves alone what the user has set.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from treegrpo_cli.errors import UserError, said
from treegrpo_cli.models.pretrained import shape_of_causal_lm

if TYPE_CHECKING:
    import torch

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over in this process
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CONFIGURE_LOGGING": "0",  # the log goes where `log_to` says, not over the progress
}
CPU_ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",  # compiling costs more than small models take
}
UNREADABLE_MODULE = "llvmlite.binding.ffi"
"""numba's library; the CPU engine looks through all modules when it starts, and fails at a wrapper in this one."""


def start_engine(log_path: Path | None, device: str, **settings: Any) -> Any:
    """Start vLLM's engine in this process; what it logs, warns and prints meanwhile goes to the log.

    Raises UserError where it does not start: memory, a model that it does not know, whatever it says.
    """
    with quietly(log_path, device):
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        try:
            return LLMEngine.from_engine_args(EngineArgs(**settings))
        except Exception as error:  # an engine fails in as many ways as it has parts
            told = "" if log_path in (None, Path(os.devnull)) else f"; its log is {log_path}"
            raise UserError(f"vLLM does not start: {type(error).__name__}: {said(error)}{told}") from error


@contextmanager
def quietly(log_path: Path | None, device: str) -> Iterator[None]:
    """Import and start things of vllm: in the environment that they need, and leaving this process as it was."""
    prepare_environment(device)
    with kept_random_state(), output_to(log_path), unlisted(UNREADABLE_MODULE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the random numbers of this process back where they were: the engine seeds them for itself when it starts."""
    import torch

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def unlisted(name: str) -> Iterator[None]:
    """Leave a module out of `sys.modules` for a while; who has imported it goes on with it."""
    module = sys.modules.pop(name, None)
    try:
        yield
    finally:
        if module is not None:
            sys.modules[name] = module


def built_for(device: str) -> bool:
    """Return whether the installed vLLM runs on `device`."""
    prepare_environment(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.platforms import current_platform

    return bool(current_platform.is_cpu()) == (device == "cpu")


@contextmanager
def output_to(path: Path | None) -> Iterator[None]:
    """Append to a file what this process writes to its terminal, the engine's native code included."""
    if path is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        with path.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, target)
            os.close(descriptor)


def prepare_environment(device: str) -> None:
    """Set what the engine reads at its first import, unless the user set it."""
    prepare_import()
    for name, value in (CPU_ENVIRONMENT if device == "cpu" else {}).items():
        os.environ.setdefault(name, value)


def prepare_import() -> None:
    """Set what vLLM reads wherever it is imported, engine or not, unless the user set it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def log_to(path: Path | None) -> logging.Handler:
    """Send the engine's log to a file, from INFO on; without a file to the terminal, errors only."""
    handler = logging.FileHandler(path, encoding="utf-8") if path else logging.StreamHandler()
    handler.setLevel(logging.INFO if path else logging.ERROR)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("vllm")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    return handler


def weight_shapes(model_path: str) -> dict[str, torch.Size]:
    """Return the names and shapes of the model's `state_dict()`; no weights are made."""
    return {name: tensor.shape for name, tensor in shape_of_causal_lm(model_path).state_dict().items()}
