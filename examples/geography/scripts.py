"""Questions -> scripted episodes in which nothing true can be learnt: what the warm-up imitates.

The agent of the script believes the first passage that it sees. In every episode all names change places
within their type (France may be called Peru, and Euro Yen), so that what is learnt is how to search and to
copy from passages. It also makes the faults of `Faults`, so that the policy starts mediocre.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from facts import OBJECT_TYPES, Fact, sentence, title
from questions import NUMERALS, Question, ask
from treegrpo_cli.envs.bm25 import BM25Retriever
from treegrpo_cli.envs.retriever import Passage

TOPK = 3
THOUGHTS = ("First the ", "The is ", "Next the ", ".")

Name = tuple[str, str]
"""(type, name)."""
Names = Mapping[Name, str]
"""True name -> the name that it has in an episode."""


def query(relation: str, subject: str) -> str:
    """Return the words to search for."""
    return f"{relation} {subject}"


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities: of the first in an episode, of the others in a turn."""

    early_answer: float = 0.5
    """Stop before the last search."""
    wrong_answer: float = 0.1
    """Answer with another name that was shown."""
    wrong_subject: float = 0.05
    """Search for another name that was shown."""
    wrong_relation: float = 0.1
    """Search for another relation."""
    no_action: float = 0.1
    """End a turn without search or answer."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What the user asks, and turns of (what the agent writes, the passages it is shown).

    The passages are None where the turn was no action, and empty behind the last turn.
    """

    question: str
    turns: tuple[tuple[str, tuple[Passage, ...] | None], ...]


class Script:
    """A world to play episodes in."""

    def __init__(self, facts: Sequence[Fact], faults: Faults = Faults(), topk: int = TOPK) -> None:
        passages = [(title(f.subject), sentence(f.relation, f.subject, f.object)) for f in facts]
        self.faults, self._topk = faults, topk
        self._fact_of = dict(zip(passages, facts, strict=True))
        self._retriever = BM25Retriever(passages)
        self._found: dict[tuple[str, str], list[Fact]] = {}
        self._names = _names_by_type(facts)

    def play(self, question: Question, rng: random.Random, *, permute: bool = True) -> Episode:
        """Return an episode about `question`, under permuted names."""
        agent = _Agent(self, question, rng, self.permuted_names(rng) if permute else {})
        relations = question.composition
        if len(relations) > 1 and rng.random() < self.faults.early_answer:
            relations = relations[: rng.randrange(1, len(relations))]
        for relation in relations:
            agent.search(relation)
        agent.answer()
        return Episode(agent.question, tuple(agent.turns))

    def search(self, relation: str, subject: str) -> list[Fact]:
        """Return what the retriever shows for a query, by the true names."""
        if (relation, subject) not in self._found:
            passages = self._retriever.retrieve_one(query(relation, subject), self._topk)
            self._found[relation, subject] = [self._fact_of[p.title, p.text] for p in passages]
        return self._found[relation, subject]

    def permuted_names(self, rng: random.Random) -> dict[Name, str]:
        """Return another name for each name, one to one within its type."""
        return {
            (kind, name): new
            for kind, names in self._names.items()
            for name, new in zip(names, rng.sample(names, len(names)), strict=True)
        }


class _Agent:
    """The scripted agent: what it has found and was shown last, by the true names, and what it wrote."""

    def __init__(self, script: Script, question: Question, rng: random.Random, names: Mapping[Name, str]) -> None:
        self._script, self._rng, self._names = script, rng, names
        first = question.facts[0]
        self._found: Name = (first.subject_type, first.subject)
        self._relation = ""
        self._shown: list[Fact] = []
        self._numbered, self._num_searches = question.numbered, 0
        self.question = ask(question.composition, self._say(self._found), numbered=question.numbered)
        self.turns: list[tuple[str, tuple[Passage, ...] | None]] = []

    def search(self, relation: str) -> None:
        """Search for a relation of what was found last, and believe the first passage."""
        so_far = f"{self._finding()} Next" if self._shown else "First"
        if self._numbered:
            so_far = NUMERALS[self._num_searches]
        thought = f"<think> {so_far} the {relation}. </think>"
        self._num_searches += 1
        if self._errs("no_action"):
            self.turns.append((thought, None))
        if self._errs("wrong_relation"):
            relation = self._rng.choice(tuple(OBJECT_TYPES))
        if self._shown and self._errs("wrong_subject"):
            self._found = self._rng.choice(_names(self._shown))
        self._shown = self._script.search(relation, self._found[1])
        text = f"{thought} <search> {query(relation, self._say(self._found))} </search>"
        self.turns.append((text, tuple(self._passage(fact) for fact in self._shown)))
        self._found, self._relation = (self._shown[0].object_type, self._shown[0].object), relation

    def answer(self) -> None:
        """Answer with what was found last."""
        thought = f"<think> {self._finding()} </think>"
        if self._errs("wrong_answer"):
            self._found = self._rng.choice(_names(self._shown))
        self.turns.append((f"{thought} <answer> {self._say(self._found)} </answer>", ()))

    def _finding(self) -> str:
        return f"The {self._relation} is {self._say(self._found)}."

    def _errs(self, fault: str) -> bool:
        return self._rng.random() < float(getattr(self._script.faults, fault))

    def _say(self, name: Name) -> str:
        return self._names.get(name, name[1])

    def _passage(self, fact: Fact) -> Passage:
        subject, object = (fact.subject_type, fact.subject), (fact.object_type, fact.object)
        return Passage(title(self._say(subject)), sentence(fact.relation, self._say(subject), self._say(object)))


def _names_by_type(facts: Sequence[Fact]) -> dict[str, list[str]]:
    names: dict[str, set[str]] = {}
    for fact in facts:
        names.setdefault(fact.subject_type, set()).add(fact.subject)
        names.setdefault(fact.object_type, set()).add(fact.object)
    return {kind: sorted(members) for kind, members in names.items()}


def _names(facts: Sequence[Fact]) -> list[Name]:
    return [name for f in facts for name in ((f.subject_type, f.subject), (f.object_type, f.object))]
