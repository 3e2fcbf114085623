"""A policy's weights -> objects of Ray, chunk by chunk -> the same weights in engines of other processes.

    driver          published = publish(weights, policy_version)
    for each engine, in a thread of its own: send(published, actor)
    engine's actor  begin_weights(header) · take_chunk(chunk) ... · end_weights()      (`Receiver`)
    who samples in the driver itself: sampler.update_weights(published.weights(), policy_version)

Two ways. A pass that streams keeps `WINDOW` chunks in the object store and nothing else: engines read side by side,
and the weights must stay as they are meanwhile. One that `lasts` keeps all chunks there, so that an engine that comes
back can be given them whatever the trainer does: it costs the store one whole copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Lock, Thread
from typing import Any, TypeAlias

import torch

from treegrpo_cli.models.chunks import CHUNK_BYTES, Chunk, chunks
from treegrpo_cli.models.weights import Adapter, Weights
from treegrpo_cli.samplers.base import Sampler
from treegrpo_cli.scale.window import MissedError, Window

WINDOW = 3
"""Chunks of a pass that streams which are in the object store at once."""

Ref: TypeAlias = Any
"""Ray's name for an object in its store."""


@dataclass(frozen=True, slots=True)
class Header:
    """What comes before the first chunk: the version, and every tensor's name and shape.

    `adapter`: rank and alpha, where the tensors are those of an adapter, `NAME/A` and `NAME/B` for each of its layers.
    """

    policy_version: int
    shapes: dict[str, tuple[int, ...]]
    adapter: tuple[int, float] | None = None


class Published:
    """Weights or an adapter on their way to other processes; `open_chunks` begins a pass over them.

    A pass yields references to `Chunk`s, each made when it is asked for. It is the ranks' own way in too: their first
    rank makes the chunks, and only references come to the driver.
    """

    def __init__(self, header: Header, open_chunks: Callable[[], Iterator[Ref]], *, lasts: bool) -> None:
        self.header, self.lasts = header, lasts
        self._open = open_chunks
        self._refs = list(open_chunks()) if lasts else None
        self._opening = Lock()
        self._window: Window[Ref] | None = None

    @property
    def policy_version(self) -> int:
        """The version of who samples with these."""
        return self.header.policy_version

    def lasting(self) -> Published:
        """The same with all chunks in the object store."""
        return self if self.lasts else Published(self.header, self._open, lasts=True)

    def refs(self) -> Iterator[Ref]:
        """Yield all chunks' references; who reads at the same time in other threads shares the pass."""
        return self._streamed() if self._refs is None else iter(self._refs)

    def send_to(self, actor: Any) -> None:
        """Let one engine's actor take it. Raises what Ray raises."""
        send(self, actor)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and tensors. They lie in the object store: they are read, and never written to."""
        import ray

        for ref in self.refs():
            yield from ray.get(ref).items()

    def weights(self) -> Weights:
        """The whole state dict, as every sampler takes it."""
        shapes = {name: torch.Size(shape) for name, shape in self.header.shapes.items()}
        return _PublishedWeights(shapes, self)

    def _streamed(self) -> Iterator[Ref]:
        with self._opening:
            if self._window is not None:
                with suppress(MissedError):
                    return self._window.read()
            self._window = Window(self._open(), WINDOW)
            return self._window.read()


class _PublishedWeights(Weights):
    """What is published already, as a state dict: read here, or passed on by reference."""

    def __init__(self, shapes: dict[str, torch.Size], published: Published) -> None:
        super().__init__(shapes, published.items)
        self.published = published


def publish(
    given: Iterable[tuple[str, torch.Tensor]] | Adapter,
    policy_version: int,
    *,
    lasts: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
) -> Published:
    """Publish a `state_dict()`'s items, or an adapter, which is one object and always lasts.

    What is published already goes on as it is; its chunks are kept from here on where it has to last and did not.
    """
    if isinstance(given, Adapter):
        items = list(_adapter_items(given))
        shapes = {name: tuple(tensor.shape) for name, tensor in items}
        header = Header(policy_version, shapes, (given.rank, given.alpha))
        return Published(header, lambda: map(put, [Chunk.of(items)]), lasts=True)
    weights = Weights.of(given)
    if isinstance(weights, _PublishedWeights) and weights.published.policy_version == policy_version:
        return weights.published.lasting() if lasts else weights.published
    header = Header(policy_version, {name: tuple(shape) for name, shape in weights.shapes.items()})
    return Published(header, lambda: map(put, chunks(weights, chunk_bytes)), lasts=lasts)


def put(chunk: Chunk) -> Ref:
    """Put a chunk into the object store of this machine, its only copy."""
    import ray

    return ray.put(chunk)


def send(published: Published, actor: Any) -> None:
    """Let one engine's actor, a `Receiver`, take what is published. It blocks, and raises what Ray raises.

    A chunk is on its way while the engine loads the one before it.
    """
    import ray

    ray.get(actor.begin_weights.remote(published.header))
    for ref in published.refs():
        ray.get(actor.take_chunk.remote(ref))
    ray.get(actor.end_weights.remote())


class Receiver:
    """What an actor that samples offers to `send`; it sets `sampler`."""

    sampler: Sampler
    _arrival: Arrival | None = None

    def begin_weights(self, header: Header) -> None:
        """Wait for chunks, and load them as they come."""
        if self._arrival is not None:
            self._arrival.give_up()
        self._arrival = Arrival(lambda chunks: load(self.sampler, header, chunks))

    def take_chunk(self, chunk: Chunk) -> None:
        """Return when the chunk before this one has been loaded."""
        assert self._arrival is not None
        self._arrival.take(chunk)

    def end_weights(self) -> None:
        """Return when the sampler computes with the new weights. Raises what loading raised."""
        assert self._arrival is not None
        arrival, self._arrival = self._arrival, None
        arrival.end()


def load(sampler: Sampler, header: Header, arriving: Iterator[Chunk]) -> None:
    """Hand a sampler what arrives."""
    items = (item for chunk in arriving for item in chunk.items())
    if header.adapter is None:
        shapes = {name: torch.Size(shape) for name, shape in header.shapes.items()}
        sampler.update_weights(Weights(shapes, lambda: items), header.policy_version)
    else:
        sampler.update_adapter(_adapter_of(header.adapter, dict(items)), header.policy_version)


class Arrival:
    """Chunks that are given one after another -> an iterator that `load` reads in a thread of its own.

    One waits while one is loaded.
    """

    def __init__(self, load: Callable[[Iterator[Chunk]], None]) -> None:
        self._waiting: Chunk | None = None
        self._is_ended = self._is_left = False
        self._error: BaseException | None = None
        self._changed = Condition()
        self._thread = Thread(target=self._run, args=(load,), name="new weights", daemon=True)
        self._thread.start()

    def take(self, chunk: Chunk) -> None:
        """Hand over a chunk, once the one before it is being loaded. Raises what loading raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None or self._is_left)
            self._check()
            self._waiting = chunk
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no more comes, and wait until all is loaded. Raises what loading raised."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        self._thread.join()
        self._check()

    def give_up(self) -> None:
        """End the loading where the rest will never come; the sampler is then no longer whole."""
        with self._changed:
            self._error = RuntimeError("the weights stopped coming")
            self._changed.notify_all()
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, load: Callable[[Iterator[Chunk]], None]) -> None:
        try:
            load(self._chunks())
        except BaseException as error:
            self._error = error
        with self._changed:
            self._is_left, self._waiting = True, None
            self._changed.notify_all()

    def _chunks(self) -> Iterator[Chunk]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ended or self._error)
                self._check()
                chunk, self._waiting = self._waiting, None
                self._changed.notify_all()
            if chunk is None:
                return
            yield chunk
            del chunk


def _adapter_items(adapter: Adapter) -> Iterator[tuple[str, torch.Tensor]]:
    for name, (down, up) in adapter.layers.items():
        yield f"{name}/A", down
        yield f"{name}/B", up


def _adapter_of(sizes: tuple[int, float], tensors: dict[str, torch.Tensor]) -> Adapter:
    names = [name.removesuffix("/A") for name in tensors if name.endswith("/A")]
    rank, alpha = sizes
    return Adapter(rank, alpha, {name: (tensors[f"{name}/A"], tensors[f"{name}/B"]) for name in names})
