"""Runs that nobody trained: folders with lines of metrics that are written by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def write_run(folder: Path, lines: Iterable[Line], rest: str = "") -> Path:
    """A run's folder with these lines, and the rest of one that is not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    return folder


def step(number: int, **metrics: Any) -> Line:
    """A step's line; `tree__x` stands for `tree/x`."""
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return {"step": number, "step_time": 2.0, "reward": number / 10, **named}


def evaluation(number: int, score: float, **metrics: Any) -> Line:
    """An evaluation's line, with its interval."""
    interval = {"eval/f_low": score - 0.1, "eval/f_high": score + 0.1}
    return {"step": number, "eval/num_questions": 9, "time/evaluation": 3.0, "eval/f": score, **interval, **metrics}


def tree_steps(num_steps: int, shared: float = 0.25) -> list[Line]:
    """Steps of 100 generated tokens and 8 tool calls, of trees that share so much."""
    return [
        step(
            number,
            entropy=1.0 / number,
            tree__generated_tokens=100.0,
            tree__num_tool_calls=8.0,
            tree__chain_tool_calls=8.0 / (1 - shared),
            tree__sharing_ratio=shared,
            tree__num_leaves=10.0,
            completions__mean_length=10.0 / (1 - shared),
            tree__trained_tokens=300.0,
            tree__computed_tokens=300.0,
            tree__chain_tokens=400.0,
            tree__abs_advantage_depth_1=0.5,
            tree__abs_advantage_depth_2=0.25 * number,
            time__rollout=1.0,
            time__update=0.75,
            time__scoring=0.001,
        )
        for number in range(1, num_steps + 1)
    ]


def scored(lines: list[Line], first: float = 0.1) -> list[Line]:
    """These steps with an evaluation before them and one behind each, which rise by a tenth."""
    rows = [evaluation(0, first)]
    for number, line in enumerate(lines, 1):
        rows += [line, evaluation(line["step"], round(first + number / 10, 6))]
    return rows
