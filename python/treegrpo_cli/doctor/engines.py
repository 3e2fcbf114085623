"""An engine, the trainer, a tiny model -> whether they are the same policy, before and after an update of weights.

Every answer of the engine is computed again by the trainer, token by token, with the weights that the engine should
have: what it kept of older ones, in weights or in cached keys and values, shows in the log-probabilities.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from treegrpo_cli.config import Config, SamplerConfig
from treegrpo_cli.doctor.finding import Check, NotHereError, WrongError
from treegrpo_cli.doctor.forests import FIRST_TOKEN, LAST_TOKEN, Turn, batch_of
from treegrpo_cli.doctor.tiny_model import MAX_TOKENS
from treegrpo_cli.errors import UserError, said
from treegrpo_cli.samplers import make_sampler, named, names, runs_here, why_no_vllm
from treegrpo_cli.samplers.base import Sampler, Trained
from treegrpo_cli.samplers.vllm_engine import quietly
from treegrpo_cli.samplers.vllm_transfer_names import CALLS, missing
from treegrpo_cli.train.paths import reference_path
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.types import Completion, SamplingParams

ENGINES = tuple(name for name in names() if named(name).is_here)

NUM_CONTEXTS, SHARED_TOKENS, OWN_TOKENS = 8, 96, 8
"""Contexts begin alike for three of the CPU engine's blocks, so that a prefix is cached."""

TURN_TOKENS = 16
KV_BYTES = 64 << 20
SHARE = 0.1
"""Of a GPU: room for a tiny model, beside whatever else runs there."""

WAIT_S = 10.0
"""For an engine that runs elsewhere and does not answer."""

CHANGE = 0.3
"""Of a weight's deviation: what a changed update adds at random."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far log-probabilities of engine and trainer may be apart, in nats: on average, and at most."""

    mean: float
    largest: float


TOLERANCES = {torch.float32: Tolerance(1e-4, 1e-3), torch.bfloat16: Tolerance(0.05, 0.5)}


def checks(
    folder: Path,
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    log_path: Path,
    say: Callable[[str], None],
) -> Iterator[Check]:
    """Yield what is looked at for each engine that may run, in the order in which it must be; the last closes it."""
    wanted = config.sampler.engine
    if not runs_here(wanted):
        yield from _elsewhere(config, log_path, say)
        return
    for name in ENGINES:
        if wanted != "auto" and named(name).preference > named(wanted).preference:
            continue
        bench = Bench(name, folder, config, device, dtype, log_path, say)
        steps = {
            "start": bench.start,
            "log-probabilities": bench.compare_logprobs,
            "seeds": bench.compare_seeds,
            "an unchanged update": bench.update_unchanged,
            "a changed update": bench.update_changed,
            "cached prefixes": bench.compare_cache,
            "weights from card to card": bench.look_at_transfer,
            "end": bench.close,
        }
        if name != "vllm":
            del steps["weights from card to card"]
        if name == "vllm" and find_spec("vllm") is None:
            steps = {"start": bench.start}  # says how it is installed
        for step, look in steps.items():
            yield Check("engines", f"{name}: {step}", look)


def _elsewhere(config: Config, log_path: Path, say: Callable[[str], None]) -> Iterator[Check]:
    """Yield what is looked at of engines that run already, to sample and to train."""

    def look(trained: Trained | None) -> str:
        impatient = {"server_wait_s": min(WAIT_S, config.sampler.server_wait_s)}
        sampler = make_sampler(
            config.sampler.model_copy(update=impatient),
            config.model.path,
            dtype=config.model.dtype,
            device=config.model.device,
            max_model_len=config.rollout.context_tokens,
            seed=config.seed,
            log_path=log_path,
            say=say,
            trained=trained,
        )
        sampler.close()
        return sampler.name

    yield Check("engines", f"{config.sampler.engine}: turns", lambda: look(None))
    yield Check("engines", f"{config.sampler.engine}: new weights", lambda: look(Trained()))


class Bench:
    """An engine and a trainer of the same tiny model."""

    def __init__(
        self,
        name: str,
        folder: Path,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        log_path: Path,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._name, self._folder, self._device, self._dtype = name, folder, device, dtype
        self._config, self._log_path = config.sampler, log_path
        self._sampler: Sampler | None = None
        self._version = 0
        self._cached_again: int | None = None
        self._cached_after_update: int | None = None

    def start(self) -> str:
        """Start the engine."""
        if self._name == "vllm" and (reason := why_no_vllm(self._device.type)):
            raise NotHereError(reason)
        small: dict[str, Any] = {"engine": self._name, "max_num_seqs": 2 * NUM_CONTEXTS, "kv_cache_bytes": KV_BYTES}
        small["sleep"] = False if self._config.sleep is False else "auto"
        settings = SamplerConfig.model_validate(
            self._config.model_dump()
            | small
            | {"gpu_memory_utilization": min(SHARE, self._config.gpu_memory_utilization)}
        )
        try:
            self._sampler = make_sampler(
                settings,
                str(self._folder),
                dtype=self._dtype_name,
                device=str(self._device),
                max_model_len=MAX_TOKENS,
                seed=0,
                log_path=self._log_path,
                say=self._say,
                trained=Trained(),
            )
        except UserError as error:  # its line names a log that is gone when it is read
            cause = error.__cause__
            raise WrongError(f"{type(cause).__name__}: {said(cause)}" if cause else str(error)) from error
        return f"on {self._device} in {self._dtype_name}"

    def compare_logprobs(self) -> str:
        """What the engine says of the tokens that it sampled, against the trainer."""
        return self._judged(self._ask(self._contexts))

    def compare_seeds(self) -> str:
        """The same seed gives the same tokens alone and in a batch, another seed others.

        bfloat16 rounds by the shape of the batch: there a turn may part ways, but most begin alike.
        """
        context = self._contexts[0]
        seeds = list(range(NUM_CONTEXTS))
        together = self._ask([context] * NUM_CONTEXTS, seeds)
        if len({tuple(found.token_ids) for found in together}) == 1:
            raise WrongError("every seed gives the same tokens")
        alone = [self._ask([context], [seed])[0] for seed in seeds]
        depth = TURN_TOKENS if self._dtype == torch.float32 else 1
        same = [one.token_ids[:depth] == other.token_ids[:depth] for one, other in zip(together, alone, strict=True)]
        if sum(same) < (NUM_CONTEXTS if self._dtype == torch.float32 else 0.75 * NUM_CONTEXTS):
            raise WrongError(f"{sum(same)} of {NUM_CONTEXTS} turns are the same alone and in a batch")
        return f"{sum(same)} of {NUM_CONTEXTS} turns are the same alone and in a batch"

    def update_unchanged(self) -> str:
        """The weights that it has, sent again, change nothing."""
        before = self._ask(self._contexts)
        self._cached_again = self._ask(self._contexts[:1])[0].num_cached_tokens
        self._update()
        judged = self._judged(after := self._ask(self._contexts))
        if self._dtype == torch.float32 and [f.token_ids for f in before] != [f.token_ids for f in after]:
            raise WrongError("other tokens than before")
        return judged

    def update_changed(self) -> str:
        """Other weights, and the engine says what the trainer says with them."""
        old = self._distance(self._ask(self._contexts))[1]
        with torch.no_grad():
            draw = torch.Generator().manual_seed(2)
            for weight in self._policy.trained_parameters().values():
                noise = torch.randn(weight.shape, generator=draw).to(weight.device)
                weight.add_(noise, alpha=CHANGE * (float(weight.std()) or 1.0))
        stale = self._distance(answers := self._ask(self._contexts))[1]
        if stale <= max(TOLERANCES[self._dtype].largest, 10 * old):
            raise WrongError(f"the new weights are not new: {stale:.1e} nats from the old ones")
        self._update()
        self._cached_after_update = self._ask(self._contexts[:1])[0].num_cached_tokens
        judged = self._judged(found := self._ask(self._contexts))
        if [f.token_ids for f in found] == [f.token_ids for f in answers]:
            raise WrongError("the same tokens as before")
        return f"{judged} (the old weights are {stale:.1f} away)"

    def compare_cache(self) -> str:
        """Keys and values of a prefix are used again, and forgotten with the weights that made them."""
        self._running()
        if self._cached_again is None or self._cached_after_update is None:
            raise NotHereError("no update went through")
        if self._cached_after_update:
            raise WrongError(f"{self._cached_after_update} tokens of a prompt were cached by the old weights")
        if not self._cached_again:
            if self._name == "transformers":
                raise NotHereError("it keeps none")
            raise WrongError("a prompt that was asked before was computed again")
        return f"{self._cached_again} tokens of a prompt asked again were cached, none after the update"

    def look_at_transfer(self) -> str:
        """Look whether vLLM has what ranks and engines with cards of their own would call, without calling it."""
        if reason := why_no_vllm(self._device.type):
            raise NotHereError(reason)
        with quietly(self._log_path, str(self._device)):
            lacking = missing()
        if lacking:
            raise WrongError(f"not in the installed vLLM as it is called: {', '.join(lacking)}")
        return f"{len(CALLS)} methods of vLLM are as they are called; none was called"

    def close(self) -> str:
        """Give its memory back."""
        sampler, self._sampler = self._running(), None
        sampler.close()
        return "closed"

    def _running(self) -> Sampler:
        if self._sampler is None:
            raise NotHereError("it did not start")
        return self._sampler

    def _ask(self, contexts: Sequence[list[int]], seeds: Sequence[int] | None = None) -> list[Completion]:
        sampler, params = self._running(), SamplingParams(max_tokens=TURN_TOKENS)

        async def ask() -> list[Completion]:
            asked = zip(contexts, seeds or range(len(contexts)), strict=True)
            return list(await asyncio.gather(*(sampler.sample(context, params, seed) for context, seed in asked)))

        return asyncio.run(ask())

    def _update(self) -> None:
        """Send the trainer's weights as a run does: the engine sleeps before, where it can."""
        self._version += 1
        self._running().sleep()
        self._running().update_weights(self._policy.weights(self._dtype), self._version)

    def _judged(self, answers: Sequence[Completion]) -> str:
        mean, largest = self._distance(answers)
        tolerance = TOLERANCES[self._dtype]
        found = f"{mean:.1e} nats from the trainer's on average, {largest:.1e} at most"
        if not (mean <= tolerance.mean and largest <= tolerance.largest):
            raise WrongError(f"{found}; rounding explains {tolerance.mean:.0e} and {tolerance.largest:.0e}")
        return found

    def _distance(self, answers: Sequence[Completion]) -> tuple[float, float]:
        """How far the trainer is from what the engine said of these answers, each to one of the contexts."""
        trees = [
            [Turn(None, context), Turn(0, answer.token_ids, answer.logprobs)]
            for context, answer in zip(self._contexts, answers, strict=True)
        ]
        batch = batch_of(trees, self._device, shared=False)
        distance = (self._policy.log_probs(batch, reference_path()) - batch.sampling_logprobs).abs()
        return float(distance.mean()), float(distance.max())

    @cached_property
    def _policy(self) -> Policy:
        model = {"path": str(self._folder), "device": str(self._device), "dtype": self._dtype_name}
        return Policy(Config.model_validate({"model": model}))

    @cached_property
    def _contexts(self) -> list[list[int]]:
        draw = np.random.default_rng(3)
        shared = draw.integers(FIRST_TOKEN, LAST_TOKEN, SHARED_TOKENS).tolist()
        own = draw.integers(FIRST_TOKEN, LAST_TOKEN, (NUM_CONTEXTS, OWN_TOKENS)).tolist()
        return [[*shared, *tokens] for tokens in own]

    @property
    def _dtype_name(self) -> str:
        return str(self._dtype).removeprefix("torch.")
