"""A seed -> problems with two or three whole numbers, for a small language model with a calculator.

A kind is a wording and the operations that solve it, one a call of the calculator. Those of the warm-up are bare
arithmetic; training tells stories; evaluation tells other stories, with numbers that no training problem has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from treegrpo_cli.envs.calculator import calculate

Kind = tuple[str, str]
"""A wording with the letters a, b, c for its numbers, and its operations, where r is the result so far."""

BARE: tuple[Kind, ...] = (
    ("What is {a} plus {b}?", "a + b"),
    ("What is {a} minus {b}?", "a - b"),
    ("What is {a} times {b}?", "a * b"),
    ("What is {a} times {b}, plus {c}?", "a * b, r + c"),
    ("What is {a} times {b}, minus {c}?", "a * b, r - c"),
    ("What is {a} plus {b}, times {c}?", "a + b, r * c"),
    ("What is {a} minus {b}, times {c}?", "a - b, r * c"),
    ("What is {a} plus {b}, minus {c}?", "a + b, r - c"),
)

TRAIN: tuple[Kind, ...] = (
    ("A farmer has {a} hens and buys {b} more. How many hens has he?", "a + b"),
    ("Mia had {a} stamps and gave {b} to Tom. How many are left?", "a - b"),
    ("A hall has {a} rows of {b} seats. How many seats are there?", "a * b"),
    ("Ben is {a} years old. His mother is {b} years older. How old is she?", "a + b"),
    ("A rope is {a} metres long. {b} metres are cut off. How long is it now?", "a - b"),
    ("Every day Eva runs {a} km. How far does she run in {b} days?", "a * b"),
    ("A shelf holds {a} books. How many books do {b} shelves and {c} more books make?", "a * b, r + c"),
    ("Ben buys {a} tickets at {b} euros each and a drink for {c} euros. What does he pay?", "a * b, r + c"),
    ("A train has {a} rows of {b} seats. {c} seats are taken. How many are free?", "a * b, r - c"),
    ("Ann fills {a} bags with {b} nuts each and eats {c} nuts. How many are left?", "a * b, r - c"),
    ("There are {a} red and {b} blue balls in each of {c} bags. How many balls are there?", "a + b, r * c"),
    ("{a} boys and {b} girls each plant {c} trees. How many trees do they plant?", "a + b, r * c"),
    ("A box had {a} pens. {b} pens are broken. The others cost {c} cents each. What do they cost?", "a - b, r * c"),
    ("Of {a} workers {b} are ill. Each of the others packs {c} boxes. How many boxes is that?", "a - b, r * c"),
    ("Mia had {a} cards. She got {b} from Tom and {c} from Eva. How many has she now?", "a + b, r + c"),
    ("A tank holds {a} litres. {b} litres leak out and {c} are filled in. How many are in it?", "a - b, r + c"),
)

HELD_OUT: tuple[Kind, ...] = (
    ("A library owns {a} maps and is given {b} more. How many maps does it own?", "a + b"),
    ("A tree was {a} feet tall. A storm broke off {b} feet. How tall is it now?", "a - b"),
    ("A bus makes {a} trips a week. How many trips does it make in {b} weeks?", "a * b"),
    ("A baker fills {a} trays with {b} rolls each and bakes {c} cakes. How many pieces is that?", "a * b, r + c"),
    ("Max packs {a} crates of {b} apples. {c} apples are bad. How many are good?", "a * b, r - c"),
    ("{a} players and {b} coaches get {c} shirts each. How many shirts is that?", "a + b, r * c"),
    ("Of {a} lamps {b} are sold. Each of the rest needs {c} watts. How many watts is that?", "a - b, r * c"),
    ("A cinema sold {a} tickets on Friday, {b} on Saturday and {c} on Sunday. How many in all?", "a + b, r + c"),
    ("A ferry carries {a} people. {b} get off and {c} get on. How many are on board?", "a - b, r + c"),
    ("Lea saved {a} coins and her aunt gave her {b}. She spent {c}. How many has she now?", "a + b, r - c"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the calls of the calculator that solve it, and the answer."""

    question: str
    expressions: tuple[str, ...]
    answer: str

    def row(self) -> dict[str, Any]:
        """Return a line of a data file."""
        return {"question": self.question, "answer": self.answer, "expressions": self.expressions}


def make_problems(kinds: Sequence[Kind], count: int, seed: str, *, odd: bool) -> list[Problem]:
    """Return different problems, of every kind as many; their numbers have two digits and are all odd, or all even.

    >>> problem = make_problems([("What is {a} times {b}, plus {c}?", "a * b, r + c")], 1, "0", odd=True)[0]
    >>> problem.question, problem.expressions, problem.answer
    ('What is 59 times 23, plus 45?', ('59 * 23', '1357 + 45'), '1402')
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = _tell(kinds[len(found) % len(kinds)], draw, odd)
        found[problem.question] = problem
    return list(found.values())


def _tell(kind: Kind, draw: random.Random, odd: bool) -> Problem:
    """Draw numbers until something is left wherever something is taken away."""
    wording, operations = kind
    while True:
        numbers = {letter: str(2 * draw.randint(6, 48) + odd) for letter in "abc"}
        expressions = []
        for operation in operations.split(", "):
            expressions.append(" ".join(numbers.get(word, word) for word in operation.split()))
            numbers["r"] = calculate(expressions[-1])
            if int(numbers["r"]) <= 0:
                break
        else:
            return Problem(wording.format(**numbers), tuple(expressions), numbers["r"])
