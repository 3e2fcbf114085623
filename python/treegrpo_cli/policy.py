"""Config -> the model that is trained, the frozen one it is held to, and their log-probabilities.

Precision. `float32` computes in float32. `bfloat16` keeps the trained weights, their gradients and
Adam's moments in float32 and computes matrix products in bfloat16 (autocast). At a learning rate of
1e-6 an update is far below the spacing of bfloat16 numbers (2^-8 of a weight), so that weights kept in
bfloat16 would not move at all. Frozen linear weights (the reference, and the base under LoRA) are
stored in bfloat16: autocast would round them to that anyway, so their results are the same bits.

Dropout of the model is off, or the policy that is trained would not be the one that sampled; LoRA's own
is as configured.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from treegrpo_cli.config import Config, ModelConfig
from treegrpo_cli.devices import choose_device
from treegrpo_cli.errors import UserError
from treegrpo_cli.loss import token_log_probs
from treegrpo_cli.pretrained import load_causal_lm, read_model_config
from treegrpo_cli.types import TrainBatch


class Policy:
    """The trained model and its reference, where the KL asks for one.

    `model` is the plain causal LM; `network` is what is called: the same, or peft's wrapper around it.
    """

    model: Any
    network: Any
    reference: Any

    def __init__(self, config: Config) -> None:
        self.temperature = config.rollout.temperature
        self.uses_lora = config.model.lora_rank > 0
        self.device = choose_device(config.model.device)
        self.dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
        self.model = load_model(config.model.path)
        self.network = _add_lora(self.model, config.model) if self.uses_lora else self.model
        if config.model.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._place(self.network).train()
        self.reference = None
        if config.loss.kl_coef > 0 and not self.uses_lora:
            self.reference = self._place(load_model(config.model.path).requires_grad_(False)).eval()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return what the optimizer moves, by name in `network`; tied weights once."""
        return {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}

    def logprobs(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Return log-probabilities, with gradient, and entropies of the U trained tokens: [U], in nats."""
        return self._token_log_probs(self.network, batch)

    @torch.no_grad()
    def ref_logprobs(self, batch: TrainBatch) -> Tensor:
        """Return the reference's log-probabilities of the same tokens, [U]; under LoRA it is the base."""
        with self.network.disable_adapter() if self.uses_lora else nullcontext():
            return self._token_log_probs(self.reference or self.network, batch)[0]

    def weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield the plain model's `state_dict()`, tied names included, adapters merged on the way.

        The training weights stay as they are; a yielded tensor may share their memory.
        """
        modules = dict(self.model.named_modules())
        for name, tensor in self.model.state_dict().items():
            if any(part.startswith("lora_") for part in name.split(".")):
                continue
            module, _, parameter = name.rpartition(".base_layer.")
            if module and parameter == "weight":
                tensor = tensor.float() + modules[module].get_delta_weight("default").detach()
            yield (
                name.replace(".base_layer.", "."),
                tensor.to(dtype) if tensor.is_floating_point() else tensor,
            )

    def _token_log_probs(self, network: Any, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        # Only columns in front of a trained token go through the LM head; the prompts do not.
        columns = batch.loss_mask.any(dim=0).nonzero().squeeze(1)
        positions = torch.arange(batch.input_ids.shape[1], device=self.device).expand_as(batch.input_ids)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits: Tensor = network(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask.long(),
                position_ids=positions,
                logits_to_keep=columns - 1,
                use_cache=False,
            ).logits
        log_probs, entropy = token_log_probs(logits, batch.input_ids[:, columns], self.temperature)
        mask = batch.loss_mask[:, columns]
        return log_probs[mask], entropy[mask]

    def _place(self, model: Any) -> Any:
        if self.dtype == torch.bfloat16:
            _store_frozen_in_bfloat16(model)
        return model.to(self.device)


def load_model(path: str | Path) -> Any:
    """Load a causal LM in float32, on the CPU, with every dropout at 0.

    Raises UserError where there is no model, or none whose forward can skip the logits of the prompt.
    """
    disable_progress_bar()  # the program shows its own
    config = read_model_config(path)
    _set_dropout_to_zero(config)
    model = load_causal_lm(path, torch.float32, config)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UserError(f"model.path: {type(model).__name__} cannot be trained: its forward has no logits_to_keep")
    return model


def _set_dropout_to_zero(config: Any) -> None:
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if isinstance(value, float) and any(word in name for word in ("dropout", "pdrop", "jitter")):
                setattr(part, name, 0.0)


def _store_frozen_in_bfloat16(model: nn.Module) -> None:
    """Store frozen linear weights in bfloat16; a tied LM head stays: autocast does not round embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and id(module.weight) not in embeddings:
            module.to(torch.bfloat16)


def _add_lora(model: Any, settings: ModelConfig) -> Any:
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
    except ValueError as error:
        raise UserError(f"model.lora_target_modules: {' '.join(str(error).split())}") from None
    adapted = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    if not all(hasattr(module.get_base_layer(), "weight") for module in adapted):
        raise UserError("model.lora_target_modules: fused experts cannot be adapted, name linear modules")
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.tie_word_embeddings and any(module is end for module in adapted for end in ends):
        raise UserError("model.lora_target_modules: a tied embedding cannot be adapted, name other modules")
    return network
