"""Settings + a causal LM without weights -> the bytes that training it takes, part by part.

What stays between steps is counted on the model itself, built on torch's meta device as the policy builds it. What a
micro-batch takes follows from the model's sizes, for layers of two norms, attention and a gated MLP. For each token of
a layer autograd keeps, with hidden size h, queries of a and keys of k in all heads, and an MLP of I, in float32

    4 (2h + 2h)     what enters the two norms, and what they normalise (where norms are trained)
    4 (2h)          what they give, once for all products that read it
    4 (2a + 2k)     queries, keys, values, and what attention gives
    4 (4I)          the gate, its activation, the other half, and their product

and under autocast the last three in bfloat16, the second of them once for each of five products. A checkpointed layer
keeps its input alone, and one layer at a time the rest, with autocast's copies of its weights. A test holds this to
what is allocated, within a sixth.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from treegrpo_cli.config import Config, ModelConfig
from treegrpo_cli.models.devices import choose_dtype
from treegrpo_cli.models.sizes import ModelSizes
from treegrpo_cli.train import products
from treegrpo_cli.train.counts import CACHED_TOKENS
from treegrpo_cli.train.networks import add_lora, layers_of, store_frozen_in_bfloat16
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.schedule import prompts_per_minibatch

FLOAT = 4
"""Bytes of a float32: what trained weights, gradients and moments are kept in."""

READERS = 2.5
"""Products that read what a norm gives: queries, keys and values; gate and the other half. Autocast rounds for each."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of a network in the parts that ranks gather: all `layers`, the largest `layer`, and the `rest` at once."""

    layers: int
    layer: int
    rest: int

    @property
    def whole(self) -> int:
        """All of it."""
        return self.layers + self.rest

    @property
    def at_once(self) -> int:
        """What is there in a forward or backward pass: a layer, the next one on its way, and the rest."""
        return self.rest + min(2 * self.layer, self.layers)


@dataclass(frozen=True, slots=True)
class TrainerBytes:
    """Bytes of training. `weights`, `moments` (AdamW's two) and `reference` stay; `gradients` live from the first
    backward pass to the optimizer step; the others are those of one micro-batch.

    `copies` are what autocast makes of weights in bfloat16 and a graph keeps, `activations` what lies between forward
    and backward pass, `head` the LM head with its chunk of logits, `layer` what the gradient of one layer takes behind
    the head, `exchanged` what a rank holds beside its own part: weights that are gathered, gradients not summed yet.
    """

    weights: int
    gradients: int
    moments: int
    reference: int
    copies: int
    activations: int
    head: int
    layer: int
    exchanged: int = 0

    @property
    def kept(self) -> int:
        """What stays between two steps."""
        return self.weights + self.moments + self.reference

    @property
    def micro_batch(self) -> int:
        """What a micro-batch takes beside that and the gradients."""
        return self.exchanged + self.copies + self.activations + max(self.head, self.layer)


def trainer_bytes(config: Config, model: Any, device: torch.device, ranks: int = 1) -> TrainerBytes:
    """Count for `model`, a causal LM on torch's meta device, which stays as it is; on one of `ranks`.

    Raises UserError where adapters do not fit it, UncountableError where it does not name its sizes.
    """
    dtype, sizes = choose_dtype(config.model.dtype, device), ModelSizes.of(model)
    kept = _network(config, model, dtype)
    needs_reference = config.loss.kl_coef > 0 and not config.model.lora_rank
    reference = _frozen_bytes(model, dtype) if needs_reference else 0
    tokens = _tokens(config, sizes, device)
    pairs = tokens * dtype.itemsize if config.train.attention_path == "dense" else 0
    whole = _kept_bytes(config, model, sizes, dtype) + pairs
    again = config.model.gradient_checkpointing
    return TrainerBytes(
        weights=_shared(kept.weights.whole, ranks),
        gradients=_shared(kept.gradients.whole, ranks),
        moments=2 * _shared(kept.gradients.whole, ranks),
        reference=_shared(reference, ranks),
        copies=kept.copies // (sizes.num_layers if again and not _is_edge_by_edge(config) else 1),
        activations=tokens * sizes.num_layers * (FLOAT * sizes.hidden if again else whole),
        head=_head(config, sizes, tokens, device, dtype),
        layer=tokens * ((whole if again else 0) + 3 * (FLOAT * sizes.hidden + dtype.itemsize * sizes.intermediate)),
        exchanged=_exchanged(config, kept, reference) if ranks > 1 else 0,
    )


def exchanged_parts(config: Config, model: Any, device: torch.device) -> tuple[Parts, Parts]:
    """Return weights as they travel between ranks, and the gradients that are summed. Raises UserError."""
    kept = _network(config, model, choose_dtype(config.model.dtype, device))
    return kept.weights, kept.gradients


def _shared(num_bytes: int, ranks: int) -> int:
    return -(-num_bytes // ranks)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Bytes of the policy's network: its weights, gradients of what is trained, and autocast's copies."""

    weights: Parts
    gradients: Parts
    copies: int


def _exchanged(config: Config, kept: _Kept, reference: int) -> int:
    """What a rank holds of the others' parts; a path that reads weights edge by edge holds all, models too."""
    if _is_edge_by_edge(config):
        return kept.weights.whole + kept.gradients.whole + reference
    return kept.weights.at_once + kept.gradients.at_once


def _network(config: Config, model: Any, dtype: torch.dtype) -> _Kept:
    return _kept(model, dtype, config.model.lora_rank, json.dumps(config.model.lora_target_modules))


@lru_cache(maxsize=4)
def _kept(model: Any, dtype: torch.dtype, lora_rank: int, targets: str) -> _Kept:
    """Build the network as `Policy` does and count it; `targets` is JSON."""
    network = copy.deepcopy(model).float()
    if lora_rank:
        with torch.device("meta"):
            network = add_lora(network, ModelConfig(lora_rank=lora_rank, lora_target_modules=json.loads(targets)))
    trained = {id(weight) for weight in network.parameters() if weight.requires_grad}
    gradients = _parts(network, lambda weight: FLOAT * weight.numel() if id(weight) in trained else 0)
    if dtype == torch.bfloat16:
        store_frozen_in_bfloat16(network)
    weights = _parts(network, lambda weight: weight.numel() * weight.element_size())
    return _Kept(weights, gradients, _copies(network) if dtype == torch.bfloat16 else 0)


def _parts(network: nn.Module, bytes_of: Callable[[Tensor], int]) -> Parts:
    """Add up by layers and the rest; weights that are tied count once."""
    sizes = [sum(map(bytes_of, layer.parameters())) for layer in layers_of(network)]
    return Parts(sum(sizes), max(sizes, default=0), sum(map(bytes_of, network.parameters())) - sum(sizes))


@lru_cache(maxsize=4)
def _frozen_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes of the reference."""
    frozen = copy.deepcopy(model).float().requires_grad_(False)
    if dtype == torch.bfloat16:
        store_frozen_in_bfloat16(frozen)
    return _bytes(frozen)


def _bytes(network: nn.Module) -> int:
    """Bytes of all weights, those that are tied once."""
    return sum(weight.numel() * weight.element_size() for weight in network.parameters())


def _copies(network: Any) -> int:
    """Autocast copies float32 matrices for their products; of embeddings it looks up rows, and the head has its own."""
    ends = {id(module.weight) for module in (network.get_input_embeddings(), network.get_output_embeddings()) if module}
    weights = [weight for weight in network.parameters() if weight.dim() >= 2 and id(weight) not in ends]
    return sum(2 * weight.numel() for weight in weights if weight.dtype == torch.float32)


def _tokens(config: Config, sizes: ModelSizes, device: torch.device) -> int:
    """Tokens of the largest micro-batch: a path that exceeds `train.microbatch_tokens` goes alone."""
    path = min(config.rollout.context_tokens, sizes.max_tokens or config.rollout.context_tokens)
    if _is_edge_by_edge(config):
        return path
    of_tree, of_all = most_leaves(config)
    budget = config.train.microbatch_tokens
    if device.type == "cpu":
        budget = min(budget, max(CACHED_TOKENS, of_tree * path))
    return max(path, min(budget, of_all * path))


def most_leaves(config: Config) -> tuple[int, int]:
    """The most leaves that a tree can have, and that all trees of a mini-batch have together."""
    rollout, budget = config.rollout, config.budget
    step, batch, num_trees = config.train.prompts_per_step, prompts_per_minibatch(config), rollout.num_trees
    of_tree, of_all = rollout.leaves_kept, batch * num_trees * rollout.leaves_kept
    if rollout.allocation == "uncertain":  # one tree may get them all
        dealt = step * num_trees * (rollout.num_leaves - 1)
        of_tree, of_all = 1 + dealt, batch * num_trees + dealt
    if rollout.rescue != "none":
        of_tree, of_all = of_tree + rollout.max_rescues, of_all + batch * rollout.max_rescues
    for leaves, prompts in ((budget.prompt_leaves, 1), (budget.step_leaves, step)):
        if leaves:  # first chains always run
            expansions = max(leaves - prompts * num_trees, 0)
            of_tree = min(of_tree, 1 + expansions)
            of_all = min(of_all, batch * num_trees + expansions * (batch if prompts == 1 else 1))
    return of_tree, of_all


def _is_edge_by_edge(config: Config) -> bool:
    wanted = config.train.attention_path
    return wanted != "auto" and named(wanted).reuses_weights


def _kept_bytes(config: Config, model: Any, sizes: ModelSizes, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of one token in one layer."""
    size, readers = dtype.itemsize, 1 if dtype == torch.float32 else READERS
    of_a_norm = FLOAT if config.model.lora_rank else 2 * FLOAT
    norms = 2 * sizes.hidden * of_a_norm + int(readers * 2 * sizes.hidden * size)
    attention = size * 2 * (sizes.queries + sizes.keys)
    if any(name.endswith("q_norm") for name, _ in model.named_modules()):
        attention += of_a_norm * (sizes.queries + sizes.keys)
    return norms + attention + size * 4 * sizes.intermediate


def _head(config: Config, sizes: ModelSizes, tokens: int, device: torch.device, dtype: torch.dtype) -> int:
    """The head's weight in bfloat16, a chunk of logits with its blocks, the hidden states and what becomes of them.

    On CUDA the chunk's gradient is rounded to bfloat16 beside it. The gradient of embeddings is as large as they are,
    and comes when the rest is gone.
    """
    weight, limits = sizes.vocabulary * sizes.hidden, products.sizes(device)
    rounded = 0 if dtype == torch.float32 else dtype.itemsize
    chunk = max(min(tokens * sizes.vocabulary, limits.chunk), sizes.vocabulary)
    logits = (FLOAT + (rounded if device.type == "cuda" else 0)) * chunk + 3 * FLOAT * min(limits.block, chunk)
    head = rounded * weight + logits + tokens * sizes.hidden * (4 * FLOAT + rounded)
    return max(head, 0 if config.model.lora_rank else FLOAT * weight)
