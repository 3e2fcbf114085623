"""A vLLM server that somebody else runs -> a replica: turns, new weights, and whether it is the one that it was.

A server says with each turn which weights sampled it, by a label. Ours are of this run alone, so that one which was
killed and started again shows at its first answer: it has its own weights, and another label. Nothing of it is used
then; it is looked at again and gets the current weights before it serves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError, said
from treegrpo_cli.samplers.base import EngineCounts
from treegrpo_cli.samplers.replicas import ReplicaGoneError
from treegrpo_cli.samplers.server_checks import Fingerprint, check_temperature, read_card
from treegrpo_cli.samplers.server_client import FailedError, RefusedError, ServerClient, refused_by
from treegrpo_cli.samplers.server_protocols import (
    BrokenOffError,
    Completions,
    Generate,
    Route,
    Sampled,
    max_bytes,
)
from treegrpo_cli.samplers.server_thread import ServerThread
from treegrpo_cli.samplers.server_weights import FolderUpdate, Labels, load_weights, read_label, set_going
from treegrpo_cli.samplers.stepping import Request, bounded_request
from treegrpo_cli.samplers.vllm_turns import EngineTurn
from treegrpo_cli.types import Completion, SamplingParams, TokenIds

if TYPE_CHECKING:
    from treegrpo_cli.config import SamplerConfig

LOOK_S = 1.0
"""Seconds between two looks for a server that does not answer."""
SCALE_OUT = "use vLLM 0.32 or newer, started with --enable-scale-out"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every server of a run must be: its vocabulary and ends, the longest context plus turn, and `contexts` to
    know it by; `trains`: it gets new weights."""

    tokenizer: Any
    end_ids: frozenset[int]
    vocab_size: int
    max_model_len: int
    contexts: Sequence[list[int]]
    trains: bool


class ServerReplica:
    """One server. `url` is how it is asked, `name` how it is named."""

    takes_adapter = False

    def __init__(self, url: str, config: SamplerConfig, wanted: Wanted, labels: Labels) -> None:
        self._client = ServerClient(url, config)
        self.name, self.max_model_len = self._client.name, wanted.max_model_len
        self.keeps_prefixes = True
        self.fingerprint: Fingerprint | None = None
        """What it answered with the weights that it was started with, where it had those when it was first seen."""
        self._config, self._wanted, self._labels = config, wanted, labels
        self._thread = ServerThread(f"treegrpo {self.name}")
        self._places = asyncio.Semaphore(config.max_num_seqs)
        self._route: Route = Generate()
        self._model = ""
        self._label: str | None = None
        self._version = 0
        self._num_requests = self._num_running = self._num_tokens = 0
        self._since, self._busy_s = 0.0, 0.0

    def open(self, say: Callable[[str], None]) -> None:
        """Wait for it, and check it. Raises UserError where it cannot serve, or does not answer in time."""
        try:
            self._thread.wait(self._open(say))
        except ReplicaGoneError as error:
            raise UserError(f"{self.name}: {said(error)}") from None

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """Sample one turn; what `params.stop_below` cuts off is decoded by the server all the same."""
        if params.entropies or params.drawn:
            raise UserError(f"{self.name}: a server gives no entropies and draws no siblings that differ")
        self._num_requests += 1
        request = bounded_request(str(self._num_requests), context, params, seed, self.max_model_len)
        return await self._thread.ask(self._sample(request))

    def take(self, update: FolderUpdate) -> None:
        """Load the weights of a folder, in between two turns, and take their label."""
        self._thread.wait(load_weights(self._client, update, self._config.weights_dir))
        self._label, self._version = update.label, update.policy_version

    def revive(self) -> int | None:
        """Wait until it answers again, check it as at the start, and return the version of its weights.

        Raises ReplicaGoneError where what is back is not what it was.
        """
        try:
            return self._thread.wait(self._revive())
        except UserError as error:
            raise ReplicaGoneError(said(error)) from None

    def greedy(self) -> Fingerprint:
        """What it answers to the contexts that it is known by."""
        return self._thread.wait(self._fingerprint())

    def sleep(self) -> None:
        """A server keeps its memory."""

    def take_counts(self) -> EngineCounts:
        """Seconds in which it had something to do for us; of its steps it does not tell."""
        if self._num_running:
            now = time.monotonic()
            self._busy_s, self._since = self._busy_s + now - self._since, now
        counts = EngineCounts(step_s=self._busy_s, generated_tokens=self._num_tokens)
        self._busy_s, self._num_tokens = 0.0, 0
        return counts

    def close(self) -> None:
        """Ask no more; the server goes on."""
        self._thread.end(self._client.close())

    async def _sample(self, request: Request) -> Completion:
        async with self._places:
            self._begin()
            try:
                version, label = self._version, self._label
                sampled = self._checked(await self._ask(request), label)
            finally:
                self._end()
        self._num_tokens += len(sampled.token_ids)
        turn = EngineTurn(request, request.request_id, num_cached_tokens=sampled.num_cached_tokens or 0)
        turn.add(sampled.token_ids, sampled.logprobs, (sampled.finish_reason, sampled.stop_reason))
        completion = turn.completion(self._wanted.tokenizer, self._wanted.end_ids)
        return replace(completion, policy_version=version)

    async def _ask(self, request: Request, num_top: int = 0) -> Sampled:
        """Ask for a turn and read it."""
        body = self._route.body(request, self._wanted.end_ids, self._model, num_top)
        answer = await self._client.post(self._route.path, body, max_bytes=max_bytes(request) * (1 + num_top))
        try:
            return self._route.read(answer, request, self._wanted.vocab_size)
        except BrokenOffError as error:
            raise ReplicaGoneError(str(error)) from None
        except ValueError as error:
            raise self._client.wrong(self._route.path, str(error)) from None

    def _checked(self, sampled: Sampled, label: str | None) -> Sampled:
        """Raise ReplicaGoneError where the server is not the one that was checked, or began with other weights."""
        if sampled.model != self._model:
            raise ReplicaGoneError(f"it serves {sampled.model!r:.100} now")
        if sampled.labels is None:
            if self._wanted.trains:
                raise self._client.wrong(self._route.path, "it does not say which weights sampled it")
            return sampled
        other = [at for at in sampled.labels if at != label and self._labels.version_of(at) is None]
        if other or sampled.labels[:1] != (label,):
            found = min(other, default=sampled.labels[:1])
            raise ReplicaGoneError(f"it has weights {found!r:.60}, not {label!r}: was it started again?")
        return sampled

    async def _open(self, say: Callable[[str], None]) -> None:
        deadline = time.monotonic() + self._config.server_wait_s
        await self._healthy(say, deadline)
        await self._check()
        if not (self._wanted.trains and self._labels.is_trained(self._label)):
            self.fingerprint = await self._fingerprint()

    async def _healthy(self, say: Callable[[str], None], deadline: float) -> None:
        """Wait until it answers that it is well."""
        has_said = False
        while True:
            try:
                await self._client.get("/health", retries=0)
                return
            except ReplicaGoneError as error:
                reason = said(error)
            except RefusedError as error:  # it is somebody else's, or is behind a gate that knows no such path
                if error.status != 404:
                    raise
                return
            if time.monotonic() > deadline:
                raise UserError(f"{self.name}: no answer within {self._config.server_wait_s:g} s ({reason})")
            if not has_said:
                say(f"waiting for {self.name} ({reason}) ...")
                has_said = True
            await asyncio.sleep(LOOK_S)

    async def _check(self) -> None:
        """See what the server is and that it can serve, one question after another."""
        card = read_card(self._client, await self._client.get("/v1/models"))
        self._model = card.model
        if card.max_model_len < self.max_model_len:
            raise UserError(
                f"{self.name}: holds {card.max_model_len} tokens, and the rollout needs {self.max_model_len}: start it "
                f"with --max-model-len {self.max_model_len}, or lower rollout.max_context_tokens"
            )
        first = await self._first_turn()
        self.keeps_prefixes = first.num_cached_tokens is not None
        self._label = first.labels[0] if first.labels else None
        if self._wanted.trains:
            await self._check_training(first)
        await check_temperature(self.name, self._tops)

    async def _check_training(self, first: Sampled) -> None:
        if first.labels is None:
            raise UserError(f"{self.name}: does not say which weights sample a turn, as training needs: {SCALE_OUT}")
        self._label = await read_label(self._client)
        await set_going(self._client)

    async def _first_turn(self) -> Sampled:
        """Ask for a token by the newer route, and by the older one where the newer is not there or not open."""
        request = self._greedy(self._wanted.contexts[0], 1)
        self._route = Generate()
        try:
            return await self._ask(request)
        except (RefusedError, FailedError) as error:
            if not refused_by(error, (403, 404, 405, 501)):
                raise
        self._route = Completions()
        return await self._ask(request)

    async def _fingerprint(self) -> Fingerprint:
        asked = (self._ask(self._greedy(context, 8)) for context in self._wanted.contexts)
        found = await asyncio.gather(*asked)
        return Fingerprint.of([self._checked(sampled, self._label) for sampled in found])

    async def _tops(self, temperature: float) -> list[list[float]]:
        """The log-probabilities of each context's first token and the other that could be drawn."""
        params = SamplingParams(max_tokens=1, temperature=temperature, top_k=2)
        asked = (Request("top", context, params, 0) for context in self._wanted.contexts)
        return [top for request in asked for top in (await self._ask(request, num_top=2)).top]

    def _greedy(self, context: list[int], max_tokens: int) -> Request:
        return Request("greedy", context, SamplingParams(max_tokens=max_tokens, greedy=True), 0)

    async def _revive(self) -> int | None:
        await self._healthy(lambda _: None, float("inf"))
        await self._check()
        version = self._labels.version_of(self._label)
        if version is None and self._wanted.trains and self._labels.is_trained(self._label):
            raise UserError(f"{self.name}: another run trains it ({self._label})")
        if version is None and self.fingerprint and (why := self.fingerprint.differs(await self._fingerprint())):
            raise UserError(f"{self.name}: is back with another model than it had: {why}")
        self._version = version or 0
        return version

    def _begin(self) -> None:
        if not self._num_running:
            self._since = time.monotonic()
        self._num_running += 1

    def _end(self) -> None:
        self._num_running -= 1
        if not self._num_running:
            self._busy_s += time.monotonic() - self._since
