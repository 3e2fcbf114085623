"""`sampler.engine = "transformers"`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treegrpo_cli.samplers.engine import Engine, Start, register

if TYPE_CHECKING:
    from treegrpo_cli.samplers.base import Sampler


@register
class TransformersEngine(Engine):
    """Runs everywhere."""

    name = "transformers"
    preference = 1

    def start(self, given: Start) -> Sampler:
        """Load the model."""
        from treegrpo_cli.samplers.transformers import TransformersSampler

        return TransformersSampler(
            given.model_path,
            dtype=given.dtype,
            device=given.device,
            max_model_len=given.max_model_len,
            max_num_seqs=given.config.max_num_seqs,
            adapter=given.adapter_beside,
        )
