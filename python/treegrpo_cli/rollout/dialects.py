"""Messages -> token ids, and sampled text -> Action: how an agent's turns are written for the model.

`inline` is Search-R1's way: tags in one assistant turn. `chat` is the model's own chat template. Tokens in,
tokens out: both say what an observation *adds*, and no history is tokenised a second time. The text of tools
is untrusted, so strings in it that would be read as structure (special tokens, tags) are broken by a space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.call_spans import Span
from treegrpo_cli.rollout.chat import ChatDialect
from treegrpo_cli.rollout.own_readers import json_object
from treegrpo_cli.rollout.writing import Templated, Tools, breaker, clean, fit, message, structural_tokens
from treegrpo_cli.tags import RESERVED_TAGS, parameters_of_schema
from treegrpo_cli.types import Action, Message, TokenIds, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Dialect(Protocol):
    """How turns are written and read."""

    stop: tuple[str, ...]
    """Strings that end a turn, beside the model's end-of-turn token."""
    notices: tuple[str, ...]
    """What a user should know of the chat template, a line each."""
    reader_name: str
    """Who reads tool calls, "" where they are tags or there are no tools."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the prompt, up to where the policy's first turn starts."""
        ...

    def parse(self, text: str) -> Action:
        """Return the tool calls of a sampled turn."""
        ...

    def find_calls(self, text: str) -> Sequence[Span] | None:
        """Return where the tool calls of a sampled turn stand in it; None where the reader of calls does not say."""
        ...

    def observation_ids(self, messages: Sequence[Message], action_token_ids: TokenIds) -> list[int]:
        """Return what `messages` add behind the sampled turn `action_token_ids`, up to the next turn's start.

        Contents are shortened, closing tags kept, so that no more than `max_observation_tokens` come back.
        """
        ...


def make_dialect(
    config: Config, tokenizer: PreTrainedTokenizerBase, tools: Tools, end_ids: Iterable[int] = ()
) -> Dialect:
    """Return the dialect that the config names, for an environment with these tools.

    `end_ids` are the tokens at which the engine ends a turn; the tokenizer's own is always one.

    Raises:
        UserError: a chat template that is missing or cannot show tools, or whose tool calls nobody reads; no room
            for a tool's result.
    """
    settings = config.environment
    if settings.dialect == "inline" and settings.tool_parser != "auto":
        raise UserError("environment.tool_parser: the inline dialect reads its tags itself; it is for the chat dialect")
    kind = InlineDialect if settings.dialect == "inline" else ChatDialect
    dialect = kind(
        tokenizer,
        tools,
        config.rollout.max_observation_tokens,
        config.model.chat_template_timeout_s,
        end_ids=end_ids,
        tool_parser=settings.tool_parser,
    )
    dialect.stop = tuple(dict.fromkeys([*dialect.stop, *settings.stop]))
    return dialect


class InlineDialect(Templated):
    """Each tool is a tag that closes a turn; its result follows as `<information>…</information>`.

    Messages of other roles (a notice of what is allowed) follow as they are.
    """

    def _prepare(self) -> None:
        self._parameters = {tool["function"]["name"]: list(parameters_of_schema(tool)) for tool in self._tools}
        for name in self._parameters:
            if name in RESERVED_TAGS:
                raise UserError(f"environment: a tool cannot be called {name!r} in the inline dialect")
        self._tags = (*self._parameters, "answer")
        self.stop = tuple(f"</{tag}>" for tag in self._tags)
        tags = [f"<{slash}{tag}>" for tag in (*self._parameters, *RESERVED_TAGS) for slash in ("", "/")]
        self._break_structure = breaker([*structural_tokens(self._tokenizer), *tags])
        self._encode_observation([message("tool", "")])
        self.prompt_ids([message("user", "question")])  # an unusable template is found before the engine starts

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokenise by the chat template, or as plain text where the model has none."""
        if self._tokenizer.chat_template:
            return self._encoder.whole(self._render(messages))
        text = "\n\n".join(message["content"] for message in messages) + "\n"
        return list(self._tokenizer.encode(text))

    def parse(self, text: str) -> Action:
        """Read the tag that closes first; an answer is no tool call."""
        start, end, tag = self._first_tag(text)
        if tag == "answer" or start < 0:
            return Action(text)
        inner = text[start + len(tag) + 2 : end].strip()
        try:
            return Action(text, (ToolCall(tag, self._arguments(tag, inner)),))
        except ValueError as error:
            return Action(text, error=f"The call of {tag} could not be read: {error}.")

    def find_calls(self, text: str) -> Sequence[Span]:
        """Return the span of the call, its tags included."""
        start, end, tag = self._first_tag(text)
        return () if tag == "answer" or start < 0 else ((start, end + len(f"</{tag}>")),)

    def _first_tag(self, text: str) -> tuple[int, int, str]:
        """Return where the tag that closes first opens and closes, and its name; -1 where it does not."""
        closed = [(end, tag) for tag in self._tags if (end := text.find(f"</{tag}>")) >= 0]
        end, tag = min(closed, default=(-1, "answer"))
        return text.rfind(f"<{tag}>", 0, max(end, 0)), end, tag

    def _arguments(self, name: str, inner: str) -> dict[str, Any]:
        parameters = self._parameters[name]
        return {parameters[0]: inner} if len(parameters) == 1 else json_object(inner or "{}")

    def observation_ids(self, messages: Sequence[Message], action_token_ids: TokenIds) -> list[int]:
        """Wrap the messages; what the turn ended with does not matter here."""
        return self._encode_observation([clean(m, self._break_structure, self._max_tokens) for m in messages])

    def _encode_observation(self, messages: list[Message]) -> list[int]:
        def encode(contents: list[str]) -> list[int]:
            wrapped = (_wrap(m["role"], content) for m, content in zip(messages, contents, strict=True))
            return self._encoder.behind("".join(wrapped))

        return fit(encode, [m["content"] for m in messages], self._max_tokens)


def _wrap(role: str, content: str) -> str:
    return f"\n\n<information>{content}</information>\n\n" if role == "tool" else f"\n{content}\n"
