"""vLLM's sampler on a CPU -> draws that are none of the turns before, request by request.

What changes are logits behind top-k and top-p, where the engine takes no processors: the module that draws is asked in
two parts, and log-probabilities stay those of the policy. Tokens of a request come back before its next one is drawn
only where the engine does not schedule ahead: on CUDA it does, and `samplers.check_distinct` refuses that pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from treegrpo_cli.samplers.undrawn import Undrawn, without_drawn


def draw_undrawn(worker: Any, undrawn: Mapping[str, Undrawn]) -> None:
    """Let a worker's sampler heed `undrawn`, by the engine's own names of requests; called in the engine."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    runner = worker.model_runner
    drawing = runner.sampler.topk_topp_sampler
    draw = drawing.forward

    def draw_others(
        logits: torch.Tensor, generators: Any, k: torch.Tensor | None, p: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        of_rows = [undrawn.get(name) for name in runner.input_batch.req_ids[: len(logits)]]
        if not any(of_rows):
            return draw(logits, generators, k, p)  # type: ignore[no-any-return]
        kept = apply_top_k_top_p(logits, k, p)
        logprobs = kept.log_softmax(dim=-1, dtype=torch.float32)
        tokens, _ = draw(without_drawn(kept, of_rows), generators, None, None)
        return tokens, logprobs

    drawing.forward = draw_others
