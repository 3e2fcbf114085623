"""`sampler.engine = "vllm"`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers.engine import Engine, Start, register
from treegrpo_cli.samplers.vllm_presence import why_no_vllm

if TYPE_CHECKING:
    from treegrpo_cli.models.weights import Adapter
    from treegrpo_cli.samplers.base import Sampler


@register
class VllmEngine(Engine):
    """In this process."""

    name = "vllm"
    preference = 2

    def why_not(self, device: str) -> str | None:
        """It needs a build for the device."""
        return why_no_vllm(device)

    def why_no_sleep(self, device: str) -> str | None:
        """It sleeps on CUDA alone."""
        on_cpu = 'sampler.sleep: an engine on a CPU has no memory to give back; set sampler.sleep = "auto"'
        return on_cpu if device == "cpu" else None

    def why_no_distinct(self, device: str) -> str | None:
        """On CUDA it schedules ahead."""
        on_cuda = (
            "rollout.distinct_siblings: on CUDA vLLM draws a token before the last one is known here; "
            'set sampler.engine = "transformers"'
        )
        return None if device == "cpu" else on_cuda

    def why_not_parallel(self) -> str | None:
        """Its workers are processes."""
        return None

    def start(self, given: Start) -> Sampler:
        """Start it, adapters beside its weights where that can be had."""
        from treegrpo_cli.samplers.vllm import VllmSampler

        adapter = self._adapter(given)
        given.say("starting vLLM ...")
        return VllmSampler(
            given.model_path,
            given.config,
            dtype=given.dtype,
            device=given.device,
            max_model_len=given.max_model_len,
            seed=given.seed,
            log_path=given.log_path,
            trained=given.trained and replace(given.trained, adapter=adapter),
            say=given.say,
            tensor_parallel=given.tensor_parallel,
        )

    def _adapter(self, given: Start) -> Adapter | None:
        from treegrpo_cli.samplers.vllm_adapter import why_merged
        from treegrpo_cli.samplers.vllm_engine import quietly

        if (adapter := given.adapter_beside) is None:
            return None
        with quietly(given.log_path, given.device):
            reason = why_merged(given.model_path, adapter, given.dtype, given.device)
        if reason and given.config.lora == "adapter":
            raise UserError(f"sampler.lora: {reason}")
        if reason:
            given.say(f"adapters are merged into the engine's weights: {reason}")
        return None if reason else adapter
