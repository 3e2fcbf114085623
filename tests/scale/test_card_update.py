"""One exchange serves all engines that take part; who comes back is brought weights, and a death ends the exchange."""

import asyncio
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from treegrpo_cli.rollout.gate import Gate
from treegrpo_cli.samplers.routing import RoutedSampler
from treegrpo_cli.scale import card_update
from treegrpo_cli.scale.card_update import CardUpdate
from treegrpo_cli.types import Completion, SamplingParams

from tests.samplers.fake_replicas import FakeReplica


class Actor:
    """An engine's end; `dies` is set when it is dead."""

    def __init__(self) -> None:
        self.dies = threading.Event()
        self.alive = SimpleNamespace(remote=lambda: self.dies)


class DiedError(Exception):
    """What Ray raises."""


def get(dies: threading.Event) -> None:
    raise DiedError


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for Ray: an answer is there when its engine is dead."""

    def wait(asked: list[threading.Event], timeout: float) -> tuple[list[threading.Event], list[threading.Event]]:
        return ([asked[0]], []) if asked[0].is_set() else ([], asked)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(wait=wait, get=get))  # type: ignore[arg-type]
    monkeypatch.setattr(card_update, "LOOK_S", 0.01)


def together(update: CardUpdate, actors: list[Actor]) -> list[BaseException | None]:
    """Let all take it at once; what each raised."""
    raised: list[BaseException | None] = [None] * len(actors)

    def take(place: int) -> None:
        try:
            update.send_to(actors[place])
        except BaseException as error:
            raised[place] = error

    threads = [threading.Thread(target=take, args=(place,)) for place in range(len(actors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return raised


def never(*_: Any) -> None:
    raise AssertionError


def test_one_exchange_serves_all_members_and_the_store_serves_others() -> None:
    exchanges, brought = [], []
    members, late = [Actor(), Actor(), Actor()], Actor()
    update = CardUpdate(4, members, lambda: exchanges.append(1), never, brought.append)
    assert together(update, members) == [None] * 3
    assert (exchanges, brought, update.policy_version) == ([1], [], 4)
    update.send_to(late)
    assert (exchanges, brought) == ([1], [late])


def test_an_engine_that_dies_in_an_exchange_ends_it_for_all() -> None:
    ended = threading.Event()

    def exchange() -> None:
        assert ended.wait(30)
        raise RuntimeError("the ranks were killed")

    members = [Actor(), Actor()]
    members[1].dies.set()
    first, second = together(CardUpdate(1, members, exchange, ended.set, never), members)
    assert isinstance(second, DiedError)
    assert isinstance(first, RuntimeError)


class Engine(FakeReplica):
    """A replica whose process is another one after each revival."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.actor = Actor()

    def revive(self) -> int | None:
        self.actor = Actor()
        return super().revive()

    def take(self, update: Any) -> None:
        update.send_to(self.actor)


class PlayedRanks:
    """Ranks by the rule of `scale.trainer`: one thing at a time, and weights for an engine are those of then."""

    def __init__(self, engines: list[Engine]) -> None:
        self.step, self.engines, self.turn = 0, engines, threading.RLock()
        self.asked = threading.Event()

    def exchange(self) -> None:
        with self.turn:
            for engine in self.engines:
                engine.version = self.step

    def bring(self, actor: Any) -> None:
        self.asked.set()
        with self.turn:
            [engine] = [engine for engine in self.engines if engine.actor is actor]
            engine.version = self.step
            engine.taken.append(self.step)

    def update(self) -> CardUpdate:
        live = [engine.actor for engine in self.engines if not engine.is_dead]
        return CardUpdate(self.step, live, self.exchange, never, self.bring)


def publish(*_: Any) -> Any:
    raise AssertionError


async def one_turn(gate: Any, seed: int) -> Completion:
    found: Completion = await gate.sample([1] * 9, SamplingParams(max_tokens=4), seed)
    return found


@pytest.mark.timeout(60)
def test_an_engine_that_comes_back_in_the_middle_of_a_rollout_gets_the_weights_of_the_others() -> None:
    """It is the only one, and no update follows."""
    engine = Engine()
    ranks = PlayedRanks([engine])
    sampler = RoutedSampler("one", [engine], publish, say=lambda _: None)
    ranks.step = 3
    sampler.hand_over(ranks.update())
    engine.is_dead = True
    assert asyncio.run(one_turn(sampler, 0)).policy_version == 3
    assert engine.taken == [3]
    sampler.close()


@pytest.mark.timeout(60)
def test_an_engine_that_comes_back_while_a_step_trains_serves_behind_it_and_before_weights_are_handed_over() -> None:
    """The turn in flight waits for the engine, the engine for the update, the hand-over for the turn."""
    engine = Engine()
    ranks = PlayedRanks([engine])
    sampler = RoutedSampler("one", [engine], publish, say=lambda _: None)
    sampler.hand_over(ranks.update())
    trains, may_end = threading.Event(), threading.Event()

    def train() -> None:
        with ranks.turn:
            trains.set()
            assert may_end.wait(30)
            ranks.step += 1

    async def run() -> list[int]:
        gate, loop = Gate(sampler), asyncio.get_running_loop()
        training = loop.run_in_executor(None, train)
        await loop.run_in_executor(None, trains.wait)
        engine.is_dead = True
        growing = asyncio.create_task(one_turn(gate, 0))
        await loop.run_in_executor(None, ranks.asked.wait)
        assert not growing.done()
        may_end.set()
        await training
        await gate.close()
        sampler.hand_over(ranks.update())  # it holds the loop, as the main thread does
        gate.open()
        return [(await growing).policy_version, (await one_turn(gate, 1)).policy_version]

    assert asyncio.run(run()) == [1, 1]
    assert engine.taken == [1]
    assert sampler.policy_version == 1
    sampler.close()
