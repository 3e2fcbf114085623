"""Runs that nobody trained: folders with the lines of metrics that a run would have written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from treegrpo_cli.config.files import dump_config, make_config

Step = tuple[int, int, float, float | None]
"""Generated tokens, tool calls and seconds of a step, and the score behind it, where there was an evaluation."""


def write_run(folder: Path, arm: str, seed: int, first: float, steps: Sequence[Step], **settings: Any) -> Path:
    """A finished run of these steps, with a score of `first` before them."""
    path = folder / "runs" / f"{arm}-seed{seed}"
    path.mkdir(parents=True)
    tree = {"seed": seed, "output_dir": str(path), **settings}
    tree["train"] = {"num_steps": len(steps), "eval_steps": 1, **settings.get("train", {})}
    (path / "config.toml").write_text(dump_config(make_config(tree)))
    lines: list[dict[str, Any]] = [
        {"step": 0, "eval/num_questions": 3, "eval/f": first, "eval/f_low": 0, "eval/f_high": 1}
    ]
    for number, (tokens, calls, seconds, score) in enumerate(steps, 1):
        spent = {"tree/generated_tokens": float(tokens), "tree/num_tool_calls": float(calls), "step_time": seconds}
        lines.append({"step": number, "reward": 0.1, **spent})
        if score is not None:
            lines.append({"step": number, "eval/num_questions": 3, "eval/f": score})
    (path / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def write_plan(folder: Path, arms: Sequence[str], seeds: Sequence[int], budget: float, **changes: Any) -> None:
    plan = {"arms": list(arms), "seeds": list(seeds), "axis": "tokens", "budget": budget, "score": "", "targets": []}
    (folder / "comparison.json").write_text(json.dumps({**plan, **changes}))
