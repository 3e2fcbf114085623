"""A seed -> three worlds to compare ways of branching and of credit in, each with a policy that is not good yet.

    python examples/comparison/worlds.py runs/comparison

slow/      questions of one to three searches; rewards are frequent
sparse/    questions of three and four searches to a poor policy, which is seldom rewarded
long/      questions of four to six searches: five turns to seven

Each has corpus.jsonl, train.jsonl, eval.jsonl, whose questions are not among the former, and model/. The facts and
the scripts of the warm-up are those of examples/geography; here all continents are asked about in both files, so that
a curve shows how fast a policy learns, and not how far that carries. The warm-up sees Europe, Asia and Oceania.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "geography"))
from facts import Fact, load_facts, sentence, title
from policy import make_model, make_tokenizer
from questions import (
    HELD_OUT_COMPOSITIONS,
    NUMERALS,
    SPLITS,
    Composition,
    Question,
    all_questions,
    compositions,
    long_compositions,
)
from scripts import Faults, Script
from transformers.utils import logging
from treegrpo_cli.envs.search import SearchEnvironment
from warmup import Encoder, WarmUp, warm_up

NUM_EVALUATED = 180
MAX_TRAINED = 400
"""Questions of a length, so that all lengths are asked about as often."""
MAX_MODEL_LEN = 1024


@dataclass(frozen=True, slots=True)
class World:
    """Which questions are asked, and how poor the policy starts."""

    lengths: tuple[int, ...]
    """Searches that a question needs."""
    faults: Faults
    num_steps: int
    """Of the warm-up."""
    numbered: bool = False
    """Whether questions number their searches."""
    topk: int = 3
    """Passages that a search shows."""

    @property
    def kinds(self) -> list[Composition]:
        """The compositions that are asked."""
        short = [composition for composition in compositions() if len(composition) in self.lengths]
        return short if max(self.lengths) <= 4 else long_compositions(self.lengths)


WORLDS = {
    "slow": World((1, 2, 3), Faults(), 900),
    "sparse": World((3, 4), Faults(early_answer=0.7, wrong_answer=0.15, wrong_subject=0.15, wrong_relation=0.2), 900),
    "long": World((4, 5, 6), Faults(0.3, 0.05, 0.05, 0.05, 0.03), 500, numbered=True, topk=2),
}


def make_world(directory: Path, world: World, facts: Sequence[Fact], seed: int) -> None:
    """Write the corpus and the questions."""
    corpus = [f"{title(f.subject)}\n{sentence(f.relation, f.subject, f.object)}" for f in facts]
    _write(directory / "corpus.jsonl", ({"id": str(i), "contents": text} for i, text in enumerate(corpus)))
    rng = random.Random(f"comparison {seed}")  # noqa: S311 - no secret
    by_length: dict[int, list[Question]] = {length: [] for length in world.lengths}
    for continents in SPLITS.values():
        for question in all_questions(facts, continents, world.kinds, numbered=world.numbered):
            by_length[len(question.facts)].append(question)
    share = NUM_EVALUATED // len(by_length)
    asked: dict[str, list[Question]] = {"train": [], "eval": []}
    for questions in by_length.values():
        rng.shuffle(questions)
        asked["eval"] += questions[:share]
        asked["train"] += questions[share : share + MAX_TRAINED]
    for split, chosen in asked.items():
        rng.shuffle(chosen)
        _write(directory / f"{split}.jsonl", (question.row() for question in chosen))


def make_policy(directory: Path, world: World, facts: Sequence[Fact], seed: int, num_steps: int = 0) -> None:
    """Train a policy on scripted episodes, whose names are permuted, and write it with its tokenizer."""
    settings = WarmUp(num_steps or world.num_steps)
    tokenizer = make_tokenizer(facts, MAX_MODEL_LEN, NUMERALS if world.numbered else ())
    model = make_model(tokenizer, seed)
    environment = SearchEnvironment(corpus=str(directory / "corpus.jsonl"), instructions="")
    kinds = [kind for kind in world.kinds if kind not in HELD_OUT_COMPOSITIONS]
    questions = list(all_questions(facts, SPLITS["train"], kinds, numbered=world.numbered))
    encoder, script = Encoder(tokenizer, environment), Script(facts, world.faults, world.topk)
    start = time.monotonic()
    for step, loss in enumerate(warm_up(model, encoder, script, questions, settings, seed), start=1):
        if step % 100 == 0 or step == settings.num_steps:
            seconds = time.monotonic() - start
            print(f"{directory.name}: warm-up step {step}/{settings.num_steps}  loss {loss:.2f}  {seconds:.0f} s")
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="worlds.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where to write")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="of each warm-up; 0 = the world's own")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    facts = load_facts()
    for name in options.worlds:
        make_world(options.directory / name, WORLDS[name], facts, options.seed)
        make_policy(options.directory / name, WORLDS[name], facts, options.seed, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
