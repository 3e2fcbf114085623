"""Settings + a model -> the sampler that runs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers.engine import Start, named, names
from treegrpo_cli.samplers.vllm_presence import why_no_vllm

if TYPE_CHECKING:
    from treegrpo_cli.config import SamplerConfig
    from treegrpo_cli.samplers.base import Sampler, Trained

__all__ = [
    "check_distinct",
    "check_engine",
    "check_sleep",
    "choose_engine",
    "make_sampler",
    "named",
    "names",
    "resolve_device",
    "resolve_dtype",
    "runs_here",
    "why_no_vllm",
]

logger = logging.getLogger(__name__)


def make_sampler(
    config: SamplerConfig,
    model_path: str,
    *,
    dtype: str,
    device: str,
    max_model_len: int,
    seed: int,
    log_path: Path | None,
    say: Callable[[str], None] = logger.info,
    trained: Trained | None = None,
    tensor_parallel: int = 1,
) -> Sampler:
    """Start the engine of `config.engine`; `auto` takes vLLM where a build for the device is installed.

    `dtype` is as `model.dtype`, `device` is `auto` or a torch device; `max_model_len` bounds context plus turn in
    tokens, 0 = what the model allows. The engine's log goes to `log_path`; `say` is told before what takes a while.
    `trained`: what is sent to the engine while it runs, None where nothing is. The engine spreads the model over
    `tensor_parallel` processes, on CUDA a card each.

    Raises UserError where the engine is not installed, or cannot do what is asked of it.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    if device == "cpu":
        use_one_thread()
    engine = choose_engine(config.engine, device)
    check_engine(config, device, distinct=False, entropies=False)
    if tensor_parallel > 1 and (reason := named(engine).why_not_parallel()):
        raise UserError(reason)
    return named(engine).start(
        Start(
            model_path=model_path,
            config=config,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            seed=seed,
            log_path=log_path,
            say=say,
            trained=trained,
            tensor_parallel=tensor_parallel,
        )
    )


def check_engine(config: SamplerConfig, device: str, *, distinct: bool, entropies: bool) -> None:
    """Raise UserError where the engine is not installed, or cannot sleep, draw or tell what it is asked to.

    `device` is resolved; whether vLLM is there is not found out where nothing depends on it.
    """
    if config.engine == "auto" and config.sleep is not True and not distinct:
        return
    engine = choose_engine(config.engine, device)
    check_sleep(config, engine, device)
    check_distinct(distinct, engine, device)
    if entropies and (reason := named(engine).why_no_entropies()):
        raise UserError(reason)
    if config.lora == "adapter" and (reason := named(engine).why_no_adapter()):
        raise UserError(reason)


def check_sleep(config: SamplerConfig, engine: str, device: str) -> None:
    """Raise UserError where the engine is to give memory back and cannot; `engine` and `device` are resolved."""
    if config.sleep is True and (reason := named(engine).why_no_sleep(device)):
        raise UserError(reason)


def check_distinct(distinct: bool, engine: str, device: str) -> None:
    """Raise UserError where siblings are to differ and the engine, here resolved, cannot draw so."""
    if distinct and (reason := named(engine).why_no_distinct(device)):
        raise UserError(reason)


def runs_here(engine: str) -> bool:
    """Whether the engine of this setting takes memory of our device."""
    return engine == "auto" or named(engine).is_here


def resolve_device(device: str) -> str:
    """Return `cuda` or `cpu` for `auto`, `cpu` for `cpu:0`, else the device as it is.

    Raises UserError where it is not there.
    """
    from treegrpo_cli.models.devices import choose_device

    found = choose_device(device)
    return found.type if device == "auto" or found.type == "cpu" else device


def resolve_dtype(dtype: str, device: str) -> str:
    """Return `float32` or `bfloat16` for `auto` on a resolved device, else the dtype as it is."""
    import torch

    from treegrpo_cli.models.devices import choose_dtype

    return str(choose_dtype(dtype, torch.device(device))).removeprefix("torch.")


def use_one_thread() -> None:
    """Let OpenMP use one thread, unless the user set `OMP_NUM_THREADS`.

    Threads spin at every barrier of a step: beside another busy process two of them decoded 10 to 160
    times slower.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


def choose_engine(engine: str, device: str) -> str:
    """Return the engine's name: where it is `auto`, that of the engine which is preferred of those that can run.

    Raises UserError where one is asked for that cannot.
    """
    if engine != "auto":
        if reason := named(engine).why_not(device):
            raise UserError(f"sampler.engine: {reason}; `transformers` runs everywhere")
        return engine
    reasons: list[str] = []
    offered = [candidate for candidate in map(named, names()) if candidate.preference]
    for candidate in sorted(offered, key=lambda each: -each.preference):
        reason = candidate.why_not(device)
        if reason is None:
            logger.info("%s", "; ".join([f"sampling with {candidate.name}", *reasons]))
            return candidate.name
        reasons.append(reason)
    raise AssertionError("transformers runs everywhere")
