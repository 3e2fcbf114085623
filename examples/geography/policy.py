"""Facts -> an untrained policy: a tokenizer of words and tags, and a Qwen3 of 0.4 M weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from facts import OBJECT_TYPES, Fact, sentence
from questions import ask, compositions
from scripts import THOUGHTS
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

MAX_MODEL_LEN = 512

PAD, UNKNOWN, TURN_START, TURN_END = "<|endoftext|>", "<|unknown|>", "<|im_start|>", "<|im_end|>"
TAGS = [f"<{end}{name}>" for name in ("think", "search", "information", "answer") for end in ("", "/")]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENVIRONMENT_WORDS = """\
system user assistant tool Doc 1 2 3 ( Title : ) No passage was found.
This is not an action. Allowed: search query answer, or your answer to finish. Try again."""
"""What the chat template and the search environment write, beside passages and tags."""


def make_tokenizer(
    facts: Iterable[Fact], max_model_len: int = MAX_MODEL_LEN, further_words: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the words of corpus, questions, scripts and environment, and further ones."""
    texts = [*further_words, ENVIRONMENT_WORDS, *OBJECT_TYPES, *THOUGHTS, *(ask(c, "") for c in compositions())]
    texts += [sentence(fact.relation, fact.subject, fact.object) for fact in facts]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    special, tags = [PAD, UNKNOWN, TURN_START, TURN_END], TAGS
    vocabulary = {token: i for i, token in enumerate([*special, *tags, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=TURN_END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_model_len,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Return a small Qwen3 with random weights, except that its heads start by copying what they read.

    Copying is most of what a search agent does, and heads that write at random take many times longer to
    find it.
    """
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    for layer in model.model.layers:
        attention = layer.self_attn
        _make_copying(attention.v_proj.weight, attention.o_proj.weight, config.head_dim)
    return model


@torch.no_grad()
def _make_copying(value: torch.Tensor, output: torch.Tensor, head_dim: int) -> None:
    """Let the output projection undo the value projection, whose heads serve equally many query heads."""
    torch.nn.init.orthogonal_(value)
    heads = value.view(-1, head_dim, value.shape[1])
    num_query_heads = output.shape[1] // head_dim
    output.copy_(heads.repeat_interleave(num_query_heads // len(heads), dim=0).flatten(0, 1).T)
