"""A chat template that does not end, fills memory, or fails in any other way is one line."""

import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout import templates
from treegrpo_cli.rollout.dialects import make_dialect
from treegrpo_cli.rollout.templates import render

from tests.tiny import make_tiny_tokenizer

HI = [{"role": "user", "content": "Hi"}]
LOOPS = "{% for i in range(99999) %}" * 6 + "{% set x = i %}" + "{% endfor %}" * 6


def write(template: str, timeout_s: float = 60) -> str:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    return render(tokenizer, HI, (), timeout_s=timeout_s)


def template_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "treegrpo-chat-template"]


def stopped() -> bool:
    """Whether no template runs any more, soon."""
    end = time.monotonic() + 20
    while template_threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not template_threads()


def test_what_a_template_writes_comes_back() -> None:
    assert write("{{ messages[0].content }}!") == "Hi!"


def test_a_template_that_does_not_end_is_stopped() -> None:
    with pytest.raises(UserError, match=r"does not end within 0\.2 s \(model\.chat_template_timeout_s\)"):
        write(LOOPS, timeout_s=0.2)
    assert stopped()


def test_a_template_that_does_not_end_for_calls_is_asked_once() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = (
        f"{{% if messages | selectattr('tool_calls', 'defined') | list %}}{LOOPS}{{% endif %}}{tokenizer.chat_template}"
    )
    search = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
    settings = {"environment": {"dialect": "chat"}, "model": {"chat_template_timeout_s": 0.2}}
    with pytest.raises(UserError, match=r"does not end within 0\.2 s"):
        make_dialect(Config.model_validate(settings), tokenizer, [search])
    assert stopped()


def test_a_template_that_fills_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    filled = iter([0, 1 << 20, 3 << 20])
    monkeypatch.setattr(templates, "MAX_MEMORY_BYTES", 2 << 20)
    monkeypatch.setattr(templates, "_peak_bytes", lambda: next(filled))
    with pytest.raises(UserError, match="takes more than 2 MiB of memory"):
        write(LOOPS)
    assert stopped()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much is used")
@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content * 10**10 }}",
        "{{ messages[0].content | center(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ [0] * 10**10 }}",
    ],
)
def test_one_instruction_that_asks_for_much_memory_gets_none(template: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match="takes more than 1024 MiB of memory"):
        write(template)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("template", ["{{ 9 ** (9 ** 9) }}", "{{ 2 ** 4000 * 2 ** 4000 }}"])
def test_a_number_that_would_take_for_ever_is_not_computed(template: str) -> None:
    with pytest.raises(UserError, match="numbers of this size are not for templates"):
        write(template)
    assert write("{{ '=' * 3 }}{{ 6 * 7 }}{{ 2 ** 10 }}{{ 2 ** -1 }}") == "===4210240.5"


def test_the_peak_of_memory_is_counted_in_bytes() -> None:
    assert 20 << 20 < templates._peak_bytes() < 1 << 40


def test_a_template_that_writes_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEXT_CHARS", 1000)
    with pytest.raises(UserError, match="chat template: writes 1,001 characters for 1 messages"):
        write("{{ 'x' * 1001 }}")


def test_a_template_that_writes_much_of_its_own_is_refused_and_long_messages_are_not() -> None:
    with pytest.raises(UserError, match="chat template: writes 1,200,000 characters for 1 messages"):
        write("{{ 'x' * 1200000 }}")
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content | tojson }}"
    content = "\u00e9<\n" * 500_000
    text = render(tokenizer, [{"role": "user", "content": content}], (), timeout_s=60)
    assert len(text) > len(content)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError: Range too big"),
        ("\n{% if %}", "line 2: Expected an expression"),
        ("{{ raise_exception('no system role') }}", "no system role$"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
        ("{{ messages.append(1) }}", "is not safely callable|SecurityError|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^chat template: cannot write these messages: .*({message})") as error:
        write(template)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["inline", "chat"])
def test_the_limit_is_a_setting_of_both_dialects(kind: Any) -> None:
    config = Config.model_validate({"environment": {"dialect": kind}, "model": {"chat_template_timeout_s": 0.1}})
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = LOOPS
    with pytest.raises(UserError, match=r"does not end within 0\.1 s"):
        make_dialect(config, tokenizer, [])
    assert stopped()
