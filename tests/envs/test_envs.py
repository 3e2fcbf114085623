"""Environments: pure steps, guarded calls, the built-in ones, and a user's own."""

import asyncio
import copy
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs import (
    check_environment,
    close_environment,
    close_states,
    load_environment,
    reset_with_retries,
    step_with_retries,
    tool_schema,
)
from treegrpo_cli.envs.answers import MAX_CONTENT_CHARS
from treegrpo_cli.envs.calculator import calculate, make_tasks
from treegrpo_cli.envs.tools import ToolEnvironment, ToolState
from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.types import Action, StepResult, Task, ToolCall

TASK = Task("What is it?", "4")
ANSWER = Action("<answer>4</answer>")
CORPUS = '{"contents": "Lima\\nThe capital of Peru."}\n{"contents": "Quito\\nThe capital of Ecuador."}\n'


def config(name: str = "calculator", **settings: Any) -> EnvironmentConfig:
    return EnvironmentConfig(name=name, **{"tool_retries": 0, **settings})


def called(name: str, **arguments: Any) -> Action:
    return Action("", (ToolCall(name, arguments),))


def step(environment: Any, state: Any, action: Action, **settings: Any) -> tuple[Any, StepResult]:
    return asyncio.run(step_with_retries(environment, state, action, config(**settings)))


def reset(environment: Any, task: Task = TASK, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    return asyncio.run(reset_with_retries(environment, task, config(**settings)))


def contents(result: StepResult) -> list[str]:
    return [message["content"] for message in result.observation]


def write_module(path: Path, body: str, name: str = "Own") -> str:
    (path / "own.py").write_text(f"from treegrpo_cli.types import StepResult\n{body}")
    return f"{path / 'own.py'}:{name}"


# Guarded calls ---------------------------------------------------------------------------------------------


class Scripted:
    """Runs the next of `acts` at every step: a value is returned, an exception raised, a function called."""

    tools = ()

    def __init__(self, *acts: Any) -> None:
        self.acts = list(acts)

    def reset(self, task: Task) -> tuple[int, list[dict[str, Any]]]:
        return 0, [{"role": "user", "content": task.question}]

    def step(self, state: int, action: Action) -> Any:
        act = self.acts.pop(0)
        if isinstance(act, BaseException):
            raise act
        return act() if callable(act) else act


GOOD = (1, StepResult(done=True))


def test_a_lost_connection_is_tried_again_and_no_more_often_than_asked() -> None:
    lost: list[BaseException] = [httpx.ConnectError("down"), aiohttp.ServerDisconnectedError(), ToolError("busy")]
    assert step(Scripted(OSError("down"), TimeoutError(), GOOD), 0, ANSWER, tool_retries=2) == GOOD
    assert step(Scripted(*lost, GOOD), 0, ANSWER, tool_retries=3) == GOOD
    environment = Scripted(OSError("down"), OSError("still\ndown"), GOOD)
    with pytest.raises(ToolError, match=r"^OSError: still down \(2 attempts\)$"):
        step(environment, 0, ANSWER, tool_retries=1)
    assert environment.acts == [GOOD]


RAISED: list[tuple[BaseException, str]] = [
    (ValueError("no such town"), "ValueError: no such town"),
    (FileNotFoundError(2, "No such file"), "FileNotFoundError: [Errno 2] No such file"),
    (SystemExit(3), "SystemExit: 3"),
    (StopIteration(), "StopIteration"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (asyncio.CancelledError(), "CancelledError"),
    (ValueError("\ud800"), "ValueError: ?"),
]


@pytest.mark.parametrize(("error", "reason"), RAISED)
def test_what_a_world_raises_is_shown_to_the_policy_and_leaves_the_state(error: BaseException, reason: str) -> None:
    environment = Scripted(error, error, GOOD)
    state, result = step(environment, 7, called("look"), tool_retries=2)
    failed = {"num_tool_calls": 1, "num_failed_tool_calls": 1}
    message = {"role": "tool", "name": "look", "content": f"Error: {reason}"}
    assert (state, result) == (7, StepResult((message,), **failed))
    _, without_call = step(environment, 7, Action("hm"), tool_retries=2)
    assert without_call == StepResult(({"role": "user", "content": f"Error: {reason}"},), **failed)
    assert environment.acts == [GOOD]


@pytest.mark.parametrize(("error", "reason"), RAISED)
def test_or_closes_the_branch_with_the_traceback(error: BaseException, reason: str) -> None:
    environment = Scripted(error, GOOD)
    with pytest.raises(ToolError) as failed:
        step(environment, 0, ANSWER, tool_errors="close", tool_retries=3)
    assert str(failed.value) == reason
    assert failed.value.trace[-3].endswith(", in step")
    assert environment.acts == [GOOD]


def test_a_users_own_word_closes_the_branch_at_once() -> None:
    with pytest.raises(ToolError, match=r"^the site is down$"):
        step(Scripted(ToolError("the site is down")), 0, ANSWER)
    environment = Scripted(UserError("no such key"), GOOD)
    with pytest.raises(ToolError, match=r"^no such key$"):
        step(environment, 0, ANSWER, tool_retries=3)
    assert environment.acts == [GOOD]


def test_a_reset_that_raises_is_a_failure_with_a_traceback() -> None:
    class Broken(Scripted):
        def reset(self, task: Task) -> Any:
            raise SystemExit(1)

    with pytest.raises(ToolError, match=r"^SystemExit: 1$") as failed:
        reset(Broken(), tool_retries=2)
    assert failed.value.trace[-3].endswith(", in reset")


def test_a_hanging_step_blocks_neither_the_loop_nor_its_siblings() -> None:
    released = threading.Event()

    async def both() -> list[Any]:
        slow = step_with_retries(Scripted(released.wait), 0, ANSWER, config(tool_timeout_s=0.2))
        quick = step_with_retries(Scripted(GOOD), 0, ANSWER, config())
        return await asyncio.gather(slow, quick, return_exceptions=True)

    slow, quick = asyncio.run(both())
    released.set()
    assert str(slow) == "no answer within 0.2 s"
    assert quick == GOOD


def test_a_tool_that_hangs_for_ever_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    path = write_module(tmp_path, "import time\ndef hang(x: str) -> str:\n    time.sleep(600)\n", "hang")
    code = (
        "import asyncio, sys\n"
        "from treegrpo_cli.config import EnvironmentConfig\n"
        "from treegrpo_cli.envs import load_environment, step_with_retries\n"
        "from treegrpo_cli.types import Action, ToolCall\n"
        "from treegrpo_cli.envs.tools import ToolState\n"
        "config = EnvironmentConfig(name=sys.argv[1], tool_timeout_s=0.1, tool_retries=0)\n"
        "action = Action('', (ToolCall('hang', {'x': ''}),))\n"
        "asyncio.run(step_with_retries(load_environment(config), ToolState(), action, config))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip().endswith("ToolError: no answer within 0.1 s")


def test_an_async_step_is_cancelled_at_its_timeout() -> None:
    cancelled = threading.Event()

    class Slow:
        tools = ()

        async def step(self, state: int, action: Action) -> Any:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    with pytest.raises(ToolError, match=r"no answer within 0\.05 s"):
        step(Slow(), 0, ANSWER, tool_timeout_s=0.05)
    assert cancelled.wait(20)


def test_no_more_steps_run_at_once_than_allowed() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def work() -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return GOOD

    async def many() -> None:
        environment, limits = Scripted(*[work] * 12), config(max_concurrent_tools=3)
        await asyncio.gather(*(step_with_retries(environment, 0, ANSWER, limits) for _ in range(12)))

    for _ in range(2):  # one event loop after another
        asyncio.run(many())
    assert most == 3


STEP = "environment: step"


class Odd:
    """Its text cannot be read."""

    def __repr__(self) -> str:
        raise SystemExit(1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, f"{STEP} must return (state, StepResult), got a NoneType"),
        (StepResult(), f"{STEP} must return (state, StepResult), got a StepResult"),
        ((0, "text"), f"{STEP} must return (state, StepResult), got a str"),
        ((0, StepResult("text")), f"{STEP} must give a list of messages, each a dict with role and content"),  # type: ignore[arg-type]
        ((0, StepResult(("text",))), "got ('text',)"),  # type: ignore[arg-type]
        ((0, StepResult(({"role": "tool"},))), "got ({'role': 'tool'},)"),
        ((0, StepResult(({"role": "tool", "content": 3},))), "'content': 3"),
        ((0, StepResult(({"role": 3, "content": "x"},))), "'role': 3"),
        ((0, StepResult(({"role": "tool", "content": Odd()},))), "a Odd"),
        ((0, StepResult(({"role": "tool", "content": "x", "extra": {1}},))), f"{STEP} gave a message that is not JSON"),
        ((0, StepResult(({"role": "tool", "content": "x", "l": ["\ud800"]},))), "a message that is not JSON"),
        ((0, StepResult(done=np.zeros(2))), f"{STEP}'s done must be True or False, got a ndarray"),  # type: ignore[arg-type]
        ((0, StepResult(done=None)), f"{STEP}'s done must be True or False, got None"),  # type: ignore[arg-type]
        ((0, StepResult(num_tool_calls=None)), f"{STEP}'s num_tool_calls must be a count, got None"),  # type: ignore[arg-type]
        ((0, StepResult(num_tool_calls="1")), "num_tool_calls must be a count, got '1'"),  # type: ignore[arg-type]
        ((0, StepResult(num_tool_calls=-1)), "num_tool_calls must be a count, got -1"),
        ((0, StepResult(num_tool_calls=True)), "num_tool_calls must be a count, got True"),
        ((0, StepResult(num_tool_calls=10**5000)), "num_tool_calls must be a count, got a int"),
        ((0, StepResult(num_failed_tool_calls=1)), "more tool calls failed than ran (1 of 0)"),
        ((0, StepResult(reward=math.nan)), f"{STEP}'s reward must be a finite number or None, got nan"),
        ((0, StepResult(reward="1")), f"{STEP}'s reward must be a finite number or None, got '1'"),  # type: ignore[arg-type]
        ((0, StepResult(reward=np.zeros(1))), "reward must be a finite number or None, got a ndarray"),  # type: ignore[arg-type]
    ],
)
def test_an_odd_answer_closes_the_branch_and_says_what_is_wrong(returned: Any, message: str) -> None:
    with pytest.raises(ToolError) as failed:
        step(Scripted(returned), 0, ANSWER)
    assert message in str(failed.value)
    assert len(str(failed.value)) < 400


def test_an_answer_of_numpy_numbers_and_surrogates_becomes_plain() -> None:
    odd = StepResult(
        [{"role": "tool", "content": "a\udfffb"}],  # type: ignore[arg-type]
        done=np.True_,
        num_tool_calls=np.int32(2),
        num_failed_tool_calls=np.uint8(1),
        reward=np.float32(0.5),
    )
    state, result = step(Scripted((odd, odd)), 0, ANSWER)
    plain = StepResult(
        ({"role": "tool", "content": "a?b"},), done=True, num_tool_calls=2, num_failed_tool_calls=1, reward=0.5
    )
    assert (state is odd, result) == (True, plain)
    numbers = (result.done, result.num_tool_calls, result.num_failed_tool_calls, result.reward)
    assert [type(number) for number in numbers] == [bool, int, int, float]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"reset must return \(state, messages\), got a NoneType"),
        ((0, "text"), r"reset must give a list of messages, .* got 'text'"),
        ((0, [{"content": "x"}]), r"reset must give a list of messages"),
    ],
)
def test_what_a_reset_returns_is_checked(answer: Any, message: str) -> None:
    class Returning(Scripted):
        def reset(self, task: Task) -> Any:
            return answer

    with pytest.raises(ToolError, match=message):
        reset(Returning())


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: 1 / 0, r"^environment: check\(\) failed: ZeroDivisionError: division by zero$"),
        (lambda: threading.Event().wait(20), r"^environment: check\(\) gave no answer within 0\.05 s \(environment\."),
    ],
)
def test_a_check_that_fails_or_keeps_silent_is_one_line(check: Any, message: str) -> None:
    environment = Scripted()
    environment.check = check  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=message):
        asyncio.run(check_environment(environment, timeout_s=0.05))


class Closing:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.num_closed = error, 0

    def close(self) -> None:
        self.num_closed += 1
        if self.error:
            raise self.error


def test_every_state_is_closed_once_and_one_that_fails_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Closing(), Closing(SystemExit(2))
    asyncio.run(close_states([good, bad, good, 3, None, {"close": 1}]))
    assert (good.num_closed, bad.num_closed) == (1, 1)
    assert "state.close() raised SystemExit: 2" in caplog.text
    asyncio.run(close_environment(good))  # type: ignore[arg-type]
    assert good.num_closed == 2


# Tools, calculator, search ---------------------------------------------------------------------------------


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
    assert said.startswith("tool look raised KeyError: 'Rome'; said once for its kind\nTraceback")
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
    asyncio.run(check_environment(environment))
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


# A user's own ----------------------------------------------------------------------------------------------

COUNTER = """
class Own:
    def __init__(self, start: int = 0):
        self.count = start
    def reset(self, task):
        return [{"role": "user", "content": task.question}]
    def step(self, action):
        self.count += len(action.text)
        return StepResult(({"role": "user", "content": str(self.count)},))
"""
FORKING = (
    COUNTER
    + """
    def fork(self):
        return Own(self.count)
"""
)
UNCOPYABLE = COUNTER.replace("self.count = start", "self.count = start; self.stream = (i for i in range(3))")
ASYNCHRONOUS = COUNTER.replace("def reset", "async def reset").replace("def step", "async def step")


@pytest.mark.parametrize(
    ("body", "method"),
    [(COUNTER, "deepcopy"), (FORKING, "fork"), (UNCOPYABLE, "replay"), (ASYNCHRONOUS, "deepcopy")],
)
def test_a_stateful_world_is_made_pure_in_its_path(tmp_path: Path, body: str, method: str) -> None:
    environment: Any = load_environment(config(write_module(tmp_path, body), options={"start": 10}))
    start, prompt = reset(environment)
    assert prompt == [{"role": "user", "content": "What is it?"}]
    one, first = step(environment, start, Action("a"))
    both = [step(environment, one, Action(text)) for text in ("bb", "cccc")]
    again, repeated = step(environment, start, Action("a"))
    assert contents(first) == contents(repeated) == ["11"]
    assert [contents(result) for _, result in both] == [["13"], ["15"]]
    assert contents(step(environment, again, Action("bb"))[1]) == ["13"]
    assert environment.fork_method == method


def test_a_world_that_is_replayed_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment = load_environment(config(write_module(tmp_path, UNCOPYABLE)))
    state, _ = reset(environment)
    for text in ("a", "b"):
        state, _ = step(environment, state, Action(text))
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        "environment: a Own cannot be copied (TypeError: cannot pickle 'generator' object), so turns"
    )


def test_every_world_is_closed_once(tmp_path: Path) -> None:
    body = COUNTER.replace("self.count = start", "self.count = start; self.num_closed = 0").replace(
        "self.count += len(action.text)", "self.count += 1 / len(action.text)"
    )
    environment: Any = load_environment(
        config(
            write_module(tmp_path, body + "    def close(self):\n        self.num_closed += 1; print(self.num_closed)")
        )
    )
    first, _ = reset(environment)
    second, _ = step(environment, first, Action("a"))
    closed, failed = threading.Event(), []

    class Own(type(first.world)):  # type: ignore[misc]
        def close(self) -> None:
            failed.append(self)
            closed.set()

    first.world.__class__ = Own
    _, result = step(environment, first, Action(""))  # the copy that fails is no state, and is closed at once
    assert contents(result) == ["Error: ZeroDivisionError: division by zero"]
    assert closed.wait(20)
    assert failed != [first.world]
    asyncio.run(close_states([first, second, second]))
    assert (failed[1:], second.world.num_closed) == ([first.world], 1)
    probe = environment._first
    asyncio.run(close_environment(environment))
    assert probe.num_closed == 1


def test_a_replay_that_answers_differently_is_a_tool_error(tmp_path: Path) -> None:
    body = UNCOPYABLE.replace("class Own:", "import itertools\nclock = itertools.count()\nclass Own:").replace(
        "str(self.count)", "str(next(clock))"
    )
    environment = load_environment(config(write_module(tmp_path, body)))
    state, _ = reset(environment)
    state, _ = step(environment, state, Action("a"))
    with pytest.raises(ToolError, match="replayed from the root, turn 1 answered differently"):
        step(environment, state, Action("b"))


def test_a_pure_class_is_used_as_it_is(tmp_path: Path) -> None:
    body = """
class Own:
    tools = ()
    def __init__(self, dialect, step_size: int = 1, **more):
        self.dialect, self.more = dialect, more
    def reset(self, task):
        return 0, [{"role": "user", "content": self.dialect}]
    async def step(self, state, action):
        return state + 1, StepResult(done=state == 1)
"""
    path = write_module(tmp_path, body)
    environment: Any = load_environment(config(path, dialect="chat", options={"else": 1}))
    assert environment.more == {"else": 1}
    state, (prompt,) = reset(environment)
    assert prompt["content"] == "chat"
    assert step(environment, state, ANSWER) == (1, StepResult())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("serch", {}, r"environment\.name: unknown environment 'serch'; did you mean 'search'"),
        ("calculator", {"topk": 3}, r"environment\.options\.topk: unknown"),
        ("search", {"corpu": "x"}, r"environment\.options\.corpu: unknown; did you mean 'corpus'"),
        ("search", {}, r"environment\.options: give one of `corpus`"),
        ("search", {"corpus": "a", "retriever_url": "b"}, r"environment\.options: give one of"),
        ("search", {"corpus": "gone.jsonl"}, r"gone\.jsonl: No such file"),
        (
            "search",
            {"corpus": "x", "topk": "three"},
            r"environment\.options\.topk: Input should be a valid integer",
        ),
        ("search", {"corpus": "x", "topk": -1}, r"environment\.options\.topk: must be 0 or more"),
        ("tools", {}, r"environment\.options\.tools: missing"),
        ("tools", {"tools": []}, r"environment\.options\.tools: give at least one"),
        ("tools", {"tools": ["os:nothing"]}, r"environment\.options\.tools: os has no 'nothing'"),
        ("tools", {"tools": [3]}, r"environment\.options\.tools: 3 is no function"),
        ("nowhere.at_all:Name", {}, r"environment\.name: cannot import nowhere\.at_all: ModuleNotFoundError"),
        ("gone.py:Name", {}, r"environment\.name: no such file: gone\.py"),
        ("os:getcw", {}, r"environment\.name: os has no 'getcw'; did you mean 'getcw"),
        ("os:sep", {}, r"environment\.name: os:sep is neither a class nor a function"),
        ("pathlib:Path", {}, r"environment\.name: pathlib:Path is a class without `reset` and `step`"),
        (":x", {}, r"environment\.name: ':x' is not of the form"),
    ],
)
def test_a_wrong_name_or_option_is_named_with_its_key(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_environment(config(name, options=options))


PURE = "class Own:\n    def reset(self, t): ...\n    def step(self, s, a): ...\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "class Own:\n    def reset(self): ...\n    def step(self): ...",
            r"Own\.step must take \(action\) or \(state",
        ),
        (
            "class Own:\n    def reset(self, t): ...\n    def step(self, s, a): ...",
            "Own needs an attribute `tools`: a list of .*; none",
        ),
        (f"{PURE}    tools = None", "needs an attribute `tools`: a list of .*; none"),
        (f"{PURE}    tools = 3", "needs an attribute `tools`: a list of .*; got 3"),
        (f"{PURE}    tools = ['x']", "needs an attribute `tools`: a list of .*; got ..x"),
        (f"{PURE}    tools = [{{'function': {{'name': 'f'}}}}] * 2", "two tools of one name: f, f"),
        (f"{PURE}    @property\n    def tools(self): return 1 / 0", "cannot make .*Own: ZeroDivisionError"),
        (COUNTER.replace("self.count = start", "raise SystemExit(3)"), "cannot make .*Own: SystemExit: 3"),
        ("import asyncio\nraise asyncio.CancelledError", r"cannot import .*own\.py: CancelledError"),
        (
            COUNTER.replace("self.count = start", "raise OSError('no disk')"),
            "cannot make .*Own: OSError: no disk",
        ),
        ("class Own(", r"cannot import .*own\.py: SyntaxError"),
        ("1 / 0", r"cannot import .*own\.py: ZeroDivisionError"),
    ],
)
def test_a_broken_class_of_the_users_is_one_clear_line(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_environment(config(write_module(tmp_path, body)))


def test_a_module_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tools_of_this_test.py").write_text(
        "def double(x: int) -> int:\n    return 2 * x\nTOOLS = [double]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", copy.copy(sys.path))
    for name in ("double", "TOOLS"):
        environment = load_environment(config(f"my_tools_of_this_test:{name}"))
        assert contents(step(environment, ToolState(), called("double", x=21))[1]) == ["42"]


# Examples --------------------------------------------------------------------------------------------------


def play(environment: Any, task: Task, *actions: Action) -> list[str]:
    state, _ = reset(environment, task)
    shown = []
    for action in actions:
        state, result = step(environment, state, action)
        shown += contents(result)
    assert result.done
    return shown


def test_the_example_environment_runs_as_it_stands() -> None:
    game = load_environment(config("examples/own_environment.py:GuessTheNumber", options={"max_guesses": 4}))
    guesses = [called("guess", number=text) for text in ("3", "9", "x", "7")]
    shown = play(game, Task("Guess from 1 to 10.", "7"), *guesses, ANSWER)
    assert shown == ["higher", "lower", "Write <guess>number</guess>.", "right"]


def test_the_example_tool_runs_as_it_stands() -> None:
    environment = load_environment(config("examples/own_tool.py:days_between"))
    asked = called("days_between", first="1969-07-20", second="1969-08-01")
    wrong = called("days_between", first="yesterday", second="1969-08-01")
    assert play(environment, TASK, asked, wrong, ANSWER)[0] == "12"
    assert step(environment, ToolState(), wrong)[1].observation[0]["content"].startswith("Error: Invalid isoformat")
