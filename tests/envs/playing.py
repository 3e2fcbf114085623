"""Environments played a step at a time, as a rollout plays them; a world that follows a script."""

import asyncio
from pathlib import Path
from typing import Any

from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs import (
    reset_with_retries,
    step_with_retries,
)
from treegrpo_cli.types import Action, StepResult, Task, ToolCall

TASK = Task("What is it?", "4")
ANSWER = Action("<answer>4</answer>")
CORPUS = '{"contents": "Lima\\nThe capital of Peru."}\n{"contents": "Quito\\nThe capital of Ecuador."}\n'


def config(name: str = "calculator", **settings: Any) -> EnvironmentConfig:
    return EnvironmentConfig(name=name, **{"tool_retries": 0, **settings})


def called(name: str, **arguments: Any) -> Action:
    return Action("", (ToolCall(name, arguments),))


def step(environment: Any, state: Any, action: Action, **settings: Any) -> tuple[Any, StepResult]:
    return asyncio.run(step_with_retries(environment, state, action, config(**settings)))


def reset(environment: Any, task: Task = TASK, **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    return asyncio.run(reset_with_retries(environment, task, config(**settings)))


def contents(result: StepResult) -> list[str]:
    return [message["content"] for message in result.observation]


def write_module(path: Path, body: str, name: str = "Own") -> str:
    (path / "own.py").write_text(f"from treegrpo_cli.types import StepResult\n{body}")
    return f"{path / 'own.py'}:{name}"


class Scripted:
    """Runs the next of `acts` at every step: a value is returned, an exception raised, a function called."""

    tools = ()

    def __init__(self, *acts: Any) -> None:
        self.acts = list(acts)

    def reset(self, task: Task) -> tuple[int, list[dict[str, Any]]]:
        return 0, [{"role": "user", "content": task.question}]

    def step(self, state: int, action: Action) -> Any:
        act = self.acts.pop(0)
        if isinstance(act, BaseException):
            raise act
        return act() if callable(act) else act


GOOD = (1, StepResult(done=True))


class Odd:
    """Its text cannot be read."""

    def __repr__(self) -> str:
        raise SystemExit(1)
