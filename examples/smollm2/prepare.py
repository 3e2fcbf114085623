"""A seed -> what the example learns from and with.

    python examples/smollm2/prepare.py runs/smollm2

model/          SmolLM2-135M-Instruct as it is published
policy/         the same after its warm-up, and what training starts from
train.jsonl     problems to learn from
eval.jsonl      held out: other pairs of steps, other numbers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from convert import convert
from lessons import Encoder, WarmUp, warm_up
from problems import HELD_OUT, TRAIN, WARM_UP, Problem, make_problems
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

NUM_TRAIN, NUM_EVAL = 1200, 162
MAX_OBSERVATION_TOKENS = 32


def make_data(directory: Path, seed: int) -> None:
    """Write the problems to train on and the held-out ones."""
    _write(directory / "train.jsonl", make_problems(TRAIN, NUM_TRAIN, f"train {seed}", odd=True))
    _write(directory / "eval.jsonl", make_problems(HELD_OUT, NUM_EVAL, f"held out {seed}", odd=False))


def make_policy(source: Path, directory: Path, seed: int, settings: WarmUp) -> None:
    """Train the model at `source` on worked problems, and write it with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    problems = make_problems(WARM_UP, settings.num_problems, f"warm-up {seed}", odd=True)
    encoder = Encoder(tokenizer, "", MAX_OBSERVATION_TOKENS)
    num_steps = -(-len(problems) // settings.problems_per_step)
    for step, loss in enumerate(warm_up(model, encoder, problems, settings, seed), start=1):
        print(f"warm-up step {step}/{num_steps}  loss {loss:.2f}", flush=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _write(path: Path, problems: Sequence[Problem]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(problem.row()) + "\n" for problem in problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    make_data(options.directory, options.seed)
    convert(options.directory / "model")
    make_policy(options.directory / "model", options.directory / "policy", options.seed, WarmUp())
    return 0


if __name__ == "__main__":
    sys.exit(main())
