"""One exchange serves all engines that take part; who came back meanwhile reads the store, and a death ends it."""

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from treegrpo_cli.scale import card_update
from treegrpo_cli.scale.card_update import CardUpdate


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


def test_one_exchange_serves_all_members_and_the_store_serves_others(monkeypatch: pytest.MonkeyPatch) -> None:
    beside: Any = SimpleNamespace(policy_version=4)
    exchanges, read = [], []
    monkeypatch.setattr(card_update, "send", lambda published, actor: read.append((published, actor)))
    members, late = [Actor(), Actor(), Actor()], Actor()
    update = CardUpdate(members, lambda: exchanges.append(1), lambda: None, beside)
    assert together(update, members) == [None] * 3
    assert (exchanges, read, update.policy_version) == ([1], [], 4)
    update.send_to(late)
    assert (exchanges, read) == ([1], [(beside, late)])


def test_an_engine_that_dies_in_an_exchange_ends_it_for_all() -> None:
    ended = threading.Event()

    def exchange() -> None:
        assert ended.wait(30)
        raise RuntimeError("the ranks were killed")

    members = [Actor(), Actor()]
    members[1].dies.set()
    beside: Any = SimpleNamespace(policy_version=1)
    first, second = together(CardUpdate(members, exchange, ended.set, beside), members)
    assert isinstance(second, DiedError)
    assert isinstance(first, RuntimeError)
