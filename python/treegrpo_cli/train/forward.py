"""TrainBatch -> hidden states, as a plan says or row by row; and what speaks against plans.

The decoder is called with depths as positions and every token once, or row by row as the library knows it. Which
attention a model uses is written into its configuration and stays there until the next forward: a checkpointed layer
asks for it again during the backward pass.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treegrpo_cli.models.positions import moving_positions
from treegrpo_cli.train.batch import moved
from treegrpo_cli.train.residence import States, states_of
from treegrpo_cli.train.tree_attention import NAME, Plan, TreeUnsupportedError
from treegrpo_cli.train.visibility import run_paths
from treegrpo_cli.types import TrainBatch

CHOOSING_MODELS = {"doge"}
CHOOSING_LAYERS = {
    "indexed_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
}
"""By `model_type` and in `layer_types`, what attends to the keys of the highest scores."""


class Decoder:
    """A causal LM without its head, and the two attentions that it switches between.

    `rows_alone`: rows are forwarded one by one and unpadded, since this model computes them otherwise side by side.
    `states`: the forward, from inputs by keyword to last hidden states; the module's own by default.
    """

    def __init__(self, model: Any, states: States | None = None) -> None:
        self.module = decoder_of(model)
        self.states = states or states_of(self.module)
        self.rows_alone = chooses_keys(self.module.config)
        self._library_attention = self.module.config._attn_implementation

    def planned_states(self, batch: TrainBatch, tokens: slice, plan: Plan, embeds: Tensor | None = None) -> Tensor:
        """Return the hidden states of consecutive tokens that attend as `plan` says, [u, hidden].

        `embeds` [U, hidden] replace the tokens' own. Raises TreeUnsupportedError where the model does not attend so.
        """
        self.module.config._attn_implementation = NAME
        positions = batch.positions[None, tokens]
        nothing_hidden = torch.ones_like(positions)  # or the library reads the positions, to see if texts are packed
        states = self._call(
            batch.token_ids[None, tokens], positions, embeds, tokens, tree_plan=plan, attention_mask=nothing_hidden
        )
        if plan.num_calls != (num_layers := self.module.config.num_hidden_layers):
            raise TreeUnsupportedError(f"its {num_layers} layers call the library's attention {plan.num_calls} times")
        return states[0]

    def row_states(self, batch: TrainBatch, embeds: Tensor | None = None) -> Tensor:
        """Return the hidden states of `batch.predictors`, [P, hidden]; `embeds` [U, hidden] replace the tokens' own.

        Each run that is read is a row with all of its path in front, padded on the right: causality hides the padding.
        The library numbers the positions: not in every model do they begin at 0.
        """
        self.module.config._attn_implementation = self._library_attention
        device, host = batch.token_ids.device, batch.host
        run = np.searchsorted([start for start, _ in batch.runs], host.predictors, side="right") - 1
        read, row = np.unique(run, return_inverse=True)
        paths = run_paths(batch)
        rows = [torch.from_numpy(paths[number]) for number in read]
        place = host.positions[host.predictors]
        if self.rows_alone:
            rows = [moved(path, device) for path in rows]
            alone = (self._call(batch.token_ids[path][None], None, embeds, path)[0] for path in rows)
            return torch.cat([states[place[row == number]] for number, states in enumerate(alone)])
        padded = moved(nn.utils.rnn.pad_sequence(rows, batch_first=True), device)
        states = self._call(batch.token_ids[padded], None, embeds, padded)
        return states.flatten(0, 1)[moved(row * padded.shape[1] + place, device)]

    def _call(
        self, token_ids: Tensor, positions: Tensor | None, embeds: Tensor | None, index: Any, **kwargs: Any
    ) -> Tensor:
        if positions is not None:
            kwargs["position_ids"] = positions
        if embeds is not None:
            chosen = embeds[index]
            inputs = {"inputs_embeds": chosen if chosen.dim() == 3 else chosen[None]}
        else:
            inputs = {"input_ids": token_ids}
        return self.states(**inputs, use_cache=False, **kwargs)


def decoder_of(model: Any) -> Any:
    """Return the part of a causal LM that makes the hidden states which its head reads; adapters may be around it."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = model.get_decoder()
    if isinstance(found, PreTrainedModel) and found is not model:
        return found
    return getattr(model, "model", found)  # in some models "decoder" is a layer, and some name their base otherwise


def class_name(model: Any) -> str:
    """Return the name of a model's class in its library; torch's FSDP puts a word before it."""
    return type(model).__name__.removeprefix("FSDP")


def chooses_keys(config: Any) -> bool:
    """Whether attention sees a few chosen keys: of those that score alike, others in a longer row."""
    layer_types = set(getattr(config, "layer_types", None) or ())
    return config.model_type in CHOOSING_MODELS or bool(layer_types & CHOOSING_LAYERS)


def tree_refusal(model: Any) -> str | None:
    """Say why a model cannot compute a forest with every token once, or None where nothing speaks against it."""
    decoder = decoder_of(model)
    config = decoder.config
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if chooses_keys(config):
        return "its attention chooses keys, and breaks ties by their place in the row"
    if foreign == ["chunked_attention"]:
        return "its chunked_attention layers go by places in a row, not by positions"
    if foreign:
        return f"its {' and '.join(foreign)} layers do not read a mask, so siblings would see each other"
    if getattr(model, "_is_stateful", False):
        return "its layers carry a state from token to token, so siblings would see each other"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return "its forward takes no position_ids, and a forest has its own"
    if moving := moving_positions(model):
        return f"its {moving[0]} positions depend on the longest row of a batch"
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return "with dropout, a shared token is drawn once, and chains draw anew in every row"
    return None
