"""Worlds and rewards in processes of their own: the same trees, and faults that cost only what was in them."""

import asyncio
import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.envs import close_states, reset_with_retries, step_with_retries
from treegrpo_cli.errors import FailedRunError, ToolError, UserError
from treegrpo_cli.rollout.collect import Grown, collect
from treegrpo_cli.rollout.failures import Failure
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.rollout.world import World
from treegrpo_cli.types import Action, StepResult, Task, ToolCall
from treegrpo_cli.workers import WorkerEnvironment, open_environment, pool
from treegrpo_cli.workers.plain import NotPlainError, from_bytes, to_bytes
from treegrpo_cli.workers.worker import Worker

from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
WORLDS = Path(__file__).with_name("worker_worlds.py")
ROW = {"at": date(2020, 2, 29), "pair": (1, 2), "raw": b"x"}
FAULTY = {"name": f"{WORLDS}:Faulty", "tool_retries": 1}


def config_of(workers: int, name: str, rewards: list[str], max_live_trees: int = 6, **environment: Any) -> Config:
    return make_config(
        {
            "environment": {"name": name, "workers": workers, **environment},
            "reward": {"functions": rewards, "timeout_s": 2},
            "rollout": {"max_turns": 3, "num_expansions": 3, "max_live_trees": max_live_trees},
        }
    )


def grown(config: Config) -> tuple[list[bytes], list[Failure]]:
    """Every tree as its line in a file, by prompt, and what failed."""
    world = World(config, TOKENIZER)

    async def grow() -> list[Grown]:
        try:
            await world.check()
            player = Player(world, HashSampler(TOKENIZER), config)
            prompts = [Prompt.numbered(i, Task(f"Number {i}?", columns=ROW)) for i in range(4)]
            return [group async for group in collect(player, prompts, 2)]
        finally:
            await world.close()

    groups = sorted(asyncio.run(grow()), key=lambda group: group.prompt.number)
    failures = [failure for group in groups for failure in group.failures]
    records = [tree_record(tree) for group in groups for tree in group.trees]
    for record in records:
        record.fields["meta"]["spent"].pop("seconds")
        record.fields["meta"].pop("time")
    lines = [record.to_json() for record in records]
    return lines, sorted(failures, key=lambda failure: (failure.prompt_id, failure.tree_id))


def test_trees_and_rewards_of_a_stateful_world_are_the_same_in_no_one_and_three_workers() -> None:
    rewards = [f"{WORLDS}:variety", f"{WORLDS}:last_words", "environment"]
    here, *there = [
        grown(config_of(workers, f"{WORLDS}:Bag", rewards, options={"start": 4}, tool_errors="close"))
        for workers in (0, 1, 3)
    ]
    assert there == [here, here]
    lines, failures = here
    assert {failure.reason for failure in failures} == {"ValueError: no such town"}
    assert all("no such town" in failure.trace[-1] and "worker_worlds.py" in failure.trace[1] for failure in failures)
    rewards_given = {node["reward"] for line in lines for node in orjson.loads(line)["nodes"]}
    assert len(rewards_given) > 5


@pytest.mark.parametrize(("name", "environment"), [("calculator", {}), (f"{WORLDS}:search", {"tool_errors": "close"})])
def test_so_are_those_of_a_built_in_world_and_of_an_async_tool(name: str, environment: dict[str, Any]) -> None:
    here, there = (grown(config_of(workers, name, ["environment"], **environment)) for workers in (0, 1))
    assert here == there


class Faults:
    """A world of two workers, in one event loop for all tests."""

    def __init__(self) -> None:
        self.config = config_of(2, rewards=[f"{WORLDS}:last_words"], **FAULTY)
        environment = open_environment(self.config)
        assert isinstance(environment, WorkerEnvironment)
        self.environment, self.runner = environment, asyncio.Runner()

    def play(self, game: Callable[["Faults"], Awaitable[Any]]) -> Any:
        async def played() -> Any:
            self.states: list[Any] = []
            try:
                return await game(self)
            finally:
                await close_states(self.states)

        return self.runner.run(played())

    async def plant(self) -> Any:
        state, _ = await reset_with_retries(self.environment, Task("Go"), self.config.environment)
        self.states.append(state)
        return state

    async def step(self, state: Any, text: str, **settings: Any) -> tuple[Any, str]:
        config = self.config.environment.model_copy(update=settings)
        state, result = await step_with_retries(self.environment, state, Action(text), config)
        self.states.append(state)
        return state, result.observation[0]["content"].rpartition(": ")[2]

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self.environment.pool.workers]


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    faults = Faults()
    yield faults
    pids = faults.pids
    faults.runner.run(faults.environment.close())
    faults.runner.close()
    assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"


def test_trees_are_dealt_to_workers_and_any_state_of_theirs_can_be_gone_on_from(faults: Faults) -> None:
    async def game(_: Faults) -> list[list[str]]:
        roots = [await faults.plant() for _ in range(4)]
        found = []
        for root in roots:
            first, pid = await faults.step(root, "pid")
            found.append([pid, (await faults.step(first, "pid"))[1], (await faults.step(root, "pid"))[1]])
        return found

    found = faults.play(game)
    assert [len(set(pids)) for pids in found] == [1] * 4
    assert sorted(int(pids[0]) for pids in found) == sorted(2 * faults.pids)
    assert [worker.num_trees for worker in faults.environment.pool.workers] == [0, 0]


def test_every_state_is_closed_once_with_its_tree(faults: Faults, caplog: pytest.LogCaptureFixture) -> None:
    async def game(_: Faults) -> None:
        root = await faults.plant()
        first, _ = await faults.step(root, "one")
        await faults.step(first, "two")
        await faults.step(root, "three")
        assert not caplog.messages

    faults.play(game)
    assert sorted(caplog.messages) == ["closed ", "closed one", "closed one/two", "closed three"]


def test_what_is_raised_keeps_its_text_and_says_whether_to_try_again(faults: Faults) -> None:
    async def game(_: Faults) -> list[str]:
        root = await faults.plant()
        _, shown = await faults.step(root, "fail with this")
        reasons = [shown]
        for text, errors in (("fail again", "close"), ("lose it", "show")):
            with pytest.raises(ToolError) as raised:
                await faults.step(root, text, tool_errors=errors)
            reasons.append(str(raised.value))
            assert raised.value.trace[0] == "Traceback (most recent call last):"
            assert "worker_worlds.py" in raised.value.trace[1]
        return reasons

    assert faults.play(game) == ["with this", "ValueError: again", "ConnectionResetError: it (2 attempts)"]


def test_what_user_code_prints_goes_where_the_drivers_own_prints_go(
    faults: Faults, capsys: pytest.CaptureFixture[str]
) -> None:
    async def game(_: Faults) -> None:
        root = await faults.plant()
        await faults.step(root, "show Grüße")
        while not (out := capsys.readouterr().out):
            await asyncio.sleep(0.01)
        assert out == "Grüße\n"

    faults.play(game)


def test_concurrent_tools_are_bounded_in_all_workers_together(faults: Faults) -> None:
    async def game(_: Faults) -> list[list[float]]:
        roots = [await faults.plant() for _ in range(4)]
        steps = (faults.step(root, "times", max_concurrent_tools=1, tool_timeout_s=5) for root in roots)
        return sorted([float(moment) for moment in text.split()] for _, text in await asyncio.gather(*steps))

    times = faults.play(game)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))


def test_a_worker_that_dies_costs_what_ran_in_it_and_its_other_states_are_made_again(
    faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    async def game(_: Faults) -> None:
        roots = [await faults.plant() for _ in range(4)]
        before = [await faults.step(root, "one") for root in roots]
        odd = [await faults.step(root, "number") for root in roots]
        with pytest.raises(ToolError, match=r"its worker ended while this ran in it \(exit code 3\)"):
            await faults.step(roots[0], "die 3")
        after = [(await faults.step(state, "two"))[1] for state, _ in before]
        assert after == ["two"] * 4
        at_home = [root.worker is before[0][0].worker for root in roots]
        for (state, _), moved in zip(odd, at_home, strict=True):
            if moved and state.worker.is_gone:
                with pytest.raises(ToolError, match="a turn answered differently"):
                    await faults.step(state, "two")
            else:
                await faults.step(state, "two")
        num_moved = sum(state.worker.is_gone for state, _ in odd)
        assert num_moved == 2

    pids = faults.pids
    faults.play(game)
    assert len({*pids, *faults.pids}) == 3
    line = "environment: worker {} ended (exit code 3) and is started again; its 2 trees go on where their turns, "
    said = [message for message in caplog.messages if message.startswith("environment: worker")]
    assert [message.partition("played")[0] for message in said] in ([line.format(1)], [line.format(2)])


def test_a_tool_that_holds_the_interpreter_for_ever_takes_its_process_with_it_and_nobody_elses_turn(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def game(_: Faults) -> None:
        roots = [await faults.plant() for _ in range(2)]
        first, _ = await faults.step(roots[0], "one")
        beside = (faults.step(first, "two"), faults.step(roots[1], "two"))
        hung = asyncio.create_task(faults.step(roots[0], "hold", tool_retries=0, tool_timeout_s=0.4))
        await asyncio.sleep(0.1)
        assert [text for _, text in await asyncio.gather(*beside)] == ["two", "two"]
        with pytest.raises(ToolError, match="no answer within"):
            await hung

    pids = faults.pids
    for worker in faults.environment.pool.workers:
        monkeypatch.setattr(worker, "_patience_s", 0.2)
    faults.play(game)
    assert len({*pids, *faults.pids}) == 3


def test_so_does_one_that_only_does_not_come_back_but_not_one_that_is_late(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def give_up(seconds: float, patience_s: float) -> list[Worker]:
        root = await faults.plant()
        workers = list(faults.environment.pool.workers)
        await faults.environment.pool.ask_all("close_states", states=[])  # all of them answer
        for worker in workers:
            monkeypatch.setattr(worker, "_patience_s", patience_s)
        texts = ("sleep 0.15", f"sleep {seconds}")
        given_up = (faults.step(root, text, tool_retries=0, tool_timeout_s=0.1) for text in texts)
        raised = await asyncio.gather(*given_up, return_exceptions=True)
        assert [str(error) for error in raised] == ["no answer within 0.1 s"] * 2
        while any(worker.is_doubtful and not worker.is_gone for worker in workers):
            await asyncio.sleep(0.01)
        return workers

    late = faults.play(lambda _: give_up(0.2, 60))
    assert not any(worker.is_gone for worker in late)
    stuck = faults.play(lambda _: give_up(1000, 0.3))
    assert [worker.is_gone for worker in stuck].count(True) == 1


def test_a_reward_that_hangs_or_kills_its_worker_leaves_its_own_leaves_unscored() -> None:
    functions = [f"{WORLDS}:fragile", "environment"]
    lines, failures = grown(config_of(1, f"{WORLDS}:Bag", functions, max_live_trees=1, options={"start": 4}))
    reasons = {failure.prompt_id: failure.reason for failure in failures}
    assert reasons == {
        "00000001": f"reward {WORLDS}:fragile: no answer within 2 s (reward.timeout_s)",
        "00000002": "reward: environment: its worker ended while this ran in it (exit code 7)",
    }
    for line in lines:
        tree = orjson.loads(line)
        leaves = [node for node in tree["nodes"] if node.get("kept")]
        assert leaves
        assert {node["reward"] is None for node in leaves} == {tree["prompt_id"] in reasons}


def test_too_many_deaths_end_the_run(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FREE_ENDS", -100)

    async def game(_: Faults) -> None:
        root = await faults.plant()
        with pytest.raises(ToolError):
            await faults.step(root, "die 1")
        with pytest.raises(FailedRunError, match=r"\d workers ended before their time; the last: exit code 1"):
            await faults.step(root, "one")

    faults.play(game)
    faults.environment.pool._refusal = ""


DRIVER = """
import asyncio, os, signal, sys
from treegrpo_cli.config import Config
from treegrpo_cli.types import Action, Task
from treegrpo_cli.workers import open_environment

async def main():
    environment = open_environment(Config(environment={"name": sys.argv[1], "workers": 2}))
    for worker in environment.pool.workers:
        state, _ = await environment.reset(Task(""))
        asyncio.create_task(environment.step(state, Action("hold")))
        os.kill(worker.pid, signal.SIGINT)
    await asyncio.sleep(0.3)
    print(*(worker.pid for worker in environment.pool.workers), environment.pool.num_ends, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_workers_ignore_ctrl_c_and_end_with_a_driver_that_is_killed_even_where_a_tool_holds_the_interpreter() -> None:
    command = [sys.executable, "-c", DRIVER, FAULTY["name"]]
    driver = subprocess.run(command, capture_output=True, text=True, check=False)
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    *pids, num_ends = map(int, driver.stdout.split())
    assert num_ends == 0
    end = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(is_running, pids))


@pytest.mark.parametrize(
    "environment",
    [
        {"name": "calculater"},
        {"name": "calculator", "options": {"digits": 1}},
        {"name": f"{WORLDS}:Nobody"},
        {"name": f"{WORLDS.with_name('nowhere.py')}:Nobody"},
    ],
)
def test_a_world_that_cannot_be_opened_there_is_the_same_line_as_here(environment: dict[str, Any]) -> None:
    lines = []
    for workers in (0, 1):
        with pytest.raises(UserError) as raised:
            World(config_of(workers, rewards=["environment"], **environment), TOKENIZER)
        lines.append((str(raised.value), raised.value.trace))
    assert lines[0] == lines[1]


def test_an_option_that_is_no_plain_data_is_refused_by_its_name() -> None:
    config = config_of(1, "tools", ["environment"])
    config.environment.options["tools"] = [len]
    with pytest.raises(UserError, match=r"^environment.options.tools: with environment.workers, .* got a builtin_func"):
        World(config, TOKENIZER)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -(2**80), 1.5, math.inf, None, True, "ü\ud800"], "$": ["tuple", []]},
        {"$": 1, 2: (3, (4,)), None: b"\x00\xff", (1, 2): {}},
        [date(2020, 1, 2), datetime(2020, 1, 2, 3, 4, 5, 6), timedelta(-1, 2, 3), Decimal("1.10")],
        Action("text", (ToolCall("add", {"a": [1]}, "7"),), cut=True),
        StepResult(({"role": "user", "content": ""},), True, 2, 1, 0.1),
        Task("?", {"target": ["a"]}, None, "", {"x": (1,)}),
    ],
)
def test_plain_data_arrives_as_it_was_sent(value: Any) -> None:
    back = from_bytes(to_bytes(value))
    assert back == value
    assert repr(back) == repr(value)


def test_so_do_arrays_and_numbers_of_numpy_and_nan() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    back, number, nan = from_bytes(to_bytes([array, np.float32(0.1), math.nan]))
    assert (back.dtype, back.tolist()) == (array.dtype, array.tolist())
    assert (type(number), number) == (np.float32, np.float32(0.1))
    assert math.isnan(nan)


@pytest.mark.parametrize("value", [object(), {"x": {1, 2}}, [np.array([object()])], logging.INFO.__class__, len])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(NotPlainError):
        to_bytes(value)
