"""Arithmetic question -> calculations -> answer: the second environment, and tasks for it."""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable
from typing import Literal

from treegrpo_cli.envs.tools import ToolEnvironment
from treegrpo_cli.types import Task

MAX_EXPRESSION_CHARS = 200
MAX_BITS = 256
"""Whole numbers beyond this many bits are refused before they are computed."""

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class CalculatorEnvironment(ToolEnvironment):
    """An agent with one tool, `calculate`."""

    def __init__(self, dialect: Literal["inline", "chat"] = "inline", instructions: str | None = None) -> None:
        super().__init__([calculate], dialect, instructions)


def calculate(expression: str) -> str:
    """Compute an arithmetic expression of numbers, + - * / // % ** and parentheses.

    A mistake in the expression is an answer too, because it is the policy's and not the tool's.

    >>> calculate("(12 + 7) * 3"), calculate("10 / 4"), calculate("1 / 0")
    ('57', '2.5', 'Error: division by zero')

    Args:
        expression: For example (12 + 7) * 3
    """
    try:
        return _show(_value(_parse(expression)))
    except (ArithmeticError, ValueError) as error:
        return f"Error: {error}"


def _parse(expression: str) -> ast.expr:
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ValueError(f"an expression has at most {MAX_EXPRESSION_CHARS} characters")
    if not re.fullmatch(r"[0-9.+\-*/%()\s]+", expression):
        raise ValueError("only numbers, + - * / // % ** and parentheses are understood")
    try:
        return ast.parse(" ".join(expression.split()), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("this is no expression") from error


def _value(node: ast.expr) -> Number:
    """Compute what is in the tables above, and refuse all other grammar; the length bounds the depth."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _apply(op, _value(left), _value(right))
    raise ValueError("this is no expression")


def _apply(op: ast.operator, left: Number, right: Number) -> Number:
    if isinstance(op, ast.Pow):
        if left == 0 and right < 0:
            raise ZeroDivisionError("division by zero")
        if left < 0 and right != int(right):
            raise ValueError("a negative number has no such power")
        if abs(right) * (int(left).bit_length() if isinstance(left, int) else 1) > MAX_BITS:
            raise OverflowError("the power is too large")
    value = _BINARY[type(op)](left, right)
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise OverflowError("the result is too large")
    return value


def _show(value: Number) -> str:
    """Whole numbers as such, others with twelve significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def make_tasks(count: int, seed: int = 0) -> list[Task]:
    """Return `count` tasks, the same for a seed, whose answers are whole numbers and never negative."""
    draw = random.Random(seed)  # noqa: S311  # no secret
    return [_make_task(draw) for _ in range(count)]


def _make_task(draw: random.Random) -> Task:
    a, b, c = (draw.randint(2, 99) for _ in range(3))
    question, expression = draw.choice(
        [
            (f"What is ({a} + {b}) * {c}?", f"({a} + {b}) * {c}"),
            (f"What is {a} * {b} + {c}?", f"{a} * {b} + {c}"),
            (f"What is the remainder of {a} * {b} divided by {c}?", f"{a} * {b} % {c}"),
            (
                f"A shelf holds {a} books. How many books do {b} shelves and {c} more books make?",
                f"{a} * {b} + {c}",
            ),
            (
                f"Ana has {a + b} coins, gives {b} away and then trebles the rest. How many has she?",
                f"{a} * 3",
            ),
        ]
    )
    answer = calculate(expression)
    return Task(question, answer, columns={"question": question, "answer": answer})
