"""Python functions -> an environment: each is a tool, its result an observation; `<answer>` ends it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from treegrpo_cli.envs.answers import MAX_CONTENT_CHARS
from treegrpo_cli.envs.instructions import allowed_actions, instructions_for, instructs, with_instructions
from treegrpo_cli.envs.outside import is_outside
from treegrpo_cli.envs.reports import error_text, report_raised
from treegrpo_cli.envs.tool_schema import ArgumentError, check_arguments, parameters_of, tool_schema
from treegrpo_cli.errors import UserCodeError, UserError
from treegrpo_cli.tags import last_answer
from treegrpo_cli.types import Action, Message, StepResult, Task, ToolCall
from treegrpo_cli.user_code import call, clean, load_dotted

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class ToolState:
    """What the tools have shown on the way to here; the retrieval term of the format reward reads it."""

    results: tuple[str, ...] = ()


class ToolEnvironment:
    """Turns of tool calls, until the policy answers.

    A turn that neither calls a tool nor answers is told what is allowed, and costs a turn. So do calls of
    unknown tools and arguments that do not fit, and what a function raises is shown as its result, unless
    `tool_errors` is `close`. A lost connection is no result: the step fails, and is tried again.
    """

    tool_errors: Literal["show", "close"] = "show"
    """`load_environment` sets it as the config says."""

    def __init__(
        self,
        tools: list[Any],
        dialect: Literal["inline", "chat"] = "inline",
        instructions: str | None = None,
    ) -> None:
        """Offer `tools`: annotated functions, or dotted paths to them.

        `instructions` stand before the question, always, "" for none. None = written from the tools' own
        descriptions; they are left out where the row's messages name every tool and `<answer>` themselves.
        """
        functions = [_function(tool) for tool in tools]
        self.tools: Sequence[dict[str, Any]] = [tool_schema(function) for function in functions]
        self._functions = {function.__name__: function for function in functions}
        self._parameters = {function.__name__: parameters_of(function) for function in functions}
        if not functions or len(self._functions) != len(functions):
            raise UserError("environment.options.tools: give at least one function, each of its own name")
        self._allowed = allowed_actions(self.tools, dialect)
        self._dialect, self._given = dialect, instructions
        self._written = self._write_instructions(dialect)

    def _write_instructions(self, dialect: str) -> str:
        return instructions_for(self.tools, dialect)

    def reset(self, task: Task) -> tuple[ToolState, Sequence[Message]]:
        """Return the empty state and the prompt: instructions, then the question or the row's messages."""
        if self._given is not None:
            instructions = self._given
        elif task.messages is not None and instructs(task.messages, self.tools, self._dialect):
            instructions = ""
        else:
            instructions = self._written
        messages = task.messages or ({"role": "user", "content": task.question},)
        return ToolState(), with_instructions(messages, instructions)

    async def step(self, state: ToolState, action: Action) -> tuple[ToolState, StepResult]:
        """Run the action's tool calls, all at once; without any, end on an answer or say what is allowed."""
        if action.tool_calls:
            return await self._run_calls(state, action.tool_calls)
        if not action.error and last_answer(action.text) is not None:
            return state, StepResult(done=True)
        notice = f"{action.error} {self._allowed}".lstrip()
        return state, StepResult(({"role": "user", "content": notice},))

    async def _run_calls(self, state: ToolState, calls: Sequence[ToolCall]) -> tuple[ToolState, StepResult]:
        answers = await _all(self._run(call) for call in calls)
        messages = tuple(
            {"role": "tool", "name": c.name, "content": answer.text, **({"tool_call_id": c.id} if c.id else {})}
            for c, answer in zip(calls, answers, strict=True)
        )
        results = tuple(answer.text for answer in answers if answer.ran and not answer.failed)
        result = StepResult(
            messages,
            num_tool_calls=sum(answer.ran for answer in answers),
            num_failed_tool_calls=sum(answer.failed for answer in answers),
        )
        return ToolState(state.results + results), result

    async def _run(self, tool_call: ToolCall) -> Answer:
        name = tool_call.name
        if name not in self._functions:
            return Answer(f"Error: there is no tool {name!r:.100}. Tools: {', '.join(self._functions)}.")
        try:
            arguments = check_arguments(self._parameters[name], tool_call.arguments)
        except ArgumentError as error:
            return Answer(f"Error: argument {error.name!r} of {name}: {error}.")
        try:
            result = await call(functools.partial(self._functions[name], **arguments))
            return Answer(await _text(result), ran=True)
        except UserCodeError as error:
            if is_outside(error) or self.tool_errors == "close":
                raise
            report_raised(f"tool {name}", error)
            return Answer(error_text(error), ran=True, failed=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What to show for one call, whether the tool ran, and whether it raised."""

    text: str
    ran: bool = False
    failed: bool = False


async def _all(running: Iterable[Awaitable[Answer]]) -> list[Answer]:
    """Wait for all of them, and then raise what one raised."""
    answers = await asyncio.gather(*running, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, Answer)]


def _function(tool: Any) -> Function:
    function = load_dotted(tool, "environment.options.tools") if isinstance(tool, str) else tool
    if not callable(function) or not hasattr(function, "__name__"):
        raise UserError(f"environment.options.tools: {tool!r} is no function")
    checked: Function = function
    return checked


async def _text(result: Any) -> str:
    """Return the result as text, JSON where it is none; objects of the user's write themselves, as user code."""
    if isinstance(result, str):
        return clean(result[:MAX_CONTENT_CHARS])
    try:
        return orjson.dumps(result).decode()
    except TypeError:
        text: str = await call(json.dumps, result, default=str, ensure_ascii=False)
        return clean(text)
