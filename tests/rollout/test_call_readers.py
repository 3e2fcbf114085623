"""Who reads tool calls: what is read, who is chosen, and what a reader of someone else's may do."""

import re
import signal
import threading
import time
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli.config import Config
from treegrpo_cli.envs import tool_schema
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout import call_readers, foreign_readers
from treegrpo_cli.rollout.conversations import Written
from treegrpo_cli.rollout.dialects import make_dialect
from treegrpo_cli.rollout.example_calls import example_arguments
from treegrpo_cli.rollout.foreign_readers import response_template_reader, vllm_parsers, vllm_reader
from treegrpo_cli.rollout.own_readers import read_harmony, read_json
from treegrpo_cli.types import Action, ToolCall

from tests.chat_templates import FAMILIES, chatml, lfm2
from tests.tiny import CHAT_TEMPLATE, make_tiny_tokenizer

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


def search(query: str) -> str:
    """Search the corpus."""
    return query


SEARCH = tool_schema(search)
CALL = ToolCall("search", {"query": "x"})
JSON = '{"name": "search", "arguments": {"query": "x"}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"```json\n{JSON}\n```", [CALL]),
        (f"I look.\n```\n{JSON}\n```\nThen I answer.", [CALL]),
        (f"```json\n[{JSON}, {JSON}]\n```", [CALL, CALL]),
        (f"```json\n{JSON}\n```\nand\n```json\n{JSON}\n```", [CALL, CALL]),
        (f"```json\n{JSON}", [CALL]),
        (f"<tool_call>\n```json\n{JSON}\n```\n</tool_call>", [CALL]),
        (f"<think>```json\n{JSON}\n```</think>no", []),
        ('```json\n{"name": "Lima", "people": 10}\n```', []),
        (f"```python\nprint({JSON})\n```", []),
        (f"[{JSON}, {JSON}]", [CALL, CALL]),
        (f'[TOOL_CALLS] [{JSON[:-1]}, "id": "abcdef012"}}]', [ToolCall("search", {"query": "x"}, "abcdef012")]),
        ('[{"name": "Lima"}]', []),
        ("[1, 2]", []),
    ],
)
def test_json_is_read_in_a_fence_and_in_a_list(text: str, calls: list[ToolCall]) -> None:
    assert read_json(text) == calls


@pytest.mark.parametrize(
    "text", ['```json\n{"name": "search", "arguments": {"query": }}\n```', '[{"name": "f", "arguments": 1}]']
)
def test_a_call_in_a_fence_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"no JSON|it needs a"):
        read_json(text)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (' to=functions.search<|channel|>commentary json<|message|>{"query": "x"}', [CALL]),
        (
            "<|channel|>analysis<|message|>I look: to=functions.f<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.search <|constrain|>json<|message|>{"query": "x"}<|call|>',
            [CALL],
        ),
        ("<|channel|>final<|message|>Lima", []),
        ("", []),
    ],
)
def test_calls_of_gpt_oss_are_messages_to_functions(text: str, calls: list[ToolCall]) -> None:
    assert read_harmony(text) == calls


@pytest.mark.parametrize("text", [" to=functions.f<|message|>{", " to=functions.f", " to=functions.f<|message|>[1]"])
def test_a_message_to_a_function_without_an_object_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|no content"):
        read_harmony(text)


def chat(template: str, parser: str = "auto", tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or make_tiny_tokenizer()
    tokenizer.chat_template = template
    config = Config.model_validate({"environment": {"dialect": "chat", "tool_parser": parser}})
    return make_dialect(config, tokenizer, [SEARCH])


SHOUTED = "{{- 'CALL ' + f.name + ' WITH ' + (f.arguments | tojson) }}"
ONLY_SHOWS = """\
{%- if tools %}{{- (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def test_a_format_that_nobody_reads_is_refused_by_what_the_template_writes() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.name_or_path = "some/model"
    with pytest.raises(UserError) as error:
        chat(chatml(SHOUTED), tokenizer=tokenizer)
    assert str(error.value).startswith(
        'chat template of some/model: writes a tool call as \'CALL search WITH {"query": "two words"}\', which no '
        "reader here reads back"
    )
    assert str(error.value).endswith("; use the inline dialect (environment.dialect)")


def test_without_vllm_its_formats_are_refused_and_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_readers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no reader here reads back \(vLLM, which has more, is not installed\)"):
        chat(FAMILIES["qwen3.5"].template)
    with pytest.raises(UserError, match=r"environment\.tool_parser: 'lfm2': .*vLLM, which has more, is not installed"):
        chat(CHAT_TEMPLATE, "lfm2")
    assert chat(CHAT_TEMPLATE).reader_name == "json"


def test_a_reader_that_is_wanted_has_to_read_too() -> None:
    with pytest.raises(UserError, match=r"which environment\.tool_parser=harmony does not read back"):
        chat(CHAT_TEMPLATE, "harmony")
    with pytest.raises(UserError, match=r"which environment\.tool_parser=response-template does not read back"):
        chat(CHAT_TEMPLATE, "response-template")
    assert chat(CHAT_TEMPLATE, "json").reader_name == "json"


@needs_vllm
def test_tools_that_vllm_does_not_understand_have_none_of_its_readers() -> None:
    odd = [{"type": "search", "function": {"name": "search", "parameters": {"properties": {}}}}]
    assert "hermes" in vllm_parsers()
    assert vllm_reader("hermes", make_tiny_tokenizer(), [SEARCH]) is not None
    assert vllm_reader("hermes", make_tiny_tokenizer(), odd) is None


def test_an_unknown_reader_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"environment\.tool_parser: 'jsn': did you mean 'json'\?"):
        chat(CHAT_TEMPLATE, "jsn")


def test_inline_tags_have_no_other_reader() -> None:
    config = Config.model_validate({"environment": {"tool_parser": "json"}})
    with pytest.raises(UserError, match=r"environment\.tool_parser: the inline dialect reads its tags itself"):
        make_dialect(config, make_tiny_tokenizer(), [SEARCH])


def test_a_template_that_writes_no_calls_goes_by_what_its_prompt_names() -> None:
    with pytest.raises(UserError, match="neither writes tool calls nor names <tool_call>, so their format is unknown"):
        chat(ONLY_SHOWS)
    with pytest.raises(UserError, match="their format is unknown"):
        chat(lfm2(call=""), tokenizer=FAMILIES["lfm2"].tokenizer())
    named = ONLY_SHOWS.replace("<|im_end|>\\n' }}{%- endif", "Write <tool_call>.<|im_end|>\\n' }}{%- endif", 1)
    assert chat(named).parse(f"<tool_call>{JSON}</tool_call>") == Action(f"<tool_call>{JSON}</tool_call>", (CALL,))
    assert chat(ONLY_SHOWS, "json").parse(JSON).tool_calls == (CALL,)


RESPONSE_TEMPLATE = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "tool_calls": {
            "open_pattern": r"CALL (?P<name>\w+) WITH ",
            "close_pattern": r"(?=\n|$)",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}


def test_a_tokenizers_own_response_template_reads_what_it_describes() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.response_template = RESPONSE_TEMPLATE
    dialect = chat(chatml(SHOUTED), tokenizer=tokenizer)
    assert dialect.reader_name == "response-template"
    assert dialect.parse('I look.\nCALL search WITH {"query": "x"}').tool_calls == (CALL,)
    assert dialect.parse("<answer>Lima</answer>") == Action("<answer>Lima</answer>")
    assert dialect.parse("CALL search WITH {").error.startswith("The tool call could not be read: ")


def hostile(reads: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a reader by a response template that does what it is told."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.response_template = RESPONSE_TEMPLATE
    monkeypatch.setattr(foreign_readers, "READ_S", 0.2)
    monkeypatch.setattr(type(tokenizer), "parse_response", lambda self, text, **options: reads(text))
    return response_template_reader(tokenizer, [SEARCH], "")


def swallow(text: str) -> None:
    try:
        while True:
            re.search(r"(a|aa)+$", text)
    except Exception:
        pass


@pytest.mark.parametrize("reads", [lambda text: re.search(r"(a|aa)+$", text), swallow, lambda text: time.sleep(60)])
def test_a_parser_that_does_not_end_is_stopped(reads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    others, _ = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with pytest.raises(ValueError, match=r"it takes more than 0\.2 s to read"):
            hostile(reads, monkeypatch)("a" * 60 + "b")
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
        assert 900 < signal.setitimer(signal.ITIMER_REAL, 0)[0] < 1000
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, others)


def test_a_parser_that_fails_is_a_call_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="its parser raised ZeroDivisionError"):
        hostile(lambda text: 1 / 0, monkeypatch)("x")
    with pytest.raises(ValueError, match="it needs a name and arguments"):
        hostile(lambda text: {"tool_calls": [{"function": {"name": 3}}]}, monkeypatch)("x")
    monkeypatch.setattr(foreign_readers, "MAX_CHARS", 10)
    with pytest.raises(ValueError, match="more than 10 characters"):
        hostile(lambda text: {}, monkeypatch)("x" * 11)


def test_outside_the_main_thread_a_turn_is_read_without_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    reader = hostile(lambda text: {"tool_calls": [{"name": "search", "arguments": '{"query": "x"}'}]}, monkeypatch)
    thread = threading.Thread(target=lambda: read.extend(reader("x")))
    thread.start()
    thread.join()
    assert read == [CALL]


@needs_vllm
def test_a_turn_that_opens_a_call_which_is_not_read_is_an_error() -> None:
    dialect = chat(FAMILIES["qwen3.5"].template)
    for text in (f"<tool_call>{JSON}</tool_call>", "<tool_call>\nsearch for x\n</tool_call>"):
        action = dialect.parse(text)
        assert action.error.endswith("what follows <tool_call> is not written as the chat template writes calls.")
    assert dialect.parse("<think>a <tool_call>?</think><answer>x</answer>").error == ""


@needs_vllm
def test_a_call_has_the_id_that_the_policy_wrote_and_none_that_a_parser_made_up() -> None:
    for name in ("qwen3.5", "lfm2", "glm4-moe"):
        reader = vllm_reader(FAMILIES[name].reader[7:], FAMILIES[name].tokenizer(), [SEARCH])
        assert reader is not None
        assert [call.id for call in reader(FAMILIES[name].turn)] == [""], name


@needs_vllm
def test_a_parser_that_does_not_fit_the_tokenizer_is_passed_over() -> None:
    assert vllm_reader("deepseek_v3", make_tiny_tokenizer(), [SEARCH]) is None
    assert vllm_reader("lfm2", make_tiny_tokenizer(), [SEARCH]) is None
    assert vllm_parsers()[0] == "qwen3_coder"
    assert set(foreign_readers.USUAL_PARSERS) <= set(vllm_parsers())


FOREIGN = [name for name in FAMILIES if FAMILIES[name].reader.startswith("vLLM")]
READERS: dict[str, Any] = {}


@needs_vllm
@settings(max_examples=80, deadline=None)
@given(st.sampled_from(FOREIGN), st.data())
def test_damaged_turns_are_read_alike_twice_or_cannot_be_read(name: str, data: st.DataObject) -> None:
    """A call, an empty list or a ValueError come back from whatever is made of a good turn, and nothing is printed."""
    family = FAMILIES[name]
    reader = READERS.setdefault(name, vllm_reader(family.reader[7:], family.tokenizer(), [SEARCH]))
    text = (family.two or family.turn) * data.draw(st.integers(1, 2))
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    text = text[:start] + data.draw(st.sampled_from(["", "\x00", "{" * 500, "(" * 500, "é\\", text])) + text[end:]

    def read() -> Any:
        try:
            return list(reader(text))
        except ValueError as error:
            return str(error)

    first = read()
    assert first == read()
    assert isinstance(first, str) or all(isinstance(call.arguments, dict) for call in first)


@needs_vllm
def test_what_a_parser_logs_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    reader = vllm_reader("lfm2", FAMILIES["lfm2"].tokenizer(), [SEARCH])
    assert reader is not None
    assert reader("<|tool_call_start|>[f(x=open('a'))]<|tool_call_end|>") == []
    assert capfd.readouterr() == ("", "")


def test_examples_are_values_of_the_parameters_types() -> None:
    properties = {
        "kind": {"type": "string", "enum": ["near", "far"]},
        "size": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
        "names": {"type": "array", "items": {"type": "string"}},
        "any": {},
    }
    tool = {"function": {"name": "f", "parameters": {"properties": properties}}}
    assert example_arguments(tool) == {"kind": "near", "size": 2, "names": ["two words"], "any": "two words"}


def test_a_reader_reads_back_only_what_is_equal_in_name_and_arguments() -> None:
    text = f"<tool_call>{JSON}</tool_call>"
    for call, reads in ((CALL, True), (ToolCall("find", {"query": "x"}), False), (ToolCall("search", {}), False)):
        assert call_readers._reads_back(read_json, Written((call,), text)) is reads
    assert not call_readers._reads_back(read_json, Written((CALL, CALL), text))
