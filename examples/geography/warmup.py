"""Scripted episodes -> a policy that searches, badly: a short supervised training.

The tokens are those that a rollout produces: prompt, observations and their limits come from treegrpo's own
search environment and inline dialect.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from questions import Question
from scripts import Episode, Script
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from treegrpo_cli.envs.retriever import Passage
from treegrpo_cli.envs.search import SearchEnvironment, show
from treegrpo_cli.rollout.dialects import InlineDialect
from treegrpo_cli.types import Action, Message, Task

OBSERVATION_WEIGHT = 0.2
"""Weight in the loss of a token that the policy is shown; of one that it writes, 1; of the prompt, 0."""
MAX_OBSERVATION_TOKENS = 128

Encoded = tuple[list[int], list[float]]
"""Token ids, and the weight of each in the loss."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Settings of the supervised training."""

    num_steps: int = 350
    episodes_per_step: int = 16
    matrix_learning_rate: float = 0.08
    """Of Muon, which trains the layers' matrices."""
    learning_rate: float = 1e-2
    """Of AdamW, which trains the rest."""
    ramp: float = 0.1
    """Share of the steps in which the rates rise; then they fall as a cosine."""


class Encoder:
    """Episodes -> (token ids, weights)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, environment: SearchEnvironment) -> None:
        self._environment, self._tokenizer = environment, tokenizer
        self._dialect = InlineDialect(tokenizer, environment.tools, MAX_OBSERVATION_TOKENS)
        _, result = asyncio.run(environment.step(environment.reset(Task(""))[0], Action("")))
        self._notice = self._dialect.observation_ids(result.observation, ())

    def encode(self, episode: Episode) -> Encoded:
        """Return the tokens of prompt, turns and observations, and their weights in the loss."""
        _, messages = self._environment.reset(Task(episode.question))
        ids = self._dialect.prompt_ids(messages)
        weights = [0.0] * len(ids)
        for text, passages in episode.turns:
            turn = self._tokenizer.encode(text, add_special_tokens=False)
            if passages is None:
                turn.append(self._tokenizer.eos_token_id)
            observation = self._observation(passages)
            ids += [*turn, *observation]
            weights += [1.0] * len(turn) + [OBSERVATION_WEIGHT] * len(observation)
        return ids, weights

    def _observation(self, passages: Sequence[Passage] | None) -> Sequence[int]:
        if passages is None:
            return self._notice
        message: Message = {"role": "tool", "content": show(list(passages))}
        return self._dialect.observation_ids([message], ()) if passages else ()


def warm_up(
    model: PreTrainedModel,
    encoder: Encoder,
    script: Script,
    questions: Sequence[Question],
    settings: WarmUp,
    seed: int,
) -> Iterator[float]:
    """Train `model` in place on fresh episodes; yields the loss of every step, nats a token."""
    rng = random.Random(f"warm-up {seed}")  # noqa: S311 - no secret
    num_episodes = settings.num_steps * settings.episodes_per_step
    episodes = [encoder.encode(script.play(rng.choice(questions), rng)) for _ in range(num_episodes)]
    optimizers = _optimizers(model, settings)
    schedules = [LambdaLR(optimizer, lambda step: _rate(step, settings)) for optimizer in optimizers]
    model.train()
    for batch in _batches(episodes, settings.episodes_per_step, rng):
        model.zero_grad()
        loss = _loss(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        yield loss.item()
    model.eval()


def _optimizers(model: PreTrainedModel, settings: WarmUp) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices (AdamW takes far longer to find copying), AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.98)),
    ]


def _rate(step: int, settings: WarmUp) -> float:
    """Return the share of the learning rate at a step."""
    done = (step + 1) / (settings.num_steps + 1)
    if done < settings.ramp:
        return done / settings.ramp
    return 0.5 + 0.5 * math.cos(math.pi * (done - settings.ramp) / (1 - settings.ramp))


def _batches(episodes: list[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Return batches of episodes of about equal length, so that little is padded, in random order."""
    by_length = sorted(episodes, key=lambda episode: len(episode[0]))
    batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    rng.shuffle(batches)
    return batches


def _loss(model: PreTrainedModel, batch: Sequence[Encoded]) -> torch.Tensor:
    """Return the weighted mean of the negative log-probabilities, in nats."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([i + [0] * (longest - len(i)) for i, _ in batch])
    weights = torch.tensor([w + [0.0] * (longest - len(w)) for _, w in batch])[:, 1:]
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    counted = weights > 0
    losses = cross_entropy(model.lm_head(hidden[counted]), ids[:, 1:][counted], reduction="none")
    return (losses * weights[counted]).sum() / weights.sum()
