"""Every token once, the depth-first order cut into root-down runs: the fast path on CPU, and on CUDA in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treegrpo_cli.train.batch import moved
from treegrpo_cli.train.cascade import Cascade
from treegrpo_cli.train.counts import ModelShape, Step
from treegrpo_cli.train.paths.base import Subject, register
from treegrpo_cli.train.paths.one_forward import WholeForest
from treegrpo_cli.train.tree_attention import TreeUnsupportedError, autocast
from treegrpo_cli.train.visibility import lower_right_mask, masked_attention, run_paths
from treegrpo_cli.types import TrainBatch

VARLEN_DTYPES = (torch.bfloat16, torch.float16)
"""What the CUDA kernel of variable lengths computes in."""

CALL_FLOPS = {"cpu": 4e6, "cuda": 0.0}
"""Cost of one more part of an attention, a layer: on CUDA all runs are one call."""


@dataclass
class RunsPlan:
    """The depth-first order cut into root-down runs, each attending to its ancestors and to itself."""

    batch: TrainBatch
    num_calls: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        """See `tree_attention.Plan`."""
        query, key, value = autocast(query, key, value)
        if window is not None and window >= self.batch.max_path_tokens:
            window = None
        if query.is_cuda:
            return self._varlen(query, key, value, scale, window)
        if window is not None:
            return self._windowed(query, key, value, scale, window)
        runs, segments = self.batch.runs, self.batch.segments
        return Cascade.apply(query, key, value, runs, segments, scale)  # type: ignore[no-untyped-call, no-any-return]

    def _windowed(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
        """Each run against the end of its path that its first token sees."""
        outputs = []
        for (start, end), path in zip(self.batch.runs, self._paths, strict=True):
            seen = torch.from_numpy(path[max(0, len(path) - (end - start) - window + 1) :])
            mask = lower_right_mask(query[:, :, start:end], len(seen), window)
            outputs.append(masked_attention(query[:, :, start:end], key[:, :, seen], value[:, :, seen], mask, scale))
        return torch.cat(outputs, dim=1)

    def _varlen(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """One call: run r's queries against its gathered path, causal at the lower right."""
        if query.dtype not in VARLEN_DTYPES:
            raise TreeUnsupportedError(_other_dtype(query.dtype))
        index, query_start, key_start, max_query, max_key = self._gathered
        output = varlen_attention(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1)[index],
            value[0].transpose(0, 1)[index],
            query_start,
            key_start,
            max_query,
            max_key,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
        )
        return output[None]

    @cached_property
    def _gathered(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """The path of each run as one index, where runs and paths begin, and the longest of each."""
        device = self.batch.token_ids.device
        lengths = [end - start for start, end in self.batch.runs], [len(path) for path in self._paths]
        starts = (np.cumsum([0, *parts], dtype=np.int32) for parts in lengths)
        columns: tuple[NDArray[Any], ...] = (np.concatenate(self._paths), *starts)
        index, run_start, path_start = (moved(column, device) for column in columns)
        return index, run_start, path_start, max(lengths[0]), max(lengths[1])

    @cached_property
    def _paths(self) -> list[NDArray[np.int64]]:
        return run_paths(self.batch)


def varlen_attention(*args: Any, **kwargs: Any) -> Tensor:
    """torch's attention of variable lengths, a thin layer over FlashAttention."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(*args, **kwargs)  # type: ignore[return-value]


def _other_dtype(dtype: torch.dtype) -> str:
    return f"attention of variable lengths computes in bfloat16, not in {dtype}"


@register
class Runs(WholeForest):
    """Each run attends to its ancestors and to itself: as many pairs as are seen, and not one more."""

    name = "runs"

    def refusal(self, subject: Subject) -> str | None:
        """See `AttentionPath`."""
        if subject.device.type not in CALL_FLOPS:
            return f"{subject.device.type} has no kernel for it"
        if subject.device.type == "cuda" and subject.dtype not in VARLEN_DTYPES:
            return _other_dtype(subject.dtype)
        return super().refusal(subject)

    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        """See `AttentionPath`."""
        return device.type == "cpu" or (device.type == "cuda" and dtype in VARLEN_DTYPES)

    def cost(self, step: Step, model: ModelShape, device: torch.device) -> float:
        """See `AttentionPath`."""
        calls = CALL_FLOPS.get(device.type, 0.0) * step.num_parts * model.num_layers
        return super().cost(step, model, device) + calls

    def plan(self, batch: TrainBatch) -> RunsPlan:
        """See `WholeForest`."""
        return RunsPlan(batch)
