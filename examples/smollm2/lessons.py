"""Worked problems -> a model that knows how the calculator is called: a short supervised training.

The tokens are those of a rollout: prompts and results come from treegrpo's own environment and dialect.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from problems import Problem
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from treegrpo_cli.envs.calculator import CalculatorEnvironment
from treegrpo_cli.rollout.dialects import InlineDialect
from treegrpo_cli.types import Task

IGNORED = -100
"""The label of a token that the policy does not write."""

Encoded = tuple[list[int], list[int]]
"""Token ids, and as labels those of the turns."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Settings of the supervised training."""

    num_problems: int = 40
    """Each is shown once."""
    problems_per_step: int = 8
    learning_rate: float = 5e-5
    """Rises over the first quarter of the steps, then stays."""


class Encoder:
    """Problems -> tokens of an episode that solves them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, instructions: str, max_observation_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._environment = CalculatorEnvironment(instructions=instructions)
        self._dialect = InlineDialect(tokenizer, self._environment.tools, max_observation_tokens)

    def encode(self, problem: Problem) -> Encoded:
        """Return prompt, calls, results and answer; the labels are those of calls and answer."""
        state, messages = self._environment.reset(Task(problem.question))
        ids = self._dialect.prompt_ids(messages)
        labels = [IGNORED] * len(ids)
        calls = [f"<calculate>{expression}</calculate>" for expression in problem.expressions]
        for text in [*calls, f"<answer>{problem.answer}</answer>"]:
            turn = self._tokenizer.encode(text, add_special_tokens=False)
            state, result = asyncio.run(self._environment.step(state, self._dialect.parse(text)))
            shown = self._dialect.observation_ids(result.observation, turn) if result.observation else []
            ids += [*turn, *shown]
            labels += [*turn, *[IGNORED] * len(shown)]
        return ids, labels


def warm_up(
    model: PreTrainedModel, encoder: Encoder, problems: Sequence[Problem], settings: WarmUp, seed: int
) -> Iterator[float]:
    """Train `model` in place; yields the loss of every step, nats a token."""
    episodes = [encoder.encode(problem) for problem in problems]
    random.Random(f"warm-up {seed}").shuffle(episodes)  # noqa: S311 - no secret
    size = settings.problems_per_step
    steps = [episodes[i : i + size] for i in range(0, len(episodes), size)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 4 * (step + 1) / len(steps)))
    model.train()
    for step in steps:
        optimizer.zero_grad()
        loss = _loss(model, step)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()
    model.eval()


def _loss(model: PreTrainedModel, episodes: Sequence[Encoded]) -> torch.Tensor:
    """Return the mean negative log-probability of what the policy is to write, in nats."""
    longest = max(len(ids) for ids, _ in episodes)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in episodes])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in episodes])[:, 1:]
    counted = labels != IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[counted])
    return cross_entropy(logits.float(), labels[counted])
