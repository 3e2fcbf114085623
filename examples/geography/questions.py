"""Facts -> questions that need one to four searches, and who is asked about what.

Training asks about Europe, Asia and Oceania, settings are chosen on the Americas, and Africa is held out: no
training question needs a fact about an African country or city. Two kinds of question are held out as well.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from facts import LEAST, MOST, Fact

Composition = tuple[str, ...]
"""Relations in the order in which they are searched."""

SPLITS = {"train": ("EU", "AS", "OC"), "dev": ("NA", "SA"), "eval": ("AF",)}
"""Split -> continents."""
MAIN, SPARSE = (1, 2, 3), (3, 4)
"""Searches that a question needs: in the main setting, and in the one where rewards are sparse."""
HELD_OUT_COMPOSITIONS: frozenset[Composition] = frozenset({(MOST, "dialling code"), ("country", LEAST, "capital")})

NUMERALS = ("I", "II", "III", "IV", "V", "VI")
"""Of the searches of a numbered question."""

_VALUES = ("capital", "currency", "dialling code")
_NEIGHBOURS = (MOST, LEAST)


@dataclass(frozen=True, slots=True)
class Question:
    """A chain of facts, each about what the one before gave."""

    facts: tuple[Fact, ...]
    numbered: bool = False
    """Whether its text numbers the searches, so that an agent need not count them."""

    @property
    def composition(self) -> Composition:
        """The relations, in the order of the searches."""
        return tuple(fact.relation for fact in self.facts)

    @property
    def answer(self) -> str:
        """The object of the last fact."""
        return self.facts[-1].object

    @property
    def text(self) -> str:
        """The question in words."""
        return ask(self.composition, self.facts[0].subject, numbered=self.numbered)

    def row(self) -> dict[str, Any]:
        """Return the question as a line of a data file."""
        return {
            "question": self.text,
            "golden_answers": [self.answer],
            "num_searches": len(self.facts),
            "held_out_composition": self.composition in HELD_OUT_COMPOSITIONS,
            "facts": [[fact.relation, fact.subject, fact.object] for fact in self.facts],
        }


def ask(composition: Sequence[str], subject: str, *, numbered: bool = False) -> str:
    """Return the question in words.

    >>> ask(["country", "currency"], "Lyon")
    "What is Lyon's country's currency?"
    >>> ask(["country", "currency"], "Lyon", numbered=True)
    "What is Lyon's (I) country's (II) currency?"
    """
    numbers = [f"({number}) " for number in NUMERALS] if numbered else [""] * len(composition)
    return f"What is {subject}" + "".join(f"'s {n}{r}" for n, r in zip(numbers, composition, strict=False)) + "?"


def compositions() -> list[Composition]:
    """Return all kinds of question of one to four searches, the shortest first."""
    from_country: list[Composition] = [(r,) for r in (*_VALUES, *_NEIGHBOURS)]
    from_country += [(n, r) for n in _NEIGHBOURS for r in (*_VALUES, *_NEIGHBOURS) if r != n]
    from_country += [(n, m, r) for n in _NEIGHBOURS for m in _NEIGHBOURS if m != n for r in _VALUES]
    every: list[Composition] = [("country",), *from_country, *(("country", *c) for c in from_country)]
    return sorted(every, key=lambda composition: (len(composition), composition))


def long_compositions(lengths: Sequence[int]) -> list[Composition]:
    """Return chains of neighbours of these lengths, from a country or a city to a neighbour or a value."""
    every: list[Composition] = []
    for length in sorted(lengths):
        for start in ((), ("country",)):
            hops = product(_NEIGHBOURS, repeat=length - len(start) - 1)
            every += [(*start, *path, last) for path in hops for last in (*_VALUES, *_NEIGHBOURS)]
    return every


def all_questions(
    facts: Iterable[Fact], continents: Sequence[str], kinds: Sequence[Composition] = (), *, numbered: bool = False
) -> Iterator[Question]:
    """Yield every question whose countries all lie in `continents`, and that comes by no country twice.

    `kinds` are the compositions to ask; none given, those of one to four searches.
    """
    index = {(fact.relation, fact.subject): fact for fact in facts if fact.continent in continents}
    continent_of = {fact.subject for fact in index.values() if fact.subject_type == "country"}
    for composition in kinds or compositions():
        for first in [fact for fact in index.values() if fact.relation == composition[0]]:
            question = _follow(index, composition, first, numbered=numbered)
            if question and all(f.object in continent_of for f in question.facts if f.object_type == "country"):
                yield question


def _follow(
    index: dict[tuple[str, str], Fact], composition: Composition, first: Fact, *, numbered: bool
) -> Question | None:
    chain = [first]
    for relation in composition[1:]:
        fact = index.get((relation, chain[-1].object))
        if fact is None:
            return None
        chain.append(fact)
    names = [first.subject, *(fact.object for fact in chain)]
    return Question(tuple(chain), numbered) if len(set(names)) == len(names) else None


def sample_questions(facts: Sequence[Fact], split: str, lengths: Sequence[int], num: int, seed: int) -> list[Question]:
    """Return `num` distinct questions of a split, in equal parts of each length where there are."""
    rng = random.Random(f"{split} {seed}")  # noqa: S311 - no secret
    by_length: dict[int, list[Question]] = defaultdict(list)
    for question in all_questions(facts, SPLITS[split]):
        if split != "train" or question.composition not in HELD_OUT_COMPOSITIONS:
            by_length[len(question.facts)].append(question)
    chosen: list[Question] = []
    for position, length in enumerate(sorted(lengths, key=lambda length: len(by_length[length]))):
        share = (num - len(chosen)) // (len(lengths) - position)
        chosen += rng.sample(by_length[length], min(share, len(by_length[length])))
    rng.shuffle(chosen)
    return chosen
