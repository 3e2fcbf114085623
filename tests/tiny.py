"""Seed -> a model directory: a random Qwen3 of a few thousand weights with a byte-level tokenizer.

It is what a test loads where the weights do not matter: any text encodes and decodes to itself, the tags
of both dialects are single tokens, embeddings are tied as in the small Qwen models, and the weights are
scaled so that sampling is neither uniform nor stuck on one token.
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = [
    f"<{slash}{name}>"
    for name in ("think", "search", "information", "answer", "tool_call", "tool_response")
    for slash in ("", "/")
]
MERGES_TEXT = "the capital of the country where the author of the work was born is the answer to the question "
NON_ASCII_SCALE = 0.05

CHAT_TEMPLATE = """\
{%- if tools %}
{%- set system = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{{- '<|im_start|>system\\n' + system + 'Tools:' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\nCall one as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>tool\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif not (message.role == 'system' and tools and loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{%- set arguments = function.arguments | tojson %}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' + arguments + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer: 256 bytes, some merges, three special tokens, the tags as tokens.

    `<|im_end|>` ends a turn (eos); `<|endoftext|>` pads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([MERGES_TEXT] * 3, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT, TURN_START, TURN_END])
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_tiny_model(
    path: str | Path,
    seed: int = 0,
    *,
    hidden: int = 64,
    layers: int = 2,
    max_model_len: int = 512,
    tied: bool = True,
) -> Path:
    """Write a random model (safetensors, float32), its tokenizer and generation config; return the path."""
    tokenizer = make_tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that the CPU engine knows
        max_position_embeddings=max_model_len,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    _fill(model, tokenizer, torch.Generator().manual_seed(seed))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([TURN_END, END_OF_TEXT])
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def _fill(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator) -> None:
    """Draw the weights: layers that outweigh a token's own embedding, logits with a deviation of about 2.

    Bytes beyond ASCII get small embeddings, so that few of them are sampled and most text is readable.
    """
    hidden = model.config.hidden_size
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                continue
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            is_vocabulary = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            std = (2.5 if is_vocabulary else 4.0 if is_output else 1.5) / (
                hidden**0.5 if is_vocabulary else weight.shape[1] ** 0.5
            )
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
            if is_vocabulary:
                weight[_non_ascii(tokenizer)] *= NON_ASCII_SCALE


def _non_ascii(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids that decode to something other than printable ASCII and line ends."""
    return [
        token
        for token in range(len(tokenizer))
        if not all(" " <= c <= "~" or c == "\n" for c in tokenizer.decode([token]))
    ]
