"""gymnasium environment -> a world of text: the observation is written, the action read, the reward handed on.

The policy acts by one tool, `act(action)`, in either dialect. Copies are made as of any world that keeps its state
in itself (see `stateful`); an episode's seed is the row's column `seed`, else a digest of its question.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import orjson

from treegrpo_cli.envs.instructions import with_instructions
from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.tags import inline_usage
from treegrpo_cli.types import Action, Message, StepResult, Task
from treegrpo_cli.user_code import load_dotted

COLOURED = re.compile(r"\x1b\[[0-9;]+m(.*?)\x1b\[0m", re.DOTALL)


class GymnasiumWorld:
    """An episode of a gymnasium environment.

    Options: `make`, the environment's own keyword arguments; `actions`, a name for each of a discrete space's
    actions, else they are numbers; `observation`: `text` (numbers rounded to four digits), `render` (what the
    environment draws in `ansi` mode, coloured cells in brackets), or the path of a function that makes the text;
    `instructions` in place of the built-in ones. An environment's own `state_key()`, where it has one, says which
    states are equal.
    """

    calls_user_code = True

    def __init__(
        self,
        constructor: Callable[..., Any],
        make: dict[str, Any] | None = None,
        actions: list[str] | None = None,
        observation: str = "text",
        instructions: str | None = None,
        dialect: Literal["inline", "chat"] = "inline",
    ) -> None:
        self.env = constructor(**({"render_mode": "ansi"} if observation == "render" else {}), **(make or {}))
        self._write = _writer(observation)
        self._actions = _ActionReader(self.env.action_space, actions)
        self.tools = (_act(self._actions.described),)
        if instructions is None:
            how = inline_usage(self.tools[0]) if dialect == "inline" else "the tool `act`"
            instructions = f"Act by {how}, one action a turn. Actions: {self._actions.described}."
        self._instructions = instructions
        own_key = getattr(self.env.unwrapped, "state_key", None)
        if callable(own_key):
            self.state_key = own_key
        self.observation: Any = None
        self.info: dict[str, Any] = {}

    def reset(self, task: Task) -> list[Message]:
        """Start an episode: the row's messages or its question, and the first observation behind it."""
        seed = task.columns.get("seed")
        is_number = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
        self.observation, self.info = self.env.reset(seed=seed if is_number else zlib.crc32(task.question.encode()))
        given = task.messages or ({"role": "user", "content": task.question},)
        messages = with_instructions(given, self._instructions)
        messages[-1]["content"] = f"{messages[-1]['content']}\n\n{self._shown()}"
        return messages

    def step(self, action: Action) -> StepResult:
        """Take the action of the turn's one call; anything else is told what is allowed."""
        calls = action.tool_calls
        if len(calls) != 1 or calls[0].name != "act":
            notice = f"{action.error} Take one action: {self._actions.described}.".lstrip()
            return StepResult(({"role": "user", "content": notice},))
        try:
            chosen = self._actions.read(calls[0].arguments.get("action"))
        except ValueError as error:
            return StepResult((_result(f"Error: {error}. Actions: {self._actions.described}."),))
        self.observation, reward, terminated, truncated, self.info = self.env.step(chosen)
        shown = (_result(self._shown()),)
        return StepResult(shown, done=bool(terminated or truncated), num_tool_calls=1, reward=float(reward))

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _shown(self) -> str:
        text = self._write(self.env, self.observation)
        if not isinstance(text, str):
            raise ToolError(f"environment.options.observation: must return text, got a {type(text).__name__}")
        return text


def constructor_of(name: str) -> Callable[..., Any]:
    """Return what makes the environment of an id, as `gymnasium.make` takes it. Raises UserError without gymnasium."""
    try:
        import gymnasium
    except ImportError as error:
        raise UserError(
            f"environment.name: gym:{name} needs gymnasium, which is not installed: pip install 'treegrpo[gym]'"
        ) from error

    def construct(**options: Any) -> Any:
        return gymnasium.make(name, **options)

    return construct


class _ActionReader:
    """Texts -> elements of an action space."""

    def __init__(self, space: Any, names: list[str] | None) -> None:
        from gymnasium.spaces import Discrete

        self._space = space
        self._by_name: dict[str, Any] = {}
        if isinstance(space, Discrete):
            numbers = range(int(space.start), int(space.start + space.n))
            if names is not None and len(names) != len(numbers):
                raise UserError(f"environment.options.actions: {len(names)} names for {len(numbers)} actions")
            self._by_name = {str(number): number for number in numbers}
            self._by_name |= {name.strip().lower(): n for name, n in zip(names or (), numbers, strict=False)}
            self.described = ", ".join(names) if names else f"{numbers[0]} to {numbers[-1]}"
        elif names is not None:
            raise UserError(f"environment.options.actions: names are for discrete actions, not for {space}")
        else:
            self.described = f"JSON of {space}"

    def read(self, given: Any) -> Any:
        """Return the action. Raises ValueError for what is none."""
        if self._by_name:
            action = self._by_name.get(str(given).strip().lower())
            if action is None:
                raise ValueError(f"there is no action {given!r:.100}")
            return action
        try:
            action = _element(self._space, orjson.loads(given) if isinstance(given, str) else given)
        except Exception as error:  # spaces of people's own may raise anything here
            raise ValueError(f"{given!r:.100} is no action") from error
        if not self._space.contains(action):
            raise ValueError(f"{given!r:.100} is not among the actions")
        return action


def _element(space: Any, value: Any) -> Any:
    """JSON -> an element of a space, whose arrays have its dtype."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {key: _element(inner, value[key]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_element(inner, part) for inner, part in zip(space.spaces, value, strict=True))
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return np.asarray(value, dtype=space.dtype)
    return value


def _writer(observation: str) -> Callable[[Any, Any], Any]:
    """Return a function of environment and observation."""
    if observation == "render":
        return _rendered
    if observation == "text":
        return _as_text
    function = load_dotted(observation, "environment.options.observation")
    if not callable(function):
        raise UserError(f"environment.options.observation: {observation} is not a function")
    return lambda env, seen: function(seen)


def _rendered(env: Any, observation: Any) -> str:
    return COLOURED.sub(r"[\1]", str(env.render())).strip("\n")


def _as_text(env: Any, observation: Any) -> str:
    if isinstance(observation, (np.ndarray, np.generic)):
        return np.array2string(np.asarray(observation), precision=4, suppress_small=True, separator=", ")
    if isinstance(observation, dict):
        return "\n".join(f"{key}: {_as_text(env, value)}" for key, value in observation.items())
    return str(observation)


def _result(content: str) -> Message:
    return {"role": "tool", "name": "act", "content": content}


def _act(described: str) -> dict[str, Any]:
    properties = {"action": {"type": "string", "description": f"One of: {described}."}}
    parameters = {"type": "object", "properties": properties, "required": ["action"]}
    return {
        "type": "function",
        "function": {"name": "act", "description": "Take an action in the world.", "parameters": parameters},
    }
