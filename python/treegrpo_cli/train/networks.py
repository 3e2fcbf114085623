"""Model folder + settings -> the network that is trained: loaded, adapted, in the mode and dtypes it computes in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from treegrpo_cli.config import ModelConfig
from treegrpo_cli.errors import UserError, said
from treegrpo_cli.models.pretrained import load_causal_lm, read_model_config


def load_model(path: str | Path) -> Any:
    """Load a causal LM in float32, on the CPU, with every dropout at 0, in the mode in which it samples.

    Raises UserError where there is no model, or none with an LM head.
    """
    disable_progress_bar()  # the program shows its own
    config = read_model_config(path)
    _set_dropout_to_zero(config)
    model = load_causal_lm(path, torch.float32, config)
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise UserError(f"model.path: {type(model).__name__} cannot be trained: it has no linear LM head")
    return model


def add_lora(model: Any, settings: ModelConfig) -> Any:
    """Wrap the model in trainable low-rank adapters of float32 and freeze the rest."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        network = get_peft_model(model, lora)
    except (ValueError, re.error) as error:  # one string is a regular expression
        raise UserError(f"model.lora_target_modules: {said(error)}") from None
    _check_names(network, settings.lora_target_modules)
    adapted = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    if not all(hasattr(module.get_base_layer(), "weight") for module in adapted):
        raise UserError("model.lora_target_modules: fused experts cannot be adapted, name linear modules")
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.tie_word_embeddings and any(module is end for module in adapted for end in ends):
        raise UserError("model.lora_target_modules: a tied embedding cannot be adapted, name other modules")
    if any(module is ends[1] for module in adapted):
        raise UserError("model.lora_target_modules: the LM head cannot be adapted, name other modules")
    return network


def _check_names(network: Any, wanted: str | list[str]) -> None:
    """Raise UserError where one of several names is no module's: peft passes over it without a word."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [f".{name}" for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)]
    for name in wanted if isinstance(wanted, list) else ():
        if not any(known.endswith(f".{name}") for known in adapted):
            raise UserError(f"model.lora_target_modules: the model has no module called {name!r}")


def set_mode(network: nn.Module) -> None:
    """Let a network compute as in sampling; adapters drop out, and layers are computed twice where they are told to.

    Routers and norms may compute otherwise in training (Phi-3.5-MoE samples its experts there); the library computes
    layers twice, for gradient checkpointing, in training alone.
    """
    network.eval()
    for name, module in network.named_modules():
        is_adapter = "lora_dropout" in name.split(".")
        if is_adapter or isinstance(module, GradientCheckpointingLayer):
            module.training = True


@contextmanager
def without_dropout(network: nn.Module) -> Iterator[None]:
    """Leave out what adapters drop, for a while: it would tell two computations of the same apart."""
    drawing = [module for module in network.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in drawing:
        module.training = False
    try:
        yield
    finally:
        for module in drawing:
            module.training = True


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Return the layers that the library checkpoints, none of which is in another: ranks gather one at a time."""
    layers: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, GradientCheckpointingLayer) and not any(module in set(one.modules()) for one in layers):
            layers.append(module)
    return layers


def store_frozen_in_bfloat16(model: nn.Module) -> None:
    """Store frozen linear weights in bfloat16; a tied LM head stays: autocast does not round embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and id(module.weight) not in embeddings:
            module.to(torch.bfloat16)


@contextmanager
def widened(network: nn.Module) -> Iterator[None]:
    """Let layers that are stored in bfloat16 compute in the dtype of what they are given, for a while."""
    stored = [module for module in network.modules() if _is_narrow(module)]
    for module in stored:
        module.forward = partial(_widened_linear, module)
    try:
        yield
    finally:
        for module in stored:
            del module.forward


def _set_dropout_to_zero(config: Any) -> None:
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and any(word in name for word in ("dropout", "pdrop")):
                setattr(part, name, 0.0)


def _is_narrow(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.weight.dtype == torch.bfloat16


def _widened_linear(module: Any, states: Tensor) -> Tensor:
    """A frozen layer that is stored in bfloat16, as if it were stored in the dtype of what it is given."""
    output: Tensor = _Widened.apply(states, module.weight)  # type: ignore[no-untyped-call]
    return output if module.bias is None else output + module.bias


class _Widened(torch.autograd.Function):
    """A product with a frozen weight, which is widened for the time of the product only."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(states, weight.to(states.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        [weight] = ctx.saved_tensors
        return grads[0] @ weight.to(grads[0].dtype), None
