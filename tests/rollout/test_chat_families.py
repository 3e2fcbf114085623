"""Chat templates of the shapes of well-known families: calls are read back, contexts are the template's own."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.envs import tool_schema
from treegrpo_cli.rollout.dialects import make_dialect

from tests.chat_templates import FAMILIES, QWEN_CALL, Family, chatml


def reads_it(name: str) -> Any:
    """Return the family's name as a parameter, skipped where its reader is not installed."""
    missing = FAMILIES[name].reader.startswith("vLLM") and find_spec("vllm") is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="vLLM's parser reads it"))


NAMES = [reads_it(name) for name in FAMILIES]


def search(query: str) -> str:
    """Search the corpus.

    Args:
        query: Words to look for.
    """
    return query


def weigh(item: str, grams: float, count: int, fragile: bool, labels: list[str]) -> str:
    """Weigh an item."""
    return item


SEARCH = tool_schema(search)
QUESTION = {"role": "user", "content": "Who?"}


def chat(family: Family, *tools: dict[str, Any], parser: str = "auto") -> Any:
    config = Config.model_validate({"environment": {"dialect": "chat", "tool_parser": parser}})
    return make_dialect(config, family.tokenizer(), tools or (SEARCH,), family.end_ids())


CHATS: dict[str, Any] = {}


def chat_of(name: str) -> Any:
    """Return the dialect of a family, made once."""
    return CHATS.setdefault(name, chat(FAMILIES[name]))


def calls_of(family: Family, *queries: str) -> dict[str, Any]:
    """Return the structured message of a turn that searches for these."""

    def call(id_: str, query: str) -> dict[str, Any]:
        arguments: Any = {"query": query}
        if family.arguments_are_text:
            arguments = json.dumps(arguments, separators=(",", ":"))
        return {"id": id_, "type": "function", "function": {"name": "search", "arguments": arguments}}

    made = [call(id_, query) for id_, query in zip(family.ids, queries, strict=False)]
    content = None if family.arguments_are_text else ""
    return {"role": "assistant", "content": content, "reasoning_content": family.thought, "tool_calls": made}


def opened(family: Family, text: str) -> str:
    """Return the text of a turn behind its thought, where the prompt opens one."""
    return f"{family.thought}\n</think>\n\n{text}" if family.thought else text


def result(family: Family, content: str, index: int = 0) -> dict[str, Any]:
    return {"role": "tool", "name": "search", "content": content, "tool_call_id": family.ids[index]}


def tokens(family: Family, conversation: list[dict[str, Any]]) -> list[int]:
    """Return the conversation as the template writes it from scratch."""
    tokenizer = family.tokenizer()
    text = tokenizer.apply_chat_template(conversation, tools=[SEARCH], add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_turn_as_the_model_writes_it_is_read(name: str) -> None:
    family = FAMILIES[name]
    dialect = chat_of(name)
    assert dialect.reader_name == family.reader
    for text, queries in ((family.turn, ["capital of Peru"]), (family.two, ["a", "b"])):
        if text:
            action = dialect.parse(opened(family, text))
            assert action.error == ""
            assert [(c.name, c.arguments) for c in action.tool_calls] == [("search", {"query": q}) for q in queries]


@pytest.mark.parametrize("name", NAMES)
def test_a_context_built_turn_by_turn_is_the_conversation_from_scratch(name: str) -> None:
    family = FAMILIES[name]
    dialect, tokenizer = chat_of(name), family.tokenizer()
    context, conversation = dialect.prompt_ids([QUESTION]), [QUESTION]
    assert context == tokens(family, conversation)
    turns = [(family.turn, ["capital of Peru"], ["Lima"]), (family.turn, ["capital of Peru"], ['"Li\nma"'])]
    for text, queries, found in [*turns, *([(family.two, ["a", "b"], ["1", "2"])] if family.two else [])]:
        turn = tokenizer.encode(opened(family, text) + family.end, add_special_tokens=False)
        results = [result(family, content, i) for i, content in enumerate(found)]
        context += turn + dialect.observation_ids(results, turn)
        conversation += [calls_of(family, *queries), *results]
        assert context == tokens(family, conversation)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_of_every_type_are_read_back(name: str) -> None:
    assert chat(FAMILIES[name], tool_schema(weigh), SEARCH).reader_name == FAMILIES[name].reader


@pytest.mark.parametrize("name", NAMES)
def test_what_a_template_would_leave_out_of_earlier_turns_is_said_at_the_start(name: str) -> None:
    notices = chat_of(name).notices
    assert [expected in notice for expected, notice in zip(FAMILIES[name].notices, notices, strict=True)] == (
        [True] * len(notices)
    )


def test_thoughts_that_are_left_out_also_behind_a_result_are_said_to_be() -> None:
    always = chatml(QWEN_CALL, said="{%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}")
    [notice] = chat(replace(FAMILIES["qwen3"], template=always)).notices
    assert notice.startswith("chat template: leaves thoughts out of earlier turns; trees keep every token")


def test_the_documented_families_and_their_readers_are_those_of_the_tests() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "chat-templates.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    told = {name: (reader, lost) for name, _, reader, lost in rows[2:]}
    assert {name: reader for name, (reader, _) in told.items()} == {n: family.reader for n, family in FAMILIES.items()}
    assert {name for name, (_, lost) in told.items() if lost} == {n for n, family in FAMILIES.items() if family.notices}
