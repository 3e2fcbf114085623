"""Weights go to other processes chunk by chunk: all of them arrive, and few are alive at a time on either side."""

import gc
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from treegrpo_cli.models.chunks import Chunk
from treegrpo_cli.models.weights import Adapter, Weights
from treegrpo_cli.scale.weights import Arrival, Header, Published, Receiver, publish, send


class Stored:
    """A reference, and what it refers to."""

    def __init__(self, chunk: Chunk, store: "Store") -> None:
        self.chunk = chunk
        store.count(self, chunk.num_bytes)


class Store:
    """Stands for Ray: objects are named and fetched, and calls of actors run at once."""

    def __init__(self) -> None:
        self.alive = self.most = self.num_put = 0

    def put(self, chunk: Chunk) -> Stored:
        self.num_put += 1
        return Stored(chunk, self)

    def get(self, named: Any) -> Any:
        return named.chunk if isinstance(named, Stored) else named

    def count(self, holder: object, num_bytes: int) -> None:
        self.alive += num_bytes
        self.most = max(self.most, self.alive)
        weakref.finalize(holder, self._forget, num_bytes)

    def _forget(self, num_bytes: int) -> None:
        self.alive -= num_bytes


class Actor(Receiver):
    """An actor in this process: `actor.method.remote(...)` calls it, with what references refer to."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __getattribute__(self, name: str) -> Any:
        if name not in ("begin_weights", "take_chunk", "end_weights"):
            return super().__getattribute__(name)
        method = super().__getattribute__(name)

        def remote(*args: Any) -> Any:
            return method(*(arg.chunk if isinstance(arg, Stored) else arg for arg in args))

        return SimpleNamespace(remote=remote)


class Taking:
    """A sampler that keeps a sum of each weight, or everything where `keeps`."""

    policy_version = -1

    def __init__(self, keeps: bool = True, error: Exception | None = None) -> None:
        self.keeps, self.error = keeps, error
        self.found: dict[str, torch.Tensor] = {}
        self.adapter: Adapter | None = None

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        assert isinstance(weights, Weights)
        for name, tensor in weights:
            assert weights.shapes[name] == tensor.shape
            self.found[name] = tensor.clone() if self.keeps else tensor.sum()
            if self.error:
                raise self.error
        self.policy_version = policy_version

    def update_adapter(self, adapter: Adapter, policy_version: int) -> None:
        self.adapter, self.policy_version = adapter, policy_version


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setitem(sys.modules, "ray", store)  # type: ignore[arg-type]
    return store


def model(num_layers: int, size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"layers.{number}.weight": torch.randn(size, size, generator=generator).bfloat16()
        for number in range(num_layers)
    }


class Made:
    """Weights that are made one by one, of which is known how many bytes are alive."""

    def __init__(self, num_layers: int, size: int = 64) -> None:
        self.num_layers, self.size, self.num_passes = num_layers, size, 0
        self.store = Store()

    def weights(self) -> Weights:
        shapes = {f"layers.{number}": torch.Size((self.size, self.size)) for number in range(self.num_layers)}
        return Weights(shapes, self._stream)

    def _stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.num_passes += 1
        for number in range(self.num_layers):
            tensor = torch.full((self.size, self.size), float(number))
            self.store.count(tensor.untyped_storage(), tensor.nbytes)
            yield f"layers.{number}", tensor
            del tensor


@pytest.mark.parametrize("lasts", [True, False])
def test_two_engines_get_every_weight_and_the_version(store: Store, lasts: bool) -> None:
    given, samplers = model(9), [Taking(), Taking()]
    published = publish(given.items(), 7, lasts=lasts, chunk_bytes=20_000)
    actors = [Actor(sampler) for sampler in samplers]
    threads = [threading.Thread(target=send, args=(published, actor)) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for sampler in samplers:
        assert sampler.policy_version == published.policy_version == 7
        assert list(sampler.found) == list(given)
        assert all(torch.equal(sampler.found[name], given[name]) for name in given)


def test_what_lasts_is_put_once_and_can_be_sent_again(store: Store) -> None:
    given, sampler = model(3), Taking()
    published = publish(given.items(), 1, chunk_bytes=10_000)
    assert published.lasts
    assert store.num_put == 3
    send(published, Actor(Taking()))
    send(published, Actor(sampler))
    assert store.num_put == 3
    assert all(torch.equal(sampler.found[name], given[name]) for name in given)


def test_a_pass_that_streams_holds_a_few_chunks_of_many_on_both_sides(store: Store) -> None:
    made = Made(40)
    chunk_bytes = 2 * 4 * 64 * 64
    whole = made.num_layers * 4 * 64 * 64
    published = publish(made.weights(), 1, lasts=False, chunk_bytes=chunk_bytes)
    assert store.num_put == 0
    sampler = Taking(keeps=False)
    send(published, Actor(sampler))
    assert [float(total) for total in sampler.found.values()] == [64 * 64 * number for number in range(40)]
    assert store.num_put == 20
    assert store.most <= 4 * chunk_bytes  # the window, and what the engine takes while the next one is made
    assert made.store.most <= 6 * chunk_bytes < whole  # here what is stored is not copied, so it counts too
    del published
    gc.collect()
    assert store.alive == made.store.alive == 0


def test_what_lasts_is_put_tensor_by_tensor_and_the_sender_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(40)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(put=lambda chunk: chunk.names))
    published = publish(made.weights(), 1, chunk_bytes=2 * 4 * 64 * 64)
    assert len(list(published.refs())) == 20
    assert made.store.most <= 4 * 4 * 64 * 64  # a chunk in the making, and the next tensor


def test_engines_that_take_a_pass_together_share_it_and_a_later_one_begins_another(store: Store) -> None:
    made = Made(12)
    published = publish(made.weights(), 1, lasts=False, chunk_bytes=1)
    side_by_side = [published.refs(), published.refs()]
    for _ in range(12):
        assert len({id(next(reader)) for reader in side_by_side}) == 1
    assert made.num_passes == 1
    for reader in side_by_side:
        assert next(reader, None) is None
    send(published, Actor(Taking()))
    assert made.num_passes == 2


def test_an_engine_that_fails_leaves_the_others_their_weights(store: Store) -> None:
    given, good = model(30), Taking()
    published = publish(given.items(), 3, lasts=False, chunk_bytes=10_000)
    errors: list[Exception] = []

    def fail() -> None:
        try:
            send(published, Actor(Taking(error=ValueError("the engine died"))))
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=fail), threading.Thread(target=send, args=(published, Actor(good)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert [str(error) for error in errors] == ["the engine died"]
    assert good.policy_version == 3
    assert len(good.found) == 30


def test_an_adapter_is_one_object(store: Store) -> None:
    adapter = Adapter(
        2, 4.0, {"a.q_proj": (torch.ones(2, 8), torch.zeros(8, 2)), "b.v": (torch.ones(2, 4), torch.ones(4, 2))}
    )
    sampler = Taking()
    published = publish(adapter, 5, lasts=False)
    send(published, Actor(sampler))
    assert published.lasts
    assert store.num_put == 1
    assert sampler.adapter is not None
    assert (sampler.adapter.rank, sampler.adapter.alpha, sampler.policy_version) == (2, 4.0, 5)
    for name, pair in adapter.layers.items():
        assert all(torch.equal(*both) for both in zip(pair, sampler.adapter.layers[name], strict=True))


def test_a_sampler_of_this_process_takes_what_another_one_published(store: Store) -> None:
    given, sampler = model(4), Taking()
    published = publish(given.items(), 2, lasts=False, chunk_bytes=10_000)
    weights = published.weights()
    assert weights.shapes == {name: tensor.shape for name, tensor in given.items()}
    sampler.update_weights(weights, published.policy_version)
    assert all(torch.equal(sampler.found[name], given[name]) for name in given)


def test_ranks_publish_references_that_they_made_themselves(store: Store) -> None:
    given, sampler = model(3), Taking()
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}

    def of_the_first_rank() -> Iterator[Stored]:
        for item in given.items():
            yield store.put(Chunk.of([item]))

    send(Published(Header(4, shapes), of_the_first_rank, lasts=False), Actor(sampler))
    assert sampler.policy_version == 4
    assert all(torch.equal(sampler.found[name], given[name]) for name in given)


def test_an_update_that_stopped_in_the_middle_ends_when_the_next_one_begins(store: Store) -> None:
    given, sampler = model(4), Taking()
    receiver = Receiver()
    receiver.sampler = sampler  # type: ignore[assignment]
    receiver.begin_weights(Header(1, {name: tuple(tensor.shape) for name, tensor in given.items()}))
    receiver.take_chunk(Chunk.of(list(given.items())[:1]))
    send(publish(given.items(), 2), Actor(sampler))
    receiver.begin_weights(Header(3, {}))
    receiver.end_weights()
    assert sampler.policy_version == 3


def test_chunks_that_come_faster_than_they_are_loaded_wait_one_at_a_time() -> None:
    loading, go_on = threading.Event(), threading.Event()
    loaded: list[tuple[str, ...]] = []

    def load(arriving: Iterator[Chunk]) -> None:
        for chunk in arriving:
            loading.set()
            go_on.wait(30)
            loaded.append(chunk.names)

    arrival = Arrival(load)
    arrival.take(Chunk.of([("a", torch.zeros(1))]))
    loading.wait(30)
    arrival.take(Chunk.of([("b", torch.zeros(1))]))
    third = threading.Thread(target=arrival.take, args=(Chunk.of([("c", torch.zeros(1))]),))
    third.start()
    third.join(0.1)
    assert third.is_alive()
    go_on.set()
    third.join(30)
    arrival.end()
    assert loaded == [("a",), ("b",), ("c",)]
