"""`[model]` of the settings."""

from __future__ import annotations

from typing import Literal

from treegrpo_cli.config.sections.base import CountOrNone, Fraction, Positive, Section


class ModelConfig(Section):
    """The policy: any causal LM that transformers loads."""

    path: str = ""
    """The model to train: a folder, or a name on the Hugging Face Hub, of any causal LM that transformers loads. It has
    no default. Code in the folder is never run, and weights are read from safetensors only."""
    chat_template: str = ""
    """A chat template in place of the model's own: a file, or the template itself. Empty keeps the model's own;
    checkpoints keep the one that was used."""
    chat_template_timeout_s: Positive = 5.0
    """Seconds that the chat template may take to write one prompt or observation. A template is a program, and may
    never end."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights. `auto` is bfloat16 on CUDA and float32 elsewhere."""
    device: str = "auto"
    """Where the model runs: `auto`, or a device of torch such as `cpu` or `cuda:1`. `auto` takes CUDA where there is a
    card, else the CPU."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass in place of keeping them. The update takes less memory and more
    time; the result stays the same."""
    lora_rank: CountOrNone = 0
    """Rank of the adapters (LoRA, by peft) that are trained in place of the model's own weights; 0 trains all weights.
    `sampler.lora` says how the engine gets them."""
    lora_alpha: Positive = 32.0
    """What adapters add is scaled by `lora_alpha` / `lora_rank`. Usual are ranks of 16 to 64, with an alpha of 32 or
    twice the rank. Counts only where `lora_rank` is above 0."""
    lora_dropout: Fraction = 0.0
    """Chance that an input of an adapter is left out while training. Above 0, the trainer differs from the engine,
    which leaves nothing out, and shared prefixes are computed in every row. Counts only where `lora_rank` is above
    0."""
    lora_target_modules: str | list[str] = "all-linear"
    """Linear layers that get adapters: `all-linear` for all but the LM head, or names as peft takes them. Counts only
    where `lora_rank` is above 0."""
