"""Python functions -> an environment: each is a tool, its result an observation; `<answer>` ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from treegrpo_cli.envs.tool_schema import ArgumentError, check_arguments, parameters_of, tool_schema
from treegrpo_cli.errors import UserError
from treegrpo_cli.tags import inline_usage, last_answer
from treegrpo_cli.types import Action, Message, StepResult, Task, ToolCall
from treegrpo_cli.user_code import call, load_dotted

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class ToolState:
    """What the tools have shown on the way to here; the retrieval term of the format reward reads it."""

    results: tuple[str, ...] = ()


class ToolEnvironment:
    """Turns of tool calls, until the policy answers.

    A turn that neither calls a tool nor answers is told what is allowed, and costs a turn. So do calls of
    unknown tools and arguments that do not fit: those are the policy's mistakes. A function that raises has
    failed and is called again; in the end it closes the branch.
    """

    def __init__(
        self,
        tools: list[Any],
        dialect: Literal["inline", "chat"] = "inline",
        instructions: str | None = None,
    ) -> None:
        """Offer `tools`: annotated functions, or dotted paths to them.

        `instructions` stand before the question; None = written from the tools' own descriptions.
        """
        functions = [_function(tool) for tool in tools]
        self.tools: Sequence[dict[str, Any]] = [tool_schema(function) for function in functions]
        self._functions = {function.__name__: function for function in functions}
        self._parameters = {function.__name__: parameters_of(function) for function in functions}
        if not functions or len(self._functions) != len(functions):
            raise UserError("environment.options.tools: give at least one function, each of its own name")
        self._allowed = _allowed(self.tools, dialect)
        self._instructions = _instructions(self.tools, dialect) if instructions is None else instructions

    def reset(self, task: Task) -> tuple[ToolState, Sequence[Message]]:
        """Return the empty state and the prompt: instructions, then the question or the row's messages."""
        messages = task.messages or ({"role": "user", "content": task.question},)
        return ToolState(), with_instructions(messages, self._instructions)

    async def step(self, state: ToolState, action: Action) -> tuple[ToolState, StepResult]:
        """Run the action's tool calls, all at once; without any, end on an answer or say what is allowed."""
        if action.tool_calls:
            return await self._run_calls(state, action.tool_calls)
        if not action.error and last_answer(action.text) is not None:
            return state, StepResult(done=True)
        notice = f"{action.error} {self._allowed}".lstrip()
        return state, StepResult(({"role": "user", "content": notice},))

    async def _run_calls(self, state: ToolState, calls: Sequence[ToolCall]) -> tuple[ToolState, StepResult]:
        answers = await asyncio.gather(*(self._run(call) for call in calls))
        messages = tuple(
            {"role": "tool", "name": c.name, "content": a} for c, (a, _) in zip(calls, answers, strict=True)
        )
        results = tuple(answer for answer, ran in answers if ran)
        return ToolState(state.results + results), StepResult(messages, num_tool_calls=len(results))

    async def _run(self, tool_call: ToolCall) -> tuple[str, bool]:
        """Return what to show, and whether the tool ran."""
        name = tool_call.name
        if name not in self._functions:
            return f"Error: there is no tool {name!r}. Tools: {', '.join(self._functions)}.", False
        try:
            arguments = check_arguments(self._parameters[name], tool_call.arguments)
        except ArgumentError as error:
            return f"Error: argument {error.name!r} of {name}: {error}.", False
        return _text(await call(self._functions[name], **arguments)), True


def with_instructions(messages: Sequence[Message], instructions: str) -> list[Message]:
    """Put `instructions` before the first user message, unless the messages speak of `<answer>`."""
    if not instructions or any("<answer>" in message["content"] for message in messages):
        return [dict(message) for message in messages]
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    return [
        {**message, "content": f"{instructions}\n\n{message['content']}"} if i == first else dict(message)
        for i, message in enumerate(messages)
    ]


def _function(tool: Any) -> Function:
    function = load_dotted(tool, "environment.options.tools") if isinstance(tool, str) else tool
    if not callable(function) or not hasattr(function, "__name__"):
        raise UserError(f"environment.options.tools: {tool!r} is no function")
    checked: Function = function
    return checked


def _instructions(tools: Sequence[dict[str, Any]], dialect: str) -> str:
    lines = ["Answer the question. Reason between <think> and </think> before every step."]
    if dialect == "inline":
        lines += ["You may use these tools, one at a time:"]
        lines += [f"- {inline_usage(tool)}: {tool['function']['description']}" for tool in tools]
        lines += ["A tool's result comes back between <information> and </information>."]
    lines += ["When you know the answer, give it between <answer> and </answer>, without explanation."]
    return "\n".join(lines)


def _allowed(tools: Sequence[dict[str, Any]], dialect: str) -> str:
    usages = [inline_usage(t) if dialect == "inline" else f"call the tool {t['function']['name']}" for t in tools]
    allowed = ", ".join(usages)
    return f"This is not an action. Allowed: {allowed}, or <answer>your answer</answer> to finish. Try again."


def _text(result: Any) -> str:
    return result if isinstance(result, str) else orjson.dumps(result, default=str).decode()
