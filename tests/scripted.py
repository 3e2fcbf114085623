"""An engine and a trainer that cost nothing, for runs of which everything else is measured.

The engine's turns are random letters, as many as are asked for, and end in a calculation or in an answer.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from treegrpo_cli.config import Config
from treegrpo_cli.run.parts import Parts, Say, StepTrainer
from treegrpo_cli.samplers.base import EngineCounts, Sampler, Trained
from treegrpo_cli.types import Completion, SamplingParams, TokenIds

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", dtype=np.uint8)


class ScriptedSampler:
    """Samples at once, by prompt and seed alone: turns of about `turn_tokens(prompt number)` tokens, a share of them
    answers.
    """

    name = "scripted"
    max_model_len = 1 << 20
    takes_adapter = False

    def __init__(self, tokenizer: Any, turn_tokens: Callable[[int], int], answers: float = 0.25) -> None:
        self._turn_tokens, self._answers, self.policy_version = turn_tokens, answers, 0
        self.num_turns, self.cpu_seconds = 0, 0.0
        """Sampled so far, and what that took."""
        self._token_of = np.zeros(128, dtype=np.uint32)
        for code in range(32, 127):
            [self._token_of[code]] = tokenizer.encode(chr(code), add_special_tokens=False)

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        draw = np.random.default_rng(seed % 2**63)
        for _ in range(int(draw.integers(1, 4))):  # who is finished first is not who began first
            await asyncio.sleep(0)
        start = time.thread_time()
        completion = self._turn(params, draw)
        self.num_turns, self.cpu_seconds = self.num_turns + 1, self.cpu_seconds + time.thread_time() - start
        return completion

    def _turn(self, params: SamplingParams, draw: np.random.Generator) -> Completion:
        num = int(self._turn_tokens(params.prefix_key) * draw.uniform(0.5, 1.5))
        action = f"<answer>{draw.integers(10)}</answer>" if draw.random() < self._answers else _calculation(draw)
        thought = LETTERS[draw.integers(0, len(LETTERS), max(num - len(action), 1))].tobytes()
        text = thought.decode() + action
        token_ids = self._token_of[np.frombuffer(text.encode(), dtype=np.uint8)][: params.max_tokens].tolist()
        cut = len(token_ids) < len(text)
        logprobs = (-draw.random(len(token_ids))).tolist()
        reason = "length" if cut else "stop"
        return Completion(token_ids, logprobs, text[: len(token_ids)], reason, self.policy_version)

    def update_weights(self, weights: Any, policy_version: int) -> None:
        self.policy_version = policy_version

    def update_adapter(self, adapter: Any, policy_version: int) -> None:
        raise NotImplementedError

    def sleep(self) -> None:
        pass

    def prefix_cache_hit_ratio(self) -> float | None:
        return None

    def take_counts(self) -> EngineCounts:
        return EngineCounts()

    def close(self) -> None:
        pass


def _calculation(draw: np.random.Generator) -> str:
    return f"<calculate>{draw.integers(100)} + {draw.integers(100)}</calculate>"


class NullTrainer:
    """Trains nothing, and says so in the metrics that every step has."""

    dtype = "bfloat16"
    is_whole = True
    trained = Trained()

    def __init__(self) -> None:
        self.step, self.packing_s = 0, 0.0

    def check(self, sampler: Sampler) -> None:
        pass

    def update(self, forest: Any, scores: Any, prompts: Any = None) -> dict[str, float | str]:
        self.step += 1
        return {"tree/trained_tokens": 1.0, "loss": 0.0}

    def send_weights(self, sampler: Sampler) -> None:
        sampler.update_weights([], self.step)

    def save(self, output_dir: Path, state: dict[str, Any]) -> Path:
        return output_dir

    def load(self, path: Path) -> dict[str, Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


class ScriptedParts(Parts):
    """A run whose engine is scripted, and whose trainer trains nothing."""

    def __init__(self, tokenizer: Any, turn_tokens: Callable[[int], int], answers: float = 0.25) -> None:
        self.sampler = ScriptedSampler(tokenizer, turn_tokens, answers)

    def open_trainer(self, config: Config, say: Say, tokenizer: Any) -> StepTrainer:
        return NullTrainer()

    def open_sampler(self, config: Config, log_path: Path | None, say: Say, trained: Trained | None = None) -> Sampler:
        return self.sampler


def even_digits(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward of 0 or 1 that scripted answers vary in."""
    return [float(sum(map(str.isdigit, completion[-40:])) % 2 == 0) for completion in completions]
