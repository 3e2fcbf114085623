"""What a template writes for tool calls -> the reader that reads them back, of those that there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.rollout.conversations import Written
from treegrpo_cli.rollout.foreign_readers import response_template_reader, vllm_parsers, vllm_reader
from treegrpo_cli.rollout.own_readers import read_harmony, read_json
from treegrpo_cli.rollout.writing import Tools
from treegrpo_cli.types import ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reader: TypeAlias = Callable[[str], Sequence[ToolCall]]
"""The text of a turn -> its calls, none where it makes none. Raises ValueError where a call cannot be read."""

MAX_SHOWN_CHARS = 160


OWN_READERS: dict[str, Reader] = {"json": read_json, "harmony": read_harmony}
RESPONSE_TEMPLATE = "response-template"


def choose_reader(
    wanted: str, tokenizer: PreTrainedTokenizerBase, tools: Tools, examples: Sequence[Written], prompt: str
) -> tuple[str, Reader]:
    """Return the reader that is wanted, or of all (`auto`) the first that reads the examples back, with its name.

    Without examples (a template that writes no calls), `auto` goes by the prompt that shows the tools: it names
    `<tool_call>`, or nobody knows what the model is told.

    Raises:
        UserError: nobody reads the examples; an unknown reader.
    """
    if wanted == "auto" and not examples:
        if "<tool_call>" in prompt:
            return "json", read_json
        raise UserError(
            f"chat template{_of(tokenizer)}: shows tools, but neither writes tool calls nor names <tool_call>, so "
            "their format is unknown; name it (environment.tool_parser) or use the inline dialect"
        )
    for name, reader in _readers(wanted, tokenizer, tools, prompt):
        if all(_reads_back(reader, example) for example in examples):
            return name, _strict(reader, _opening(examples))
    raise UserError(
        f"chat template{_of(tokenizer)}: writes a tool call as {_shortened(examples[0].text)}, which "
        f"{_nobody(wanted)}; use the inline dialect (environment.dialect)"
    )


def _readers(wanted: str, tokenizer: Any, tools: Tools, prompt: str) -> Iterator[tuple[str, Reader]]:
    """Yield the readers that come into question; vLLM is imported only where the others do not do."""
    known = [*OWN_READERS, RESPONSE_TEMPLATE]
    if wanted not in ("auto", *known) and wanted not in vllm_parsers():
        more = "" if vllm_parsers() else "; vLLM, which has more, is not installed"
        raise UserError(f"environment.tool_parser: {wanted!r}: {nearest(wanted, [*known, *vllm_parsers()])}{more}")
    for name, reader in OWN_READERS.items():
        if wanted in ("auto", name):
            yield name, reader
    if wanted == RESPONSE_TEMPLATE or (wanted == "auto" and getattr(tokenizer, "response_template", None)):
        yield RESPONSE_TEMPLATE, response_template_reader(tokenizer, tools, prompt)
    if wanted not in known:
        for name in vllm_parsers() if wanted == "auto" else (wanted,):
            if found := vllm_reader(name, tokenizer, tools):
                yield f"vLLM's {name}", found


def _reads_back(reader: Reader, example: Written) -> bool:
    try:
        calls = reader(example.text)
    except ValueError:
        return False
    return [(call.name, call.arguments) for call in calls] == [(call.name, call.arguments) for call in example.calls]


def _strict(reader: Reader, opening: str) -> Reader:
    """Return a reader that says so where a turn opens a call and none is read: those of others keep silent."""

    def read(text: str) -> Sequence[ToolCall]:
        calls = reader(text)
        if not calls and opening and opening in text.rpartition("</think>")[2]:
            raise ValueError(f"what follows {opening} is not written as the chat template writes calls")
        return calls

    return read


def _opening(examples: Sequence[Written]) -> str:
    """Return the mark that opens a call, such as `<tool_call>` or `[TOOL_CALLS]`; "" where there is none."""
    for call, text in ((example.calls[0], example.text) for example in examples):
        before = text.partition(call.name)[0].rpartition("</think>")[2]
        if mark := re.search(r"<[^\s<>=]{3,}>|\[[A-Z_]{3,}\]", before):
            return mark[0]
    return ""


def _of(tokenizer: Any) -> str:
    name = str(getattr(tokenizer, "name_or_path", "") or "")
    return f" of {name}" if name else ""


def _shortened(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…")


def _nobody(wanted: str) -> str:
    if wanted != "auto":
        return f"environment.tool_parser={wanted} does not read back"
    more = "" if vllm_parsers() else " (vLLM, which has more, is not installed)"
    return f"no reader here reads back{more}"
