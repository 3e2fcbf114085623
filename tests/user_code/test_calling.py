"""Whatever user code does, it ends neither the program nor the event loop, and says why it failed."""

import asyncio
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from treegrpo_cli.errors import NoAnswerError, UserCodeError
from treegrpo_cli.free_time import busy
from treegrpo_cli.user_code import call, threads


class UnreadableError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class SpoiltError(Exception):
    """Its traceback cannot be written either."""

    @property  # type: ignore[misc]
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError

    def __str__(self) -> str:
        raise KeyboardInterrupt


class EvilError(Exception):
    """Nothing can be asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(9)


def raising(error: BaseException) -> Callable[[], None]:
    def plain() -> None:
        raise error

    return plain


def raising_async(error: BaseException) -> Callable[[], Any]:
    async def coroutine() -> None:
        await asyncio.sleep(0)
        raise error

    return coroutine


@pytest.mark.parametrize("make", [raising, raising_async])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no\n such  town"), "ValueError: no such town"),
        (ValueError(), "ValueError"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError("mine"), "CancelledError: mine"),
        (GeneratorExit(), "GeneratorExit"),
        (TimeoutError("socket"), "TimeoutError: socket"),
        (ValueError("\ud800x"), "ValueError: ?x"),
        (UnreadableError(), "UnreadableError: (its text cannot be read: SystemExit)"),
        (SpoiltError(), "SpoiltError: (its text cannot be read: KeyboardInterrupt)"),
    ],
)
def test_whatever_user_code_raises_is_its_own_failure(make: Any, error: BaseException, reason: str) -> None:
    with pytest.raises(UserCodeError) as failed:
        asyncio.run(call(make(error), timeout_s=20))
    assert failed.value.reason == str(failed.value) == reason


def test_an_error_of_which_nothing_can_be_asked_is_a_failure_too() -> None:
    def fail() -> None:
        raise EvilError

    with pytest.raises(UserCodeError, match=r"^EvilError: \(it cannot be read\)$"):
        asyncio.run(call(fail, timeout_s=20))


def test_a_stop_iteration_is_a_failure_too() -> None:
    with pytest.raises(UserCodeError, match=r"^StopIteration$"):
        asyncio.run(call(raising(StopIteration())))


def test_a_reason_is_bounded() -> None:
    with pytest.raises(UserCodeError) as failed:
        asyncio.run(call(raising(ValueError("x " * 10**6))))
    assert len(failed.value.reason) < 600


@pytest.mark.parametrize("is_async", [False, True])
def test_the_trace_begins_at_the_users_own_function(is_async: bool) -> None:
    def inner() -> None:
        raise ValueError("here")

    def plain() -> None:
        inner()

    async def coroutine() -> None:
        inner()

    with pytest.raises(UserCodeError) as failed:
        asyncio.run(call(coroutine if is_async else plain))
    lines = failed.value.trace
    files = [line for line in lines if line.startswith("  File")]
    assert [line.rpartition(" ")[2] for line in files] == ["coroutine" if is_async else "plain", "inner"]
    assert all(__file__ in line for line in files)
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: here")
    assert isinstance(failed.value.__cause__, ValueError)


def test_async_code_that_blocks_holds_up_neither_us_nor_the_next_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threads, "BLOCKED_S", 0.05)
    released = threading.Event()

    async def block() -> None:
        released.wait(60)

    async def answer() -> str:
        await asyncio.sleep(0)
        return "here"

    async def both() -> str:
        with pytest.raises(NoAnswerError, match=r"^no answer within 0\.05 s$"):
            await call(block, timeout_s=0.05)
        await asyncio.sleep(0.1)  # the first call's end has waited for a turn of its loop for so long
        return str(await call(answer, timeout_s=20))

    try:
        assert asyncio.run(both()) == "here"
        assert "blocks its event loop" in caplog.text
    finally:
        released.set()


def test_a_call_that_waits_behind_one_that_blocks_is_moved_to_another_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "BLOCKED_S", 0.05)
    blocked, released, num_calls = threading.Event(), threading.Event(), 0

    async def block() -> None:
        blocked.set()
        released.wait(60)

    async def answer() -> int:
        nonlocal num_calls
        num_calls += 1
        return num_calls

    async def both() -> Any:
        blocking = asyncio.create_task(call(block))
        while not blocked.is_set():
            await asyncio.sleep(0.001)
        try:
            return await call(answer, timeout_s=20)
        finally:
            released.set()
            await blocking

    assert asyncio.run(both()) == 1
    time.sleep(0.05)
    assert num_calls == 1


def test_coroutines_share_one_loop_from_run_to_run() -> None:
    loops = set()

    async def note() -> None:
        loops.add(asyncio.get_running_loop())

    async def many() -> None:
        await asyncio.gather(*(call(note) for _ in range(5)))

    for _ in range(2):
        asyncio.run(many())
    assert len(loops) == 1


def test_a_forked_process_has_a_loop_of_its_own() -> None:
    code = (
        "import asyncio, os\n"
        "from treegrpo_cli.user_code import call\n"
        "async def answer():\n    return os.getpid()\n"
        "assert asyncio.run(call(answer, timeout_s=20)) == os.getpid()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(asyncio.run(call(answer, timeout_s=20)) != os.getpid())\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_a_task_that_user_code_leaves_behind_ends_no_other() -> None:
    async def exit_now() -> None:
        raise SystemExit(3)

    kept = []

    async def start_and_wait() -> str:
        kept.append(asyncio.create_task(exit_now()))
        await asyncio.sleep(0.01)
        return "here"

    assert asyncio.run(call(start_and_wait, timeout_s=20)) == "here"
    assert isinstance(kept[0].exception(), SystemExit)


def test_when_we_are_cancelled_the_users_coroutine_is_too() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def cancel() -> None:
        task = asyncio.create_task(call(wait))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert cancelled.wait(20)


def test_a_thread_that_answers_after_its_time_harms_nobody() -> None:
    released = threading.Event()
    with pytest.raises(NoAnswerError):
        asyncio.run(call(released.wait, timeout_s=0.01))
    released.set()
    assert asyncio.run(call(len, "abc")) == 3


def test_an_answer_that_came_while_the_loop_was_blocked_counts() -> None:
    async def answered() -> list[Any]:
        async def nap() -> str:
            await asyncio.sleep(0.01)
            return "here"

        waiting = asyncio.gather(call(nap, timeout_s=0.05), call(functools.partial(time.sleep, 0.01), timeout_s=0.05))
        await asyncio.sleep(0)
        with busy():
            time.sleep(0.2)
        return await waiting

    assert asyncio.run(answered()) == ["here", None]


def test_arguments_may_have_any_name() -> None:
    def tool(function: str, timeout_s: int) -> tuple[str, int]:
        return function, timeout_s

    assert asyncio.run(call(functools.partial(tool, function="f", timeout_s=3))) == ("f", 3)


def test_an_object_whose_call_is_async_is_awaited() -> None:
    class Tool:
        async def __call__(self, x: int) -> int:
            await asyncio.sleep(0)
            return x + 1

    assert asyncio.run(call(Tool(), 2)) == 3


def test_our_own_functions_run_where_they_are_and_our_bugs_fly() -> None:
    from treegrpo_cli.envs.calculator import calculate

    with pytest.raises(TypeError):
        asyncio.run(call(calculate, 3))


@pytest.mark.parametrize("asynchronous", ["", "async "])
def test_code_that_hangs_for_ever_does_not_keep_the_process_alive(asynchronous: str) -> None:
    code = (
        "import asyncio, time\n"
        "from treegrpo_cli.user_code import call\n"
        f"{asynchronous}def hang():\n    time.sleep(600)\n"
        "asyncio.run(call(hang, timeout_s=0.1))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert ran.stderr.strip().endswith("NoAnswerError: no answer within 0.1 s")
