"""Requests -> completions with vLLM in this process: paged key-value cache, prefix caching, CPU or GPU.

This file, its neighbours named `vllm_...` and `scale.transfer` are the only ones that import vllm.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.models.pretrained import check_weight_files, context_limit
from treegrpo_cli.samplers.stepping import Request, SteppedSampler
from treegrpo_cli.samplers.text import end_token_ids
from treegrpo_cli.samplers.undrawn import Undrawn
from treegrpo_cli.samplers.vllm_adapter import EngineAdapter, adapter_settings, unknown_layer
from treegrpo_cli.samplers.vllm_engine import (
    kept_random_state,
    log_to,
    start_engine,
    weight_shapes,
)
from treegrpo_cli.samplers.vllm_entropies import return_entropies
from treegrpo_cli.samplers.vllm_parallel import load_in_workers, parallel_settings
from treegrpo_cli.samplers.vllm_settings import cpu_settings, float32_head, gpu_settings
from treegrpo_cli.samplers.vllm_sleep import Sleep
from treegrpo_cli.samplers.vllm_transfer import WeightTransfer, transfer_settings
from treegrpo_cli.samplers.vllm_turns import EngineTurn, engine_words
from treegrpo_cli.samplers.vllm_undrawn import draw_undrawn
from treegrpo_cli.types import Completion

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams as EngineParams

    from treegrpo_cli.config import SamplerConfig
    from treegrpo_cli.models.weights import Adapter
    from treegrpo_cli.samplers.base import Trained


class VllmSampler(SteppedSampler):
    """Samples with vLLM's engine, stepped in the event loop that asks."""

    name = "vllm"
    names_version = True

    def __init__(
        self,
        model_path: str,
        config: SamplerConfig,
        *,
        dtype: str,
        device: str,
        max_model_len: int,
        seed: int,
        log_path: Path | None,
        trained: Trained | None,
        say: Callable[[str], None],
        tensor_parallel: int = 1,
    ) -> None:
        super().__init__(context_limit(model_path, max_model_len))
        self._weight_shapes = weight_shapes(model_path)
        adapter, transfer = (trained.adapter, trained.transfer) if trained else (None, "")
        reloads = trained is not None and adapter is None
        settings = (
            cpu_settings(model_path, config, dtype, self.max_model_len)
            if device == "cpu"
            else gpu_settings(model_path, config, device, reloads=reloads, say=say, tensor_parallel=tensor_parallel)
        )
        self._tensor_parallel = tensor_parallel
        sleeps = device != "cpu" and trained is not None and config.sleep is not False
        check_weight_files(model_path)
        self._log_handler = log_to(log_path)
        try:
            self.engine = start_engine(
                log_path,
                device,
                model=model_path,
                load_format="safetensors",  # never a pickle
                trust_remote_code=False,
                dtype=dtype,
                hf_overrides=float32_head(dtype),
                enable_sleep_mode=sleeps,
                seed=seed % 2**32,
                max_model_len=self.max_model_len,
                max_num_seqs=config.max_num_seqs,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",  # of the distribution sampled from
                disable_log_stats=True,
                **settings,
                **parallel_settings(tensor_parallel),
                **(transfer_settings(transfer) if transfer else {}),
                **(adapter_settings(adapter) if adapter else {}),
            )
        except BaseException:
            self._end_log()
            raise
        self._sleep = Sleep(self.engine, settings["device_ids"][0], keeps_weights=not reloads) if sleeps else None
        self._adapter = EngineAdapter(self.engine, dtype) if adapter else None
        self.takes_adapter = adapter is not None
        if adapter and (problem := unknown_layer(self.engine, adapter)):
            self.free()
            raise UserError(f"sampler.lora: {problem}")
        self.tokenizer = self.engine.get_tokenizer()
        self.end_ids = end_token_ids(model_path, self.tokenizer)
        self._returns_entropies = self._draws_undrawn = False
        self._undrawn: dict[str, Undrawn] = {}
        """By the engine's own names of requests."""
        self._turns: dict[str, EngineTurn] = {}
        self.transfer = WeightTransfer(self.engine, self._begin_update, self._end_update) if transfer else None
        self.label(self.policy_version)

    def add(self, request: Request) -> None:
        """Hand a request to the engine, which knows it by an id of its own."""
        from vllm.inputs import tokens_input

        if request.params.entropies and not self._returns_entropies:
            self.engine.collective_rpc(return_entropies)
            self._returns_entropies = True
        if request.params.drawn and not self._draws_undrawn:
            self.engine.collective_rpc(draw_undrawn, args=(self._undrawn,))
            self._draws_undrawn = True
        engine_id = self.engine.add_request(
            request.request_id,
            tokens_input(request.context),
            self._engine_params(request),
            lora_request=self._adapter.request if self._adapter else None,
        )
        undrawn = Undrawn(request.params.drawn) if request.params.drawn else None
        if undrawn:
            self._undrawn[engine_id] = undrawn
        self._turns[request.request_id] = EngineTurn(request, engine_id, undrawn, policy_version=self.policy_version)

    def drop(self, request_id: str) -> None:
        """Abort a request, unless it has just ended."""
        turn = self._turns.pop(request_id, None)
        if turn is not None:
            self._undrawn.pop(turn.engine_id, None)
            self.engine.abort_request([turn.engine_id], internal=True)

    def step(self) -> list[tuple[str, Completion]]:
        """Run one scheduler step; return what ended.

        On a CPU the engine draws from torch's own generator, also where every request has a seed.
        """
        import torch

        state = torch.get_rng_state()
        outputs = self.engine.step()
        torch.set_rng_state(state)
        return [ended for output in outputs if (ended := self._take(output))]

    def _take(self, output: Any) -> tuple[str, Completion] | None:
        """Take what the engine says of a request; return its completion where the turn has ended."""
        turn = self._turns.get(output.request_id)
        if turn is None:
            return None
        turn.take(output)
        if not turn.finish_reason:
            return None
        if output.finished:
            del self._turns[output.request_id]
            self._undrawn.pop(turn.engine_id, None)
        else:
            self.drop(output.request_id)
        return output.request_id, turn.completion(self.tokenizer, self.end_ids)

    def weight_shapes(self) -> dict[str, torch.Size]:
        """The names and shapes of the state dict that transformers would have; the engine packs its own."""
        return self._weight_shapes

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Load a state dict, a layer at a time, and reset the prefix cache: the old weights made it."""
        with kept_random_state():
            if self._tensor_parallel > 1:
                load_in_workers(self.engine, weights)
            else:
                self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.reset_prefix_cache()

    def load_adapter(self, adapter: Adapter) -> None:
        """Load an adapter in the place of the last one and reset the prefix cache."""
        assert self._adapter is not None
        with kept_random_state():
            self._adapter.load(adapter)
        self.reset_prefix_cache()

    def label(self, policy_version: int) -> None:
        """Let the engine say of every turn by which version its first token was sampled."""
        self.engine.set_weight_version(str(policy_version))

    def _begin_update(self) -> AbstractContextManager[None]:
        self._settle()
        return self.waking() if self._asleep else nullcontext()

    def _end_update(self, policy_version: int) -> None:
        self.reset_prefix_cache()
        self.label(policy_version)
        self.policy_version, self._asleep = policy_version, False

    def fall_asleep(self) -> bool:
        """Give weights and cache back, where `sampler.sleep` and the device let it."""
        if self._sleep:
            self._sleep.fall_asleep()
        return self._sleep is not None

    def waking(self) -> AbstractContextManager[None]:
        """Wake for new weights."""
        return self._sleep.waking() if self._sleep else nullcontext()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes. Raises RuntimeError where the engine refuses: a request still runs."""
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("the engine kept its prefix cache: a request still runs")

    def free(self) -> None:
        """Shut the engine down and give its memory back, so that another one can start in this process."""
        from vllm.distributed import cleanup_dist_env_and_memory

        if self._sleep and self._asleep:
            self._sleep.end()
        self.engine.engine_core.shutdown()
        if self._adapter:
            self._adapter.close()
        self._sleep = self._adapter = None
        del self.engine
        gc.collect()
        cleanup_dist_env_and_memory()
        self._end_log()

    def _end_log(self) -> None:
        logging.getLogger("vllm").removeHandler(self._log_handler)
        self._log_handler.close()

    def _engine_params(self, request: Request) -> EngineParams:
        """Return the engine's words for a request, which tell of each step where somebody looks at it."""
        from vllm import SamplingParams as EngineParams
        from vllm.sampling_params import RequestOutputKind

        is_watched = request.params.drawn or request.params.stop_below is not None
        return EngineParams(
            **engine_words(request, self.end_ids),
            output_kind=RequestOutputKind.DELTA if is_watched else RequestOutputKind.FINAL_ONLY,
        )
