"""New weights -> the workers of a tensor parallel engine, each a process of its own, chunk by chunk.

Every worker gets every weight and keeps its part, as vLLM's loader has it. On CUDA their processes each have a card;
the CPU engine's share this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from treegrpo_cli.models.chunks import Chunk, chunks

if TYPE_CHECKING:
    import torch

ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, and CUDA perhaps
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or each worker of the CPU engine would ask for cores of its own
}


def parallel_settings(tensor_parallel: int) -> dict[str, Any]:
    """Return the engine's settings for so many workers; one is this process itself."""
    if tensor_parallel == 1:
        return {}
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return {"tensor_parallel_size": tensor_parallel, "distributed_executor_backend": "mp"}


def load_in_workers(engine: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Load a whole state dict into all workers."""
    engine.collective_rpc(begin_loading)
    for chunk in chunks(weights):
        engine.collective_rpc(load_chunk, args=(chunk,))
    engine.collective_rpc(end_loading)


def begin_loading(worker: Any) -> None:
    """Let a worker's layers wait for new weights; called in the worker."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(worker.model_runner.get_model())


def load_chunk(worker: Any, chunk: Chunk) -> None:
    """Give a worker some weights; a layer takes its own when it has all of them."""
    from vllm.config import set_current_vllm_config

    with set_current_vllm_config(worker.vllm_config):
        worker.model_runner.get_model().load_weights(chunk.items())


def end_loading(worker: Any) -> None:
    """Let a worker compute with its new weights."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    with set_current_vllm_config(worker.vllm_config):
        finalize_layerwise_reload(worker.model_runner.get_model(), worker.vllm_config.model_config)
    worker.model_runner.reset_lora_state()
