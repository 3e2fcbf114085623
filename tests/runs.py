"""A world small enough to train on in a second: three capitals, a random model, the embedded retriever."""

import json
import subprocess
from pathlib import Path
from typing import Any

from treegrpo_cli.run.metric_names import all_metrics, metric_of

from tests.zygote import zygote

CAPITALS = {"Lisbon": "Portugal", "Paris": "France", "Rome": "Italy"}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def small_run(folder: Path, model: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run in `folder`; `changes` are merged into the sections that they name."""
    corpus = [{"contents": f"{town}\n{town} is the capital of {country}."} for town, country in CAPITALS.items()]
    questions = [{"question": f"capital of {country}", "answer": town} for town, country in CAPITALS.items()]
    corpus_file = write_lines(folder / "corpus.jsonl", corpus)
    data_file = write_lines(folder / "questions.jsonl", questions)
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(model)},
        "data": {"train": data_file, "eval": data_file},
        "environment": {"name": "search", "options": {"corpus": corpus_file, "topk": 1, "instructions": "Answer."}},
        "reward": {"functions": ["tests.runs:count_vowels"]},
        "rollout": {"max_turns": 2, "max_prompt_tokens": 128, "max_turn_tokens": 16, "max_observation_tokens": 64},
        "sampler": {"engine": "transformers"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"num_steps": 4, "prompts_per_step": 2, "save_steps": 2, "eval_steps": 2},
    }
    for section, change in changes.items():
        settings[section] = {**settings.get(section, {}), **change}
    return settings


def count_vowels(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward that a random model varies in, in TRL's signature."""
    return [sum(completion.count(vowel) for vowel in "aeiou") / 10 for completion in completions]


def treegrpo(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return zygote().run(arguments, cwd, **env)


def is_odd(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """A reward of 0 or 1 that a random model varies in."""
    return [float(len(completion) % 2) for completion in completions]


def check_metric_names(lines: list[dict[str, Any]]) -> None:
    """Every name in these lines of metrics.jsonl is a known one, and each step has all that every step has."""
    assert sorted({name for line in lines for name in line if name != "step" and metric_of(name) is None}) == []
    for line in lines:
        if not any(name.startswith("eval/") for name in line):
            known = {found.name for name in line if (found := metric_of(name)) is not None}
            assert sorted({metric.name for metric in all_metrics() if not metric.when} - known) == []
