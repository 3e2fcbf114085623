"""A seed -> arithmetic in words, for a small language model with a calculator.

A problem is two steps, each told in one of nine ways: 81 kinds. A third of them is held out, so that training sees
every way of telling a step, but not all pairs; held-out problems have numbers that no training problem has, too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from treegrpo_cli.envs.calculator import calculate

Step = tuple[str, str]
"""Words and what they ask for; the numbers are a, b and c, and r is the result of the first step."""
Kind = tuple[Step, Step]

FIRST: tuple[Step, ...] = (
    ("Add {b} to {a}", "a + b"),
    ("Take the sum of {a} and {b}", "a + b"),
    ("Start with {a}, put {b} on top", "a + b"),
    ("Subtract {b} from {a}", "a - b"),
    ("Take {b} away from {a}", "a - b"),
    ("Start with {a}, remove {b}", "a - b"),
    ("Multiply {a} by {b}", "a * b"),
    ("Take the product of {a} and {b}", "a * b"),
    ("Start with {a}, take it {b} times", "a * b"),
)
SECOND: tuple[Step, ...] = (
    ("then add {c}.", "r + c"),
    ("and increase the result by {c}.", "r + c"),
    ("and give {c} more.", "r + c"),
    ("then subtract {c}.", "r - c"),
    ("and decrease the result by {c}.", "r - c"),
    ("and give {c} less.", "r - c"),
    ("then multiply by {c}.", "r * c"),
    ("and scale the result by {c}.", "r * c"),
    ("and give {c} times that.", "r * c"),
)
_PLACES = tuple(product(range(len(FIRST)), range(len(SECOND))))
TRAIN: tuple[Kind, ...] = tuple((FIRST[i], SECOND[j]) for i, j in _PLACES if (i + j) % 3 != 1)
WARM_UP: tuple[Kind, ...] = tuple(product(FIRST[::3], SECOND[::3]))
"""Those of training that tell each operation in the first of its three ways."""
HELD_OUT: tuple[Kind, ...] = tuple((FIRST[i], SECOND[j]) for i, j in _PLACES if (i + j) % 3 == 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, the calls of the calculator that solve it, and the answer."""

    question: str
    expressions: tuple[str, str]
    answer: str

    def row(self) -> dict[str, Any]:
        """Return a line of a data file."""
        return {"question": self.question, "answer": self.answer, "expressions": self.expressions}


def make_problems(kinds: Sequence[Kind], count: int, seed: str, *, odd: bool) -> list[Problem]:
    """Return different problems, of every kind about as many; their numbers are all odd, or all even.

    >>> problem = make_problems([(FIRST[3], SECOND[0])], 1, "a seed", odd=True)[0]
    >>> problem.question, problem.expressions, problem.answer
    ('Subtract 15 from 75, then add 49.', ('75 - 15', '60 + 49'), '109')
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    found: dict[str, Problem] = {}
    while len(found) < count:
        turn = len(found) % len(kinds)
        if turn == 0:
            kinds = draw.sample(kinds, len(kinds))
        problem = _tell(kinds[turn], draw, odd)
        found[problem.question] = problem
    return list(found.values())


def _tell(kind: Kind, draw: random.Random, odd: bool) -> Problem:
    """Draw numbers of two digits until neither step leaves less than one."""
    (first, calculation), (second, then) = kind
    while True:
        a, b, c = (2 * draw.randint(5, 49) + odd for _ in range(3))
        one = _fill(calculation, a=a, b=b)
        two = _fill(then, r=int(calculate(one)), c=c)
        answer = calculate(two)
        if int(calculate(one)) > 0 and int(answer) > 0:
            return Problem(f"{first}, {second}".format(a=a, b=b, c=c), (one, two), answer)


def _fill(calculation: str, **numbers: int) -> str:
    return " ".join(str(numbers.get(word, word)) for word in calculation.split())
