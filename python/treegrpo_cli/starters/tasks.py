"""The tasks that a new user may start from, each with its settings and the files that it needs beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treegrpo_cli.errors import UserError, nearest

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
"""Small, and it follows instructions."""

COMMON: dict[str, Any] = {
    "output_dir": "runs/first",
    "model.path": MODEL,
    "data.train": "questions.jsonl",
    "reward.functions": ["exact_match"],
    "rollout.num_trees": 4,
    "rollout.num_expansions": 2,
    "rollout.num_rounds": 1,
    "rollout.max_turns": 4,
    "rollout.max_prompt_tokens": 2048,
    "rollout.max_turn_tokens": 256,
    "rollout.max_observation_tokens": 256,
    "train.num_steps": 50,
    "train.prompts_per_step": 8,
}
"""What every run sets."""

OFTEN_TUNED = (
    "seed",
    "report_to",
    "model.lora_rank",
    "model.gradient_checkpointing",
    "data.eval",
    "reward.weights",
    "rollout.temperature",
    "selection.rule",
    "budget.run_tokens",
    "sampler.engine",
    "sampler.gpu_memory_utilization",
    "advantage.estimator",
    "advantage.dead_prompts",
    "loss.kl_coef",
    "loss.entropy_coef",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "train.prompts_per_minibatch",
    "train.microbatch_tokens",
    "train.eval_steps",
    "train.save_steps",
)
"""Keys that stand in the file as comments, with their defaults."""

REMARKS = {"model.path": "small, about 1 GB, fetched when it is first used; a folder of your own works too"}
"""Key -> what is to be said of the value that is written, behind it."""


@dataclass(frozen=True, slots=True)
class Starter:
    """A task to start from."""

    name: str
    summary: str
    settings: Mapping[str, Any]
    """Beside the common ones."""
    files: tuple[str, ...]
    """Beside `settings.toml`."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What the user chose in place of these."""

    @property
    def all_settings(self) -> dict[str, Any]:
        """Every key that the file sets."""
        return {**COMMON, **self.settings, **self.chosen}


STARTERS = {
    starter.name: starter
    for starter in (
        Starter(
            "search",
            "questions that searches in a small corpus answer, in the format of Search-R1",
            {"environment.name": "search", "environment.options": {"corpus": "corpus.jsonl", "topk": 2}},
            ("questions.jsonl", "corpus.jsonl"),
        ),
        Starter(
            "calculator",
            "problems in words, with a calculator as the tool",
            {"environment.name": "calculator"},
            ("questions.jsonl",),
        ),
        Starter(
            "own-tool",
            "questions that a Python function of yours helps to answer",
            {"environment.name": "tool.py:days_between"},
            ("questions.jsonl", "tool.py"),
        ),
        Starter(
            "own-environment",
            "a world of your own, written as a Python class: a guessing game",
            {"environment.name": "environment.py:GuessTheNumber", "rollout.max_turns": 6},
            ("questions.jsonl", "environment.py"),
        ),
        Starter(
            "chat",
            "conversations of a chat model that calls tools in its own format",
            {"environment.name": "calculator", "environment.dialect": "chat"},
            ("questions.jsonl",),
        ),
    )
}
"""Name -> task."""


def find_starter(name: str) -> Starter:
    """Return the task of this name. Raises UserError, with the nearest name, where there is none."""
    if name not in STARTERS:
        raise UserError(f"no task is called {name!r:.60}; {nearest(name, STARTERS)}")
    return STARTERS[name]
