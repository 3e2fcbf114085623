"""SentencePiece tokenizers mark the beginning of a text with a space: behind a sampled turn nothing begins."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from treegrpo_cli.config import Config
from treegrpo_cli.envs import tool_schema
from treegrpo_cli.rollout.dialects import make_dialect
from treegrpo_cli.rollout.writing import Encoder

from tests.chat_templates import FAMILIES
from tests.tiny import make_tiny_tokenizer

MARKS = ["<s>", "</s>", *FAMILIES["mistral"].marks]
TEXT = "Who wrote it? The author of the work was born in the capital of the country. [INST] [/INST] no yes"
PLAIN_TEMPLATE = """\
{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{- ' ' + m.content + ' ' }}{%- endif %}{%- endfor %}"""


def search(query: str) -> str:
    """Search the corpus."""
    return query


def sentencepiece(kind: str, marks: tuple[str, ...] = tuple(MARKS)) -> PreTrainedTokenizerFast:
    """Return a tokenizer as of Llama 2 (`legacy`, the space is put by the normaliser) or Mistral (`first`)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = ["▁", *(chr(c) for c in range(33, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=alphabet,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens(list(marks))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", clean_up_tokenization_spaces=False
    )


KINDS = ["legacy", "first", "always"]


def written(tokenizer: Any, ids: list[int]) -> str:
    """Return the text that stands in a context's tokens, its first space too."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return "".join(chr(int(t[3:5], 16)) if t.startswith("<0x") else t for t in tokens).replace("▁", " ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_alone_begins_with_a_space_that_it_has_not_behind_another(kind: str) -> None:
    tokenizer = sentencepiece(kind)
    encoder = Encoder(tokenizer)
    for text in ("yes", "\n\nyes", " yes", ".", "x", "\n", "no\n</s>[INST]yes"):
        behind = encoder.behind(text)
        assert written(tokenizer, behind).replace("</s>[INST] yes", "</s>[INST]yes") == text
        assert tokenizer.encode(f"q{text}", add_special_tokens=False)[-len(behind) :] == behind
    assert written(tokenizer, encoder.whole("yes")) == " yes"
    assert encoder.behind("") == []


def test_other_tokenizers_write_no_space_and_are_asked_once() -> None:
    tokenizer = make_tiny_tokenizer()
    for text in ("yes", "\n\nyes", " yes", "<|im_end|>\nyes", ""):
        assert Encoder(tokenizer).behind(text) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_inline_observation_starts_without_a_space(kind: str) -> None:
    tokenizer = sentencepiece(kind)
    dialect = make_dialect(Config(), tokenizer, [tool_schema(search)])
    turn = tokenizer.encode("<search>it</search>", add_special_tokens=False)
    ids = dialect.observation_ids([{"role": "tool", "name": "search", "content": "the author"}], turn)
    assert written(tokenizer, ids) == "\n\n<information>the author</information>\n\n"
    text = "<search>it</search>\n\n<information>the author</information>\n\n"
    assert turn + ids == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_without_marks_adds_its_own_spaces_only(kind: str) -> None:
    tokenizer = sentencepiece(kind, ("<s>", "</s>"))
    tokenizer.chat_template = PLAIN_TEMPLATE
    dialect = make_dialect(Config.model_validate({"environment": {"dialect": "chat"}}), tokenizer, [])
    question, notice = {"role": "user", "content": "Who?"}, {"role": "user", "content": "no"}
    prompt = dialect.prompt_ids([question])
    turn = Encoder(tokenizer).behind(" yes")
    context = prompt + turn + dialect.observation_ids([notice], turn)
    text = tokenizer.apply_chat_template(
        [question, {"role": "assistant", "content": "yes"}, notice], tokenize=False, add_generation_prompt=True
    )
    assert written(tokenizer, context) == f" {text}"


@pytest.mark.parametrize("kind", KINDS)
def test_mistrals_results_are_the_conversation_from_scratch(kind: str) -> None:
    family, tokenizer = FAMILIES["mistral"], sentencepiece(kind)
    tokenizer.chat_template = family.template
    config = Config.model_validate({"environment": {"dialect": "chat"}})
    dialect = make_dialect(config, tokenizer, [tool_schema(search)])
    question = {"role": "user", "content": "Who?"}
    turn = Encoder(tokenizer).behind(family.turn + family.end)
    result = {"role": "tool", "name": "search", "content": "the author", "tool_call_id": family.ids[0]}
    context = dialect.prompt_ids([question]) + turn + dialect.observation_ids([result], turn)
    call = {"name": "search", "arguments": {"query": "capital of Peru"}}
    said = {"role": "assistant", "content": "", "tool_calls": [{"id": family.ids[0], "function": call}]}
    text = tokenizer.apply_chat_template(
        [question, said, result], tools=[tool_schema(search)], tokenize=False, add_generation_prompt=True
    )
    assert context == tokenizer.encode(text, add_special_tokens=False)
