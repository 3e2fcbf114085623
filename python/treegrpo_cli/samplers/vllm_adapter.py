"""Adapters -> vLLM's engine, unmerged: through a folder that it reads, as it takes them from anybody.

The engine computes the base model as it is and adds the adapter's product beside it. A folder is written anew for
every version and every version has a name of its own, which vLLM puts into the keys of its prefix cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from safetensors import SafetensorError
from safetensors.torch import save_file

from treegrpo_cli.errors import FileError, said

if TYPE_CHECKING:
    from treegrpo_cli.models.weights import Adapter

PREFIX = "base_model.model."
"""Of every name in an adapter's file, by peft's convention."""


def adapter_settings(adapter: Adapter) -> dict[str, Any]:
    """Return the engine's settings for one adapter of this rank on these layers."""
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": engine_rank(adapter.rank),
        "lora_target_modules": sorted({name.rpartition(".")[2] for name in adapter.layers}),
    }


def engine_rank(rank: int) -> int | None:
    """Return the smallest rank of the engine that holds `rank`, or None."""
    from vllm.config.lora import MaxLoRARanks

    return min((size for size in get_args(MaxLoRARanks) if size >= rank), default=None)


def why_merged(model_path: str, adapter: Adapter, dtype: str, device: str) -> str | None:
    """Return why vLLM cannot take an adapter as it is, None where it can."""
    from vllm import EngineArgs
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.registry import ModelRegistry

    if dtype == "float32" and device != "cpu":
        return "vLLM's kernels for adapters have no float32"
    if engine_rank(adapter.rank) is None:
        return f"vLLM takes no adapter of rank {adapter.rank}"
    try:
        config = EngineArgs(model=model_path, trust_remote_code=False).create_model_config()
        found, name = ModelRegistry.resolve_model_cls(config.architectures, config)
    except Exception:  # an engine's start says what is wrong with a model, and better
        return None
    return None if supports_lora(found) else f"vLLM knows no adapters for {name}"


class EngineAdapter:
    """The adapter that all requests of an engine run with; `request` is what a request says so by."""

    request: Any = None

    def __init__(self, engine: Any, dtype: str) -> None:
        self._engine, self._dtype = engine, dtype
        self._folder = TemporaryDirectory(prefix="treegrpo-adapter-")
        self._version = 0

    def load(self, adapter: Adapter) -> None:
        """Let requests from now on run with `adapter`."""
        from vllm.lora.request import LoRARequest

        folder = Path(self._folder.name)
        write_adapter(folder, adapter, self._dtype)
        if self.request is not None:
            self._engine.remove_lora(self.request.lora_int_id)
        self._version += 1
        request = LoRARequest(f"version-{self._version}", self._version, str(folder))
        if not self._engine.add_lora(request):
            raise RuntimeError("the engine did not take the adapter")
        self.request = request

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


def write_adapter(folder: Path, adapter: Adapter, dtype: str) -> None:
    """Write an adapter as peft does: its settings, and safetensors of `dtype`.

    Raises FileError where there is no room, as on a small `/tmp`.
    """
    import torch

    tensors = {}
    for name, (down, up) in adapter.layers.items():
        for letter, tensor in (("A", down), ("B", up)):
            stored = tensor.detach().to("cpu", getattr(torch, dtype))
            tensors[f"{PREFIX}{name}.lora_{letter}.weight"] = stored.contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": sorted(adapter.layers),
        "bias": "none",
    }
    try:
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise FileError(
            folder, f"the engine's adapter cannot be written: {said(error)}; TMPDIR names another"
        ) from error


def unknown_layer(engine: Any, adapter: Adapter) -> str | None:
    """Say which layer the engine does not adapt, if there is one: it would leave its adapter out without a word."""
    known = engine.collective_rpc(adapted_layers, args=(sorted(adapter.layers),))[0]  # workers differ in parts alone
    unknown = sorted(adapter.layers.keys() - known)
    remedy = 'name other modules in model.lora_target_modules, or set sampler.lora = "merged"'
    return f"vLLM has no adapter at {unknown[0]}; {remedy}" if unknown else None


def adapted_layers(worker: Any, names: list[str]) -> set[str]:
    """Return those of `names` whose adapters the model of a worker of vLLM applies."""
    from vllm.lora.utils import parse_fine_tuned_lora_name

    manager = worker.model_runner.lora_manager._adapter_manager
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = mapper.get_rename_mapper() if mapper is not None else None
    applied = {part for name in manager.modules for part in manager.packed_modules.get(name, [name])}
    return {name for name in names if parse_fine_tuned_lora_name(f"{PREFIX}{name}.lora_A.weight", mapper)[0] in applied}
