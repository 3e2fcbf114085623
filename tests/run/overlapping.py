"""Test doubles for runs whose steps overlap: engine, trainer and world take a while, and note what they do."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.models.pretrained import load_tokenizer
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.types import Action, Completion, Message, SamplingParams, StepResult, Task, TokenIds

from tests.fakes import HashSampler
from tests.runs import write_lines


@dataclass
class Story:
    """What engine and trainer did, in order: (what, prompt or step, version)."""

    events: list[tuple[str, int, int]] = field(default_factory=list)
    trained: list[tuple[list[int], list[int]]] = field(default_factory=list)
    """Of each update: its prompts, and the versions of all its turns."""

    def note(self, what: str, number: int, version: int) -> None:
        self.events.append((what, number, version))

    def wait_for(self, what: str, first_number: int, timeout_s: float = 10.0) -> None:
        """Block, in the trainer's thread, until this is noted of this prompt or a later one."""
        end = time.monotonic() + timeout_s
        while not any(event[0] == what and event[1] >= first_number for event in list(self.events)):
            assert time.monotonic() < end, f"no {what!r} of {first_number} or later"
            time.sleep(0.001)

    def between(self, first: tuple[str, int], last: tuple[str, int]) -> list[tuple[str, int, int]]:
        names = [event[:2] for event in self.events]
        return self.events[names.index(first) + 1 : names.index(last)]


class NotingSampler(HashSampler):
    """Its turns depend on context and seed alone; they take a random while, in which no weights may come."""

    name = "noting"

    def __init__(self, tokenizer: Any, story: Story, *, slow_s: float, seed: int) -> None:
        super().__init__(tokenizer, delay_s=slow_s, jitter_seed=seed)
        self.story, self.num_inside, self.is_dead = story, 0, False
        self.is_greedy = False
        """The last request: evaluations are."""
        self.on_sample: Callable[[int], None] = lambda _: None

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        version = self.policy_version
        self.story.note("sample", params.prefix_key, version)
        self.num_inside += 1
        try:
            self.is_greedy = params.greedy
            self.on_sample(params.prefix_key)
            if self.is_dead:
                self.story.note("died", params.prefix_key, version)
                raise RuntimeError("the engine died")
            completion = await super().sample(context, params, seed)
            assert completion.policy_version == version, "a turn of two versions"
        except asyncio.CancelledError:
            self.story.note("given up", params.prefix_key, version)
            raise
        finally:
            self.num_inside -= 1
        return completion

    def update_weights(self, weights: Iterable[tuple[str, Any]], policy_version: int) -> None:
        if self.is_dead:
            raise RuntimeError("the engine died")
        assert self.num_inside == 0, "weights arrived within a turn"
        self.story.note("weights", policy_version, policy_version)
        super().update_weights(weights, policy_version)


class NotingTrainer:
    """A `StepTrainer` without a model, whose updates take a random while."""

    dtype = "float32"
    trained = Trained()
    packing_s = 0.0

    def __init__(self, story: Story, *, slow_s: float, seed: int) -> None:
        self.story, self.slow_s, self.draw = story, slow_s, random.Random(seed)
        self.step, self.is_whole = 0, True
        self.on_update: Callable[[int], Any] = lambda _: None

    def check(self, sampler: Any) -> None:
        pass

    def update(self, forest: Any, scores: Any, prompts: Any = None) -> dict[str, float | str]:
        self.story.note("update", self.step + 1, self.step)
        columns = forest.columns()
        versions = columns["policy_version"][forest.gen_tokens() > 0].tolist()
        self.story.trained.append((np.unique(columns["prompt"]).tolist(), versions))
        self.on_update(self.step + 1)
        self.is_whole = False
        time.sleep(self.slow_s * (0.5 + self.draw.random()))
        self.step, self.is_whole = self.step + 1, True
        self.story.note("updated", self.step, self.step)
        return {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0, "tree/trained_tokens": 1.0}

    def send_weights(self, sampler: Any) -> None:
        sampler.update_weights([], self.step)

    def save(self, output_dir: Path, state: dict[str, Any]) -> Path:
        path = output_dir / f"checkpoint-{self.step}"
        path.mkdir(exist_ok=True)
        (path / "training_state.json").write_text(json.dumps({"step": self.step, "run": state}))
        return path

    def load(self, path: Path) -> dict[str, Any]:
        saved = json.loads((path / "training_state.json").read_text())
        self.step = saved["step"]
        return dict(saved["run"])

    def close(self) -> None:
        pass


class NotingParts(Parts):
    """A trainer and an engine that tell one story."""

    def __init__(self, *, turn_s: float = 0.002, update_s: float = 0.02, seed: int = 0) -> None:
        self.story = Story()
        self.turn_s, self.seed = turn_s, seed
        self.trainer = NotingTrainer(self.story, slow_s=update_s, seed=seed)
        self.on_sample: Callable[[int], None] = lambda _: None
        self.sampler: NotingSampler

    def open_trainer(self, config: Config, say: Any, tokenizer: Any) -> Any:
        return self.trainer

    def open_sampler(self, config: Config, log_path: Any, say: Any, trained: Any = None) -> Any:
        tokenizer = load_tokenizer(config.model.path)
        self.sampler = NotingSampler(tokenizer, self.story, slow_s=self.turn_s, seed=self.seed)
        self.sampler.on_sample = self.on_sample
        return self.sampler


class SlowWorld:
    """Tools answer after a while of their own, a function of the text so far; questions in `broken` do not start."""

    tools = ()

    def __init__(self, slow_s: float = 0.0, broken: list[str] | None = None) -> None:
        self.slow_s, self.broken = slow_s, broken or []

    async def reset(self, task: Task) -> tuple[str, list[Message]]:
        if task.question in self.broken:
            raise ConnectionError("no sandbox")
        return task.question, [{"role": "user", "content": task.question}]

    async def step(self, state: str, action: Action) -> tuple[str, StepResult]:
        said = state + action.text
        await asyncio.sleep(self.slow_s * random.Random(said).random())
        return said, StepResult(({"role": "user", "content": "again"},), done="<answer>" in action.text)


def reward_of_text(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward that differs from leaf to leaf, but for prompts that say `dead`."""
    pairs = zip(prompts, completions, strict=True)
    return [0.0 if "dead" in prompt else crc32(text.encode()) % 97 / 97 for prompt, text in pairs]


def overlapping_run(folder: Path, model: Path, max_staleness: int, **changes: dict[str, Any]) -> Config:
    """Settings of a run of five steps of two prompts; `changes` are merged into the sections that they name."""
    rows = [{"question": f"{'dead' if number % 5 == 3 else 'live'} {number}"} for number in range(40)]
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(model)},
        "data": {"train": write_lines(folder / "questions.jsonl", rows), "shuffle": False},
        "environment": {"name": f"{__name__}:SlowWorld", "options": {"slow_s": 0.004}, "tool_retries": 0},
        "reward": {"functions": [f"{__name__}:reward_of_text"]},
        "rollout": {"max_turns": 3, "max_prompt_tokens": 128, "max_turn_tokens": 64, "max_observation_tokens": 64},
        "sampler": {"engine": "transformers"},
        "train": {"num_steps": 5, "prompts_per_step": 2, "save_steps": 0, "eval_steps": 0},
        "scale": {"max_staleness": max_staleness},
    }
    for section, change in changes.items():
        settings[section] = {**settings.get(section, {}), **change}
    return make_config(settings)
