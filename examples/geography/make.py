"""A seed -> the world that the demo learns to search: corpus, questions, and a policy that is not good yet.

    python examples/geography/make.py runs/geography --seed 0

corpus.jsonl    a passage a fact
train.jsonl     questions of one to three searches about Europe, Asia and Oceania
dev.jsonl       the same about the Americas: to choose settings on
eval.jsonl      the same about Africa: held out
sparse/         train, dev and eval of three and four searches, where a poor policy is seldom rewarded
model/          the policy after its warm-up: Qwen3, 0.4 M weights, and its tokenizer
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from facts import Fact, load_facts, sentence, title
from policy import make_model, make_tokenizer
from questions import HELD_OUT_COMPOSITIONS, MAIN, SPARSE, SPLITS, all_questions, sample_questions
from scripts import Script
from transformers.utils import logging
from treegrpo_cli.envs.search import SearchEnvironment
from warmup import Encoder, WarmUp, warm_up

NUM_QUESTIONS = {"train": 1200, "dev": 200, "eval": 300}


def make_world(directory: Path, facts: Sequence[Fact], seed: int) -> None:
    """Write the corpus and the questions."""
    corpus = [f"{title(f.subject)}\n{sentence(f.relation, f.subject, f.object)}" for f in facts]
    _write(directory / "corpus.jsonl", ({"id": str(i), "contents": text} for i, text in enumerate(corpus)))
    for split, num in NUM_QUESTIONS.items():
        for folder, lengths in ((directory, MAIN), (directory / "sparse", SPARSE)):
            questions = sample_questions(facts, split, lengths, num, seed)
            _write(folder / f"{split}.jsonl", (question.row() for question in questions))


def make_policy(directory: Path, facts: Sequence[Fact], seed: int, settings: WarmUp) -> None:
    """Train a policy on scripted episodes, whose names are permuted, and write it with its tokenizer."""
    tokenizer = make_tokenizer(facts)
    model = make_model(tokenizer, seed)
    environment = SearchEnvironment(corpus=str(directory / "corpus.jsonl"), instructions="")
    every = all_questions(facts, SPLITS["train"])
    questions = [question for question in every if question.composition not in HELD_OUT_COMPOSITIONS]
    start = time.monotonic()
    losses = warm_up(model, Encoder(tokenizer, environment), Script(facts), questions, settings, seed)
    for step, loss in enumerate(losses, start=1):
        if step % 50 == 0 or step == settings.num_steps:
            print(f"warm-up step {step}/{settings.num_steps}  loss {loss:.2f}  {time.monotonic() - start:.0f} s")
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=WarmUp().num_steps, help="of the warm-up")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    facts = load_facts()
    make_world(options.directory, facts, options.seed)
    make_policy(options.directory, facts, options.seed, WarmUp(num_steps=options.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
