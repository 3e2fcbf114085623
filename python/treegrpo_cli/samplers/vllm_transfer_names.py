"""What card-to-card weight transfer calls of vLLM -> what of it the installed version does not have.

These calls run where there are cards; names and signatures can be looked at anywhere. vLLM is imported for it.
"""

from __future__ import annotations

import dataclasses
import inspect
from importlib import import_module
from typing import Any

_API = "vllm.distributed.weight_transfer"
_WORKER = "vllm.v1.worker.gpu_worker:Worker"
_ENGINE = "vllm.v1.engine.llm_engine:LLMEngine"

CALLS: dict[str, tuple[str, ...]] = {
    f"{_API}.factory:WeightTransferTrainerFactory.trainer_init": ("init_info", "client", "source"),
    f"{_API}.base:TrainerWeightTransferEngine.send_weights": (),
    f"{_API}.base:TrainerWeightTransferEngine.shutdown": (),
    f"{_WORKER}.init_weight_transfer_engine": ("init_info",),
    f"{_WORKER}.start_weight_update": (),
    f"{_WORKER}.update_weights": ("update_info",),
    f"{_WORKER}.finish_weight_update": (),
    f"{_WORKER}.shutdown_weight_transfer_engine": (),
    f"{_ENGINE}.collective_rpc": ("method",),
    f"{_ENGINE}.set_weight_version": ("weight_version",),
    f"{_ENGINE}.sleep": ("level",),
    f"{_ENGINE}.wake_up": ("tags",),
}
"""A method -> its first parameters; it can be called with these alone."""

FIELDS: dict[str, tuple[str, ...]] = {
    f"{_API}.nccl_engine:NCCLTrainerInitInfo": (
        *("master_address", "master_port", "world_size"),
        *("packed", "packed_buffer_size_bytes", "rank"),
    ),
    f"{_API}.ipc_engine:IPCTrainerInitInfo": ("packed", "packed_buffer_size_bytes", "rank"),
    f"{_API}.nccl_common:NCCLWeightTransferInitInfo": ("rank_offset",),
    "vllm.config:WeightTransferConfig": ("backend",),
    "vllm:EngineArgs": (
        *("weight_transfer_config", "tensor_parallel_size"),
        *("distributed_executor_backend", "device_ids"),
    ),
}
"""A dataclass -> fields of it that we set."""


def missing() -> list[str]:
    """Return the names that are not there, or not as they are called; none where weight transfer can be tried."""
    calls = [name for name, parameters in CALLS.items() if not _is_called_with(_found(name), parameters)]
    fields = [f"{name}.{field}" for name, fields in FIELDS.items() for field in fields if not _has(_found(name), field)]
    return [name.rpartition(":")[2] for name in (*calls, *fields)]


def _found(name: str) -> Any:
    """The object, None where it is not there."""
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
    except ImportError:
        return None
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _is_called_with(method: Any, wanted: tuple[str, ...]) -> bool:
    if not callable(method):
        return False
    parameters = [one for one in inspect.signature(method).parameters.values() if one.name != "self"]
    names, others = [one.name for one in parameters[: len(wanted)]], parameters[len(wanted) :]
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return names == [*wanted] and all(one.default is not one.empty or one.kind in optional for one in others)


def _has(kind: Any, field: str) -> bool:
    return dataclasses.is_dataclass(kind) and field in {one.name for one in dataclasses.fields(kind)}
