"""Chat template -> what it writes for a turn, and behind it: found by rendering small conversations with stand-ins.

A turn of the policy is sampled and stays as it is; a stand-in takes its place here. Behind text the stand-in is the
turn's content. Behind tool calls it is an argument of a recorded call, because some templates write a result only
for one (Mistral, gpt-oss), or write it in another way; what follows then starts with the token that ends the turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import orjson

from treegrpo_cli.rollout.templates import RefusalError
from treegrpo_cli.rollout.writing import Tools, message
from treegrpo_cli.tags import parameters_of_schema
from treegrpo_cli.types import Message, ToolCall

STAND_IN = "treegrpo-stand-in-turn"
PROBE = "treegrpo-probe-result"
THOUGHT = "treegrpo-probe-thought"
QUESTION = message("user", "question")

Writer = Callable[[Sequence[Message]], str]
"""Messages -> the text that they add behind a turn."""


class Render(Protocol):
    """Conversation -> text, with the tools shown and a next turn started, or not."""

    def __call__(self, messages: Sequence[Message], tools: Tools = (), *, reply: bool = True) -> str:
        """Raises RefusalError where the template does not take the messages, UserError where it does not end."""
        ...


class Written(NamedTuple):
    """Tool calls, and a turn as the template writes them."""

    calls: tuple[ToolCall, ...]
    text: str


class Shape(NamedTuple):
    """How a recorded call is given to the template: DeepSeek's want text, and no content."""

    arguments_are_text: bool
    content: str | None


SHAPES = tuple(itertools.starmap(Shape, itertools.product((False, True), ("", None))))


class Conversations:
    """A chat template, asked by examples."""

    def __init__(self, render: Render, tools: Tools, ends: Sequence[str]) -> None:
        """`ends` are the texts of the tokens that end a turn. Raises RefusalError where results cannot be shown."""
        self._render, self._tools = render, tools
        closing = self.last_turn_end().strip()
        self._ends = [*ends, closing] if closing else ends
        self._shape = SHAPES[0]
        self._records = bool(tools) and any(self._can_record(shape) for shape in SHAPES)
        self._takes_content = self._check_content()

    def _can_record(self, shape: Shape) -> bool:
        self._shape = shape
        try:
            return PROBE in self._behind_calls([self._result()], num_calls=1, ids_as_given=False)
        except RefusalError:
            return False

    def _result(self) -> Message:
        return {**message("tool", PROBE), "name": self._tools[0]["function"]["name"]}

    def _check_content(self) -> bool:
        """Whether a result may follow a turn of text. Raises RefusalError where it may not, and no call is recorded."""
        following = self._result() if self._tools else message("user", PROBE)
        try:
            if PROBE in self._behind_content([following]):
                return True
            raise RefusalError(
                f"chat template: what a {following['role']} message adds does not stand behind the assistant's turn"
            )
        except RefusalError:
            if not self._records:
                raise
            return False

    def behind(self, messages: Sequence[Message]) -> tuple[str, Writer]:
        """Return what these messages add behind a turn, and what writes them with other contents.

        Raises RefusalError where the template takes them in no way.
        """
        refusals = []
        for write in self._writers(messages):
            try:
                return write(messages), write
            except RefusalError as error:
                refusals.append(error)
        raise refusals[0]

    def _writers(self, messages: Sequence[Message]) -> Iterator[Writer]:
        if not messages or messages[0]["role"] != "tool":
            yield self._behind_content
            return
        num_results = sum(m["role"] == "tool" for m in messages)
        if self._records:
            for num_calls, ids_as_given in itertools.product(dict.fromkeys((num_results, 1)), (True, False)):
                yield partial(self._behind_calls, num_calls=num_calls, ids_as_given=ids_as_given)
        if self._takes_content:
            yield self._behind_content

    def _behind_content(self, messages: Sequence[Message]) -> str:
        text = self._render([QUESTION, message("assistant", STAND_IN), *messages])
        if STAND_IN not in text:
            raise RefusalError("chat template: leaves out an assistant's turn that a tool message follows")
        return text.partition(STAND_IN)[2]

    def _behind_calls(self, messages: Sequence[Message], *, num_calls: int, ids_as_given: bool) -> str:
        """Return what stands behind a turn of so many calls; a call that has no id of its own gets one of 9 digits."""
        results = [m for m in messages if m["role"] == "tool"]
        ids = [(m.get("tool_call_id") if ids_as_given else None) or _made_up_id(i) for i, m in enumerate(results)]
        ids = [ids[min(i, num_calls - 1)] for i in range(len(ids))]
        names = [m.get("name") or self._tools[0]["function"]["name"] for m in results[:num_calls]]
        calls = [ToolCall(name, self._stand_in(), id_) for name, id_ in zip(names, ids, strict=False)]
        numbered = iter(ids)
        answers = [{"name": names[0], **m, "tool_call_id": next(numbered)} if m in results else m for m in messages]
        text = self._render([QUESTION, _recorded(calls, self._shape), *answers], self._tools)
        behind = _behind_last(text, STAND_IN, num_calls)
        starts = [start for end in self._ends if (start := behind.find(end)) >= 0]
        if not starts:
            raise RefusalError("chat template: ends a turn of tool calls with none of the model's end tokens")
        return behind[min(starts) :]

    def _stand_in(self) -> dict[str, Any]:
        return {next(iter(parameters_of_schema(self._tools[0])), "value"): STAND_IN}

    def written(self, calls: Sequence[ToolCall]) -> Written | None:
        """Return a turn of these calls as the template writes it, None where it writes no such turn."""
        named = tuple(ToolCall(call.name, call.arguments, _made_up_id(i)) for i, call in enumerate(calls))
        for shape in (self._shape,) if self._records else SHAPES:
            try:
                text = self._turn([QUESTION, _recorded(named, shape)])
            except RefusalError:
                continue
            if all(call.name in text for call in calls):
                return Written(named, text)
        return None

    def _turn(self, conversation: Sequence[Message]) -> str:
        """Return what the last message adds to the conversation, up to the token that ends a turn."""
        asked = self._render(conversation[:-1], self._tools)
        answered = self._render(conversation, self._tools, reply=False)
        text = answered[_common_start(asked, answered) :]
        return text[: min((start for end in self._ends if (start := text.find(end)) >= 0), default=len(text))]

    def prompt(self) -> str:
        """Return a prompt that shows the tools."""
        return self._render([QUESTION], self._tools)

    def last_turn_end(self) -> str:
        """Return what the template writes behind a turn that nothing follows; "" where it does not say."""
        try:
            return self._render([QUESTION, message("assistant", STAND_IN)], reply=False).partition(STAND_IN)[2]
        except RefusalError:
            return ""

    def user_message(self) -> str:
        """Return what a user's message adds behind a turn; "" where the template takes none there."""
        try:
            return self._behind_content([message("user", PROBE)])
        except RefusalError:
            return ""

    def loses_words(self) -> bool:
        """Whether the template leaves out what a turn says beside its tool calls."""
        turn, following = self._turn_before("tool")
        return self._records and self._drops({**turn, "content": THOUGHT}, following)

    def loses_thoughts(self, role: str) -> bool:
        """Whether the template leaves a turn's thought out once a message of this role follows."""
        turn, following = self._turn_before(role)
        inside = {**turn, "content": f"<think>\n{THOUGHT}\n</think>\n\n{turn['content'] or ''}"}
        beside = [{**turn, key: THOUGHT} for key in ("reasoning_content", "reasoning", "thinking")]
        known = [inside, *(turn for turn in beside if self._writes(turn))]
        return any(self._drops(turn, following) for turn in known)

    def _turn_before(self, role: str) -> tuple[Message, Message]:
        """Return a turn, and a message of the role to follow it."""
        if role == "user":
            return message("assistant", STAND_IN), message("user", PROBE)
        call = ToolCall(self._tools[0]["function"]["name"], self._stand_in(), _made_up_id(0))
        return _recorded([call], self._shape), {**self._result(), "tool_call_id": call.id}

    def _writes(self, turn: Message) -> bool:
        """Whether the template knows this way to give a thought."""
        try:
            return THOUGHT in self._render([QUESTION, turn], self._tools, reply=False)
        except RefusalError:
            return False

    def _drops(self, turn: Message, following: Message) -> bool:
        try:
            text = self._render([QUESTION, turn, following], self._tools)
        except RefusalError:
            return False
        return STAND_IN in text and THOUGHT not in text


def _recorded(calls: Sequence[ToolCall], shape: Shape) -> Message:
    """Return an assistant's message that makes these calls."""

    def record(call: ToolCall) -> dict[str, Any]:
        arguments = orjson.dumps(call.arguments).decode() if shape.arguments_are_text else call.arguments
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    return {"role": "assistant", "content": shape.content, "tool_calls": [record(call) for call in calls]}


def _made_up_id(index: int) -> str:
    return f"{index + 1:09d}"


def _behind_last(text: str, mark: str, count: int) -> str:
    """Return what stands behind the `count`-th `mark`. Raises RefusalError where there are fewer."""
    parts = text.split(mark, count)
    if len(parts) <= count:
        raise RefusalError("chat template: leaves out tool calls that results follow")
    return parts[-1]


def _common_start(asked: str, answered: str) -> int:
    """Return where the turn starts: behind all of the prompt, or behind the last line or mark that both have."""
    if answered.startswith(asked):
        return len(asked)
    common = next((i for i, (a, b) in enumerate(zip(asked, answered, strict=False)) if a != b), len(answered))
    return 1 + max(answered.rfind(mark, 0, common) for mark in ("\n", ">", "]"))
