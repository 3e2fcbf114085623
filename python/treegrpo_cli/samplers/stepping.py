"""Requests of many coroutines -> steps of one engine -> their completions.

An engine decodes one token a step for everything in its batch, and a request can join only between two
steps. Between two steps everything runs that is ready to: sockets are read, tools go on, and what they ask
the engine for joins the next step. The steps themselves run inside the event loop while nobody there waits
for the world, which costs nothing; beside it, in a thread, while somebody does and a step is long enough to
be felt, so that answers are taken when they come.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from treegrpo_cli.free_time import busy
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.samplers.base import EngineCounts
from treegrpo_cli.samplers.pace import Pace
from treegrpo_cli.samplers.step_thread import StepThread
from treegrpo_cli.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    import torch

    from treegrpo_cli.models.weights import Adapter


LOOK_S = 0.1
"""Seconds between two looks for the end of a step."""


class EngineError(RuntimeError):
    """The engine has died or is closed; every request that waits for it gets this."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one coroutine asks for; `params.max_tokens` fits into the context."""

    request_id: str
    context: list[int]
    params: SamplingParams
    seed: int


def bounded_request(
    request_id: str, context: TokenIds, params: SamplingParams, seed: int, max_model_len: int
) -> Request:
    """Return the request, its turn no longer than `max_model_len` leaves room for.

    Raises ValueError where the context is empty or leaves no room for a token.
    """
    room = max_model_len - len(context)
    if len(context) == 0 or params.max_tokens < 1:
        raise ValueError(f"got a context of {len(context)} tokens and max_tokens {params.max_tokens}, both must be > 0")
    if params.greedy and params.drawn:
        raise ValueError("got turns that are not to be drawn again, and greedy, which draws nothing")
    if room < 1:
        raise ValueError(f"got a context of {len(context)} tokens, the engine holds {max_model_len} with the turn")
    ids = [int(token) for token in context]
    return Request(request_id, ids, replace(params, max_tokens=min(params.max_tokens, room)), seed)


class SteppedSampler(ABC):
    """The part of a sampler that every engine shares: futures, cancellation, limits, counts.

    An engine gives `add`, `drop`, `step`, `load_weights` and `free`; where it can, adapters and sleep too.
    """

    name: str

    def __init__(self, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.policy_version = 0
        self._futures: dict[str, asyncio.Future[Completion]] = {}
        self._driver: asyncio.Task[None] | None = None
        self._arrived: list[Request] = []
        self._gone: list[str] = []
        self._stepping = False
        self._thread: StepThread[list[tuple[str, Completion]]] | None = None
        self._pace = Pace()
        self._num_requests = 0
        self._prompt_tokens = self._cached_tokens = 0
        self._counts = EngineCounts()
        self._asleep = False
        self._error: EngineError | None = None

    @abstractmethod
    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError where this request alone is impossible."""

    @abstractmethod
    def drop(self, request_id: str) -> None:
        """Forget a request that nobody waits for any more; it may have ended in the last step."""

    @abstractmethod
    def step(self) -> list[tuple[str, Completion]]:
        """Decode one token for every request in the batch; return those that ended."""

    @abstractmethod
    def weight_shapes(self) -> dict[str, torch.Size]:
        """Return the names and shapes of the model's `state_dict()`, tied weights under every name."""

    @abstractmethod
    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, each as it comes, and forget everything computed with the old ones."""

    takes_adapter: bool = False
    names_version: bool = False
    """Whether completions carry the version that sampled them already, by the engine's own word."""
    keeps_prefixes: bool = True
    """Whether what it has read of a prompt is cached for the next request."""

    def load_adapter(self, adapter: Adapter) -> None:
        """Compute with this adapter from now on, where `takes_adapter`; forget everything computed with another."""
        raise NotImplementedError

    def label(self, policy_version: int) -> None:  # noqa: B027 - most engines have no word of their own
        """Tell the engine the version of its new weights, where it says it of what it samples."""

    def fall_asleep(self) -> bool:
        """Give memory back and return True; an engine that has none to give stays awake and returns False."""
        return False

    def waking(self) -> AbstractContextManager[None]:
        """Take back the memory of the weights, let them be loaded, then take back the rest."""
        return nullcontext()

    @abstractmethod
    def free(self) -> None:
        """Give back the engine's memory."""

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """Sample one turn behind `context`; cancelling the coroutine drops the request.

        Raises ValueError where the context is empty or leaves no room for a token, EngineError where the
        engine died.
        """
        if self._error:
            raise self._error
        if self._asleep:
            raise RuntimeError("the engine sleeps until it gets new weights")
        self._num_requests += 1
        request = bounded_request(str(self._num_requests), context, params, seed, self.max_model_len)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._futures[request.request_id] = future
        self._arrived.append(request)
        self._start()
        try:
            completion = await future
        except asyncio.CancelledError:
            if self._futures.pop(request.request_id, None):
                self._forget(request.request_id)
            raise
        self._prompt_tokens += len(request.context)
        self._cached_tokens += completion.num_cached_tokens
        return completion if self.names_version else replace(completion, policy_version=self.policy_version)

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        """Take a whole `state_dict()`'s items, and forget everything computed with the old weights.

        Of `models.weights.Weights` names and shapes are seen before a tensor is made, and no two tensors are held.
        Raises ValueError where names or shapes are not the model's, RuntimeError while requests run. Whatever is
        raised between two tensors ends the engine: it would go on with some weights of one version, some of another.
        """
        stream = Weights.of(weights)
        check_shapes(self.weight_shapes(), stream.shapes)
        self._replace(lambda: self.load_weights(iter(stream)), policy_version)

    def update_adapter(self, adapter: Adapter, policy_version: int) -> None:
        """Take a new adapter, and forget everything computed with the old one.

        Raises RuntimeError while requests run.
        """
        if not self.takes_adapter:
            raise ValueError(f"this {self.name} sampler takes adapters merged into the weights")
        self._replace(lambda: self.load_adapter(adapter), policy_version)

    def sleep(self) -> None:
        """Give the engine's memory back until the next update. Raises RuntimeError while requests run."""
        self._settle()
        if not self._asleep:
            self._asleep = self.fall_asleep()

    def _replace(self, load: Callable[[], None], policy_version: int) -> None:
        self._settle()
        with self.waking() if self._asleep else nullcontext():
            try:
                load()
            except BaseException as error:
                self._die(f"got new weights in part: {type(error).__name__}: {error}", error)
                raise
        self._asleep = False
        self.policy_version = policy_version
        self.label(policy_version)

    def _settle(self) -> None:
        """Be between two rollouts. Raises RuntimeError while requests run, EngineError where the engine died."""
        if self._error:
            raise self._error
        if self._futures:
            raise RuntimeError(f"{len(self._futures)} requests are still running: update weights between rollouts")
        self._join()

    async def step_ended(self) -> None:
        """Return at once, or when a step that runs beside the loop has ended."""
        counts = self._counts
        while self._stepping and self._counts is counts:
            await asyncio.sleep(LOOK_S)

    def prefix_cache_hit_ratio(self) -> float | None:
        """Cached over all prompt tokens of requests finished since the last call; None without any."""
        ratio = self._cached_tokens / self._prompt_tokens if self._prompt_tokens else None
        self._prompt_tokens = self._cached_tokens = 0
        return ratio

    def take_counts(self) -> EngineCounts:
        """Return what the engine did since the last call."""
        counts, self._counts = self._counts, EngineCounts()
        return counts

    def close(self) -> None:
        """Free the engine; requests that still wait fail with EngineError. Closing twice is fine."""
        if self._error is None:
            self._join()
            self._fail(EngineError(f"the {self.name} sampler is closed"))
            self._free()

    def _start(self) -> None:
        """Let a task of the running loop step the engine, unless one does."""
        loop = asyncio.get_running_loop()
        if self._driver is None or self._driver.done() or self._driver.get_loop() is not loop:
            self._driver = loop.create_task(self._drive(), name=f"{self.name} engine")

    async def _drive(self) -> None:
        """Step until nobody waits; a step that fails fails everybody, once and for all."""
        try:
            while True:
                await self._pace.settle()
                self._hand_over()
                if not self._futures:
                    return
                for request_id, completion in await self._timed_step():
                    future = self._futures.pop(request_id, None)
                    if future is not None and not future.done():
                        future.set_result(completion)
        except Exception as error:
            self._die(f"died: {type(error).__name__}: {error}", error)
        finally:
            self._join()

    async def _timed_step(self) -> list[tuple[str, Completion]]:
        start = time.monotonic()
        ended = await self._step_beside_the_loop() if self._pace.beside_the_loop() else self._step_inside_the_loop()
        step_s = time.monotonic() - start
        self._pace.note(step_s)
        num_tokens = sum(len(completion.token_ids) for _, completion in ended)
        counts = self._counts
        self._counts = EngineCounts(counts.step_s + step_s, counts.num_steps + 1, counts.generated_tokens + num_tokens)
        return ended

    def _step_inside_the_loop(self) -> list[tuple[str, Completion]]:
        with busy():
            return self.step()

    async def _step_beside_the_loop(self) -> list[tuple[str, Completion]]:
        if self._thread is None:
            self._thread = StepThread(f"treegrpo-{self.name}", self.step)
        self._stepping = True
        ended = await self._thread.call()
        self._stepping = False
        return ended

    def _hand_over(self) -> None:
        """Give the engine what arrived since its last step, and take back what nobody waits for any more."""
        gone, self._gone = self._gone, []
        for request_id in gone:
            self.drop(request_id)
        arrived, self._arrived = self._arrived, []
        for request in arrived:
            try:
                self.add(request)
            except Exception as error:  # this request's own
                self._futures.pop(request.request_id).set_exception(error)

    def _forget(self, request_id: str) -> None:
        """Drop a request: at once where it has not reached the engine, else when that does not step."""
        waiting = [request for request in self._arrived if request.request_id != request_id]
        if len(waiting) < len(self._arrived):
            self._arrived = waiting
        elif self._stepping:
            self._gone.append(request_id)
        elif not self._error:
            self.drop(request_id)

    def _join(self) -> None:
        """Wait for a step that a cancelled task left running in the thread, and take back what that leaves over."""
        if self._stepping and self._thread is not None:
            self._thread.join()
        self._stepping = False
        if not self._error:
            gone, self._gone = self._gone, []
            for request_id in gone:
                self.drop(request_id)

    def _die(self, reason: str, cause: BaseException) -> None:
        """Fail who waits and who comes later, and give the engine's memory back."""
        failure = EngineError(f"the {self.name} engine {reason}")
        failure.__cause__ = cause
        self._fail(failure)
        self._free()

    def _free(self) -> None:
        self.free()
        if self._thread is not None:
            self._thread.end()

    def _fail(self, error: EngineError) -> None:
        self._error = error
        self._arrived, self._gone = [], []
        futures, self._futures = self._futures, {}
        for future in futures.values():
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(error)


def check_shapes(expected: dict[str, torch.Size], given: dict[str, torch.Size]) -> None:
    """Raise ValueError unless the weights have just these names and shapes.

    A weight that is left out would keep its old values without a sign; that is how a tied `lm_head.weight`
    gets stale, which a saved checkpoint lacks and a `state_dict()` has.
    """
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    other = [f"{name} {tuple(given[name])}" for name in expected if name in given and given[name] != expected[name]]
    if missing or unknown or other:
        raise ValueError(f"weights do not fit the model: missing {missing}, unknown {unknown}, other shape {other}")
