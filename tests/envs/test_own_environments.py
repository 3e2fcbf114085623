"""A user's own environments and tools: made pure in their path, and every mistake in them named."""

import asyncio
import copy
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.envs import (
    close_environment,
    close_states,
    load_environment,
)
from treegrpo_cli.envs.tools import ToolState
from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.types import Action, StepResult, Task

from tests.envs.playing import ANSWER, TASK, called, config, contents, reset, step, write_module

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


@pytest.mark.parametrize(
    ("copying", "message"),
    [
        ("def fork(self): return None", "fork() must be a copy of a Own, got a NoneType"),
        ("def fork(self): return self", "fork() must be a copy of a Own, got the world itself"),
        ("def __deepcopy__(self, memo): return self", "its deep copy must be a copy of a Own, got the world itself"),
    ],
)
def test_a_copy_that_is_none_closes_the_branch(tmp_path: Path, copying: str, message: str) -> None:
    environment = load_environment(config(write_module(tmp_path, f"{COUNTER}\n    {copying}\n")))
    start, _ = reset(environment)
    with pytest.raises(ToolError, match=re.escape(message)):
        step(environment, start, Action("a"))


def test_a_world_that_is_replayed_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment = load_environment(config(write_module(tmp_path, UNCOPYABLE)))
    state, _ = reset(environment)
    for text in ("a", "b"):
        state, _ = step(environment, state, Action(text))
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        "environment: a Own cannot be copied (TypeError: cannot pickle 'generator' object), so each step"
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
    assert (
        step(environment, ToolState(), wrong)[1]
        .observation[0]["content"]
        .startswith("Error: ValueError: Invalid isoformat")
    )
