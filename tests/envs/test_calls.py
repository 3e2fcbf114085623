"""Guarded calls: what is tried again, shown or closes a branch, and odd answers."""

import asyncio
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from treegrpo_cli.envs import (
    check_environment,
    close_environment,
    close_states,
    step_with_retries,
)
from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.types import Action, StepResult, Task

from tests.envs.playing import ANSWER, GOOD, Odd, Scripted, called, config, contents, reset, step, write_module


class LostError(Exception):
    """As a library has it that is not installed everywhere."""


def test_a_lost_connection_is_tried_again_and_no_more_often_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", SimpleNamespace(ClientConnectionError=LostError))
    lost: list[BaseException] = [httpx.ConnectError("down"), LostError(), ToolError("busy")]
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


class OddText(str):
    """Cutting it ends the program."""

    def __getitem__(self, key: Any) -> str:
        raise SystemExit(4)


def test_what_an_answer_raises_when_it_is_looked_at_is_a_failure_of_the_world() -> None:
    answer = (1, StepResult(({"role": "tool", "content": OddText("x")},)))
    with pytest.raises(ToolError, match="SystemExit: 4"):
        step(Scripted(answer), 0, ANSWER, tool_errors="close")
    state, result = step(Scripted(answer), 0, ANSWER)
    assert (state, contents(result)) == (0, ["Error: SystemExit: 4"])

    class Returning(Scripted):
        def reset(self, task: Task) -> Any:
            return 0, [{"role": "user", "content": OddText("x")}]

    with pytest.raises(ToolError, match="SystemExit: 4"):
        reset(Returning())


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
