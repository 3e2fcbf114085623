"""Worlds and rewards for workers, as a user would write them: loaded there by their path."""

import asyncio
import logging
import os
import random
import re
import time
from typing import Any

from treegrpo_cli.types import Action, Message, Rollout, StepResult, Task


class Bag:
    """Stateful: collects what was said, copied by deepcopy; worth how many different things are in it."""

    tools = ()

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.said: list[str] = []

    def reset(self, task: Task) -> list[Message]:
        self.said = [str(self.start)]
        return [{"role": "user", "content": f"{task.question} {task.columns['at']} {len(task.columns['pair'])}"}]

    def step(self, action: Action) -> StepResult:
        if "rome" in action.text:
            raise ValueError("no such town")
        self.said.append(action.text)
        content = f"{len(self.said)} things, {sum(map(len, self.said))} letters"
        return StepResult(({"role": "user", "content": content},), num_tool_calls=1, reward=0.1 * len(self.said))

    def state_key(self) -> str:
        return "|".join(sorted(self.said))


def variety(completions: list[str], states: list[Any], at: list[Any]) -> list[float]:
    """A reward that reads the state object and a column."""
    return [len(set(state.world.said)) + day.day / 100 for state, day in zip(states, at, strict=True)]


def last_words(solution_str: str, rollout: Rollout) -> float:
    """A reward of verl's kind."""
    return len(solution_str) + len(rollout.turns) / 7


def fragile(completions: list[str], prompts: list[str]) -> list[float]:
    """A reward that sleeps for ever over one question, and takes its process with it at another."""
    if "Number 1?" in prompts[0]:
        time.sleep(1000)
    if "Number 2?" in prompts[0]:
        os._exit(7)
    return [float(len(completion)) for completion in completions]


async def search(query: str) -> str:
    """Look up.

    Args:
        query: What.
    """
    await asyncio.sleep(0.001)
    return query.upper()


class State:
    """A state that says when it is closed."""

    def __init__(self, said: tuple[str, ...]) -> None:
        self.said = said

    def close(self) -> None:
        logging.getLogger("worlds").warning("closed %s", "/".join(self.said))


class Faulty:
    """Pure in its path; does what it is told."""

    tools = ()

    def reset(self, task: Task) -> tuple[State, list[Message]]:
        return State(()), [{"role": "user", "content": task.question}]

    def step(self, state: State, action: Action) -> tuple[State, StepResult]:
        does, _, rest = action.text.partition(" ")
        content = getattr(self, does)(rest) if hasattr(self, does) else does
        after = State((*state.said, action.text))
        return after, StepResult(({"role": "user", "content": f"{'/'.join(after.said)}: {content}"},))

    def close(self) -> None:
        logging.getLogger("worlds").warning("the world is closed")

    def show(self, text: str) -> str:
        print(text)
        return ""

    def pid(self, _: str) -> str:
        return str(os.getpid())

    def number(self, _: str) -> str:
        return str(random.random())

    def times(self, _: str) -> str:
        start = time.monotonic()
        time.sleep(0.02)
        return f"{start} {time.monotonic()}"

    def fail(self, text: str) -> str:
        raise ValueError(text)

    def lose(self, text: str) -> str:
        raise ConnectionResetError(text)

    def die(self, code: str) -> str:
        os._exit(int(code))

    def sleep(self, seconds: str) -> str:
        time.sleep(float(seconds))
        return "awake"

    def hold(self, _: str) -> str:
        """Hold the interpreter's lock, nearly for ever."""
        return str(re.match(r"(a+)+$", "a" * 64 + "b"))
