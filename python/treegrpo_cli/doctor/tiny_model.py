"""Seed -> a folder with a random causal LM of a few thousand weights and its tokenizer, made on the spot.

It has the shape of the small Qwen 2.5 models: grouped queries, biases, embeddings tied to the LM head. Its weights are
drawn wide enough that what a token sees changes what follows: a fault of the third digit would show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

END = "<|im_end|>"
SPECIALS = ("<|endoftext|>", "<|im_start|>", END)
TEXT = "the capital of the country where the author of the work was born is the answer to the question "
VOCABULARY = 320
MAX_TOKENS = 512


def make_tiny_model(folder: Path, seed: int = 0) -> str:
    """Write model (safetensors, float32) and tokenizer; say what it is."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = _make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,  # of size 32, the smallest that vLLM's CPU engine knows
        num_key_value_heads=2,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        model = Qwen2ForCausalLM(config)
    _draw(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"{model.num_parameters():,} weights, {config.num_hidden_layers} layers"


def _make_tokenizer() -> Any:
    """A byte-level BPE tokenizer, learnt from one sentence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIALS), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=SPECIALS[0])


@torch.no_grad()
def _draw(model: Any, generator: torch.Generator) -> None:
    """Draw all matrices and biases; norms stay 1."""
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            continue
        fan_in = weight.shape[-1] if weight.dim() > 1 else 16
        width = 2.0 if "embed_tokens" in name else 1.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * width / fan_in**0.5)
