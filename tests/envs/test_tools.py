"""Functions as tools, the calculator, search, instructions, and questions in a single turn."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.envs import (
    check_environment,
    load_environment,
    tool_schema,
)
from treegrpo_cli.envs.answers import MAX_CONTENT_CHARS
from treegrpo_cli.envs.calculator import calculate, make_tasks
from treegrpo_cli.envs.tools import ToolEnvironment, ToolState
from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.types import Action, StepResult, Task, ToolCall

from tests.envs.playing import ANSWER, CORPUS, Odd, Scripted, called, config, contents, reset, step, write_module


@pytest.mark.parametrize("dialect", ["inline", "chat"])
def test_the_calculator_answers_and_ends(dialect: str) -> None:
    environment = load_environment(config(dialect=dialect))
    start, (prompt,) = reset(environment)
    assert prompt["content"].endswith("\n\nWhat is it?")
    assert ("<calculate>expression</calculate>" in prompt["content"]) == (dialect == "inline")
    after, result = step(environment, start, called("calculate", expression="2 + 2"))
    assert (contents(result), result.num_tool_calls, result.done) == (["4"], 1, False)
    assert (start, after) == (ToolState(), ToolState(("4",)))
    assert step(environment, after, ANSWER) == (after, StepResult(done=True))


def test_a_turn_that_is_no_action_is_told_what_is_allowed() -> None:
    _, result = step(load_environment(config()), ToolState(), Action("Let me see"))
    (message,) = result.observation
    assert (message["role"], result.done, result.num_tool_calls) == ("user", False, 0)
    assert "<calculate>expression</calculate>, or <answer>your answer</answer>" in message["content"]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (called("divide", a=1), "Error: there is no tool 'divide'. Tools: calculate."),
        (called("calculate"), "Error: argument 'expression' of calculate: missing."),
        (
            called("calculate", expression="1", x=2),
            "Error: argument 'x' of calculate: unknown; valid: expression.",
        ),
        (
            called("calculate", expression=[1]),
            "Error: argument 'expression' of calculate: Input should be a valid",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_the_policys_mistake(action: Action, message: str) -> None:
    state, result = step(load_environment(config()), ToolState(), action)
    assert contents(result)[0].startswith(message)
    assert (state, result.num_tool_calls, result.done) == (ToolState(), 0, False)


def look(town: str) -> Any:
    """Look a town up.

    Args:
        town: Its name.
    """
    return {"Lima": "Peru", "Atlantis": object}[town]


def test_a_tool_that_raises_is_shown_counted_and_said_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    both = Action("", (ToolCall("look", {"town": "Lima"}), ToolCall("look", {"town": "Rome"})))
    environment = ToolEnvironment([look])
    for _ in range(2):
        state, result = step(environment, ToolState(), both, tool_retries=2)
        assert contents(result) == ["Peru", "Error: KeyError: 'Rome'"]
        assert (state.results, result.num_tool_calls, result.num_failed_tool_calls) == (("Peru",), 2, 1)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("tool look raised KeyError: 'Rome' (reported once for each kind of error)\nTraceback")
    assert ", in look\n" in said
    assert said.endswith("\nKeyError: 'Rome'")


def test_a_tool_that_raises_closes_the_branch_where_that_is_asked(tmp_path: Path) -> None:
    path = write_module(tmp_path, "def look(town: str) -> str:\n    raise ValueError(town)\n", "look")
    environment = load_environment(config(path, tool_errors="close"))
    with pytest.raises(ToolError, match=r"^ValueError: Rome$"):
        step(environment, ToolState(), called("look", town="Rome"), tool_errors="close")


def test_a_tools_lost_connection_is_no_result() -> None:
    def fetch(page: str) -> str:
        """Fetch a page."""
        raise ConnectionResetError(page)

    with pytest.raises(ToolError, match=r"^ConnectionResetError: x$"):
        step(ToolEnvironment([fetch]), ToolState(), called("fetch", page="x"))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ({1: 2**70}, '{"1": 1180591620717411303424}'),
        ({"a": "x\ud800"}, '{"a": "x?"}'),
        ("x\udc80", "x?"),
        (Path("x"), '"x"'),
        (Odd(), "Error: SystemExit: 1"),
    ],
)
def test_any_result_becomes_text(result: Any, text: str) -> None:
    def give() -> Any:
        """Give it."""
        return result

    assert contents(step(ToolEnvironment([give]), ToolState(), called("give"))[1]) == [text]


def test_a_result_without_end_is_cut() -> None:
    def give() -> str:
        """Give it."""
        return "x" * (MAX_CONTENT_CHARS + 1)

    state, result = step(ToolEnvironment([give]), ToolState(), called("give"))
    assert contents(result) == list(state.results) == ["x" * MAX_CONTENT_CHARS]
    long = StepResult(({"role": "user", "content": "x" * (MAX_CONTENT_CHARS + 1)},))
    assert contents(step(Scripted((0, long)), 0, ANSWER)[1]) == ["x" * MAX_CONTENT_CHARS]


def test_a_result_that_holds_itself_is_a_failed_call() -> None:
    def give() -> Any:
        """Give it."""
        circle: list[Any] = []
        circle.append(circle)
        return circle

    _, result = step(ToolEnvironment([give]), ToolState(), called("give"))
    assert contents(result)[0].startswith("Error: ")
    assert result.num_failed_tool_calls == 1


def test_the_calls_of_a_turn_run_at_once_and_keep_their_order() -> None:
    met = threading.Barrier(2, timeout=20)

    def wait(n: int) -> dict[str, int]:
        """Wait for the other."""
        met.wait()
        return {"n": n}

    action = Action("", (ToolCall("wait", {"n": 1}), ToolCall("wait", {"n": "2"})))
    state, result = step(ToolEnvironment([wait]), ToolState(), action)
    assert contents(result) == ['{"n":1}', '{"n":2}']
    assert (state.results, result.num_tool_calls) == (('{"n":1}', '{"n":2}'), 2)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("-(2 - 5) ** 2", "-9"),
        ("7 // 2 + 7 % 4", "6"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 0.5", "1.41421356237"),
        ("10 / 4\n", "2.5"),
        ("12 / 4", "3"),
        ("1 / 0", "Error: division by zero"),
        ("0 ** -1", "Error: division by zero"),
        ("(0 - 8) ** 0.5", "Error: a negative number has no such power"),
        ("9 ** 9 ** 9", "Error: the power is too large"),
        ("2.5 ** 999999", "Error: the power is too large"),
        ("9" * 60 + "*" + "9" * 60, "Error: the result is too large"),
        ("1" * 201, "Error: an expression has at most 200 characters"),
        ("(" * 199, "Error: this is no expression"),
        ("-" * 199 + "1", "-1"),
        ("1 (2)", "Error: this is no expression"),
        ("()", "Error: this is no expression"),
        ("...", "Error: this is no expression"),
        ("1 +", "Error: this is no expression"),
        ("007", "Error: this is no expression"),
        ("__import__('os')", "Error: only numbers"),
        ("1e9", "Error: only numbers"),
        ("", "Error: only numbers"),
    ],
)
def test_the_calculator_computes_arithmetic_and_nothing_else(expression: str, value: str) -> None:
    assert calculate(expression).startswith(value)
    assert value.startswith("Error") or calculate(expression) == value


def test_calculator_tasks_are_those_of_their_seed_and_have_whole_answers() -> None:
    tasks = make_tasks(50, seed=3)
    assert tasks == make_tasks(50, seed=3) != make_tasks(50, seed=4)
    assert all(str(task.ground_truth).isdecimal() and task.columns["answer"] == task.ground_truth for task in tasks)
    product = next(task for task in tasks if task.question.startswith("What is (") and "* " in task.question)
    a, b, c = (int(n) for n in product.question[9:-1].replace("(", "").replace(")", "").replace("+", "*").split("*"))
    assert product.ground_truth == str((a + b) * c)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    (tmp_path / "corpus.jsonl").write_text(CORPUS)
    return str(tmp_path / "corpus.jsonl")


@pytest.mark.parametrize("dialect", ["inline", "chat"])
def test_a_search_shows_passages_and_the_state_remembers_them(corpus: str, dialect: str) -> None:
    environment = load_environment(config("search", dialect=dialect, options={"corpus": corpus, "topk": 2}))
    asyncio.run(check_environment(environment, timeout_s=60))
    start, (prompt,) = reset(environment)
    assert "<answer> Lisbon </answer>" in prompt["content"]
    assert ("<search>" in prompt["content"]) == (dialect == "inline")
    after, result = step(environment, start, called("search", query="capital of Ecuador"))
    shown = "Doc 1(Title: Quito) The capital of Ecuador.\nDoc 2(Title: Lima) The capital of Peru."
    assert contents(result) == [shown]
    assert (start.results, after.results) == ((), (shown,))
    _, nothing = step(environment, after, called("search", query="xyzzy"))
    assert contents(nothing) == ["No passage was found."]


USER = "user"


def prompted(environment: Any, *contents_: str) -> list[str]:
    """The prompt's contents where a row brings these user messages, or a question alone."""
    messages = tuple({"role": USER, "content": content} for content in contents_) or None
    return [message["content"] for message in reset(environment, Task("What is it?", messages=messages))[1]]


@pytest.mark.parametrize("dialect", ["inline", "chat"])
def test_rows_bring_their_own_instructions_only_if_they_name_every_tool(corpus: str, dialect: str) -> None:
    environment = load_environment(config("search", options={"corpus": corpus}, dialect=dialect))
    whole = "Use <search>words</search>, end with <answer>it</answer>. What is it?"
    assert prompted(environment, whole) == [whole]
    for lacking in ("Write <answer>x</answer>. What is it?", "Use <search>words</search>. What is it?", "What is it?"):
        [content] = prompted(environment, lacking)
        assert content.startswith("Answer the question below.")
        assert content.endswith(f"\n\n{lacking}")


def test_tools_are_never_hidden_by_what_stands_in_a_question(corpus: str) -> None:
    environment = load_environment(config("search", options={"corpus": corpus}))
    question = "What do <search> and <answer> mean?"
    [message] = reset(environment, Task(question))[1]
    assert message["content"].startswith("Answer the question below.")
    two = ToolEnvironment([calculate, look])
    named_one = "Use <calculate>1</calculate>, then <answer>2</answer>."
    [content] = prompted(two, named_one)
    assert "- <look>town</look>: Look a town up." in content
    named_both = f"{named_one} Or <look>Lima</look>."
    assert prompted(two, named_both) == [named_both]


def test_instructions_of_the_settings_stand_before_any_row(corpus: str) -> None:
    none = load_environment(config("search", options={"corpus": corpus, "instructions": ""}))
    assert prompted(none) == ["What is it?"]
    own = load_environment(config("search", options={"corpus": corpus, "instructions": "Look it up."}))
    whole = "Use <search>words</search>, end with <answer>it</answer>."
    assert prompted(own, whole) == [f"Look it up.\n\n{whole}"]
    bare = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is it?"})
    system, user = reset(own, Task("What is it?", messages=bare))[1]
    assert (system, user["content"]) == (bare[0], "Look it up.\n\nWhat is it?")


def test_a_single_turn_is_the_whole_episode() -> None:
    environment = load_environment(config("single-turn"))
    assert prompted(environment) == ["What is it?"]
    state, _ = reset(environment)
    assert step(environment, state, Action("whatever")) == (None, StepResult(done=True))
    assert environment.tools == ()
    asked = load_environment(config("single-turn", options={"instructions": "Be brief."}))
    assert prompted(asked) == ["Be brief.\n\nWhat is it?"]


def test_the_schema_of_a_tool_comes_from_signature_and_docstring() -> None:
    def look(words: list[str], limit: int = 3) -> str:
        """Look for words
        in a text.

        More about it.

        Args:
            words: What to look for;
                several are allowed.
            limit (int): How many.

        Returns:
            str: nothing
        """
        return ""

    assert tool_schema(look) == {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look for words in a text.",
            "parameters": {
                "type": "object",
                "properties": {
                    "words": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "What to look for; several are allowed.",
                    },
                    "limit": {"type": "integer", "description": "How many."},
                },
                "required": ["words"],
            },
        },
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(x): return x", "tool f: parameter 'x' has no annotation"),
        ("def f(x: socket.socket): return x", "tool f: parameter 'x' has a type without a JSON schema"),
        ("def f(x: 'Nothing'): return x", "f: cannot resolve its annotations"),
    ],
)
def test_a_function_that_cannot_be_a_tool_says_why(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_environment(config(write_module(tmp_path, f"import socket\n{body}", "f")))


def test_a_result_carries_the_id_of_a_call_that_has_one() -> None:
    def double(number: int) -> int:
        """Double a number."""
        return 2 * number

    calls = (ToolCall("double", {"number": 2}, "abcdef012"), ToolCall("double", {"number": 3}))
    _, result = asyncio.run(ToolEnvironment([double], "chat").step(ToolState(), Action("", calls)))
    assert result.observation == (
        {"role": "tool", "name": "double", "content": "4", "tool_call_id": "abcdef012"},
        {"role": "tool", "name": "double", "content": "6"},
    )
