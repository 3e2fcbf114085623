"""Messages -> token ids, and sampled text -> Action: how an agent's turns are written for the model.

`inline` is Search-R1's way: tags in one assistant turn. `chat` is the model's own chat template. Tokens in,
tokens out: both say what an observation *adds*, and no history is tokenised a second time. The text of tools
is untrusted, so strings in it that would be read as structure (special tokens, tags) are broken by a space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.templates import render
from treegrpo_cli.tags import RESERVED_TAGS, parameters_of_schema
from treegrpo_cli.types import Action, Message, TokenIds, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = Sequence[dict[str, Any]]

_CHARS_A_TOKEN = 32
"""An observation is first cut to so many characters a token: a bound on work, far above real text."""


class Dialect(Protocol):
    """How turns are written and read."""

    stop: tuple[str, ...]
    """Strings that end a turn, beside the model's end-of-turn token."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the prompt, up to where the policy's first turn starts."""
        ...

    def parse(self, text: str) -> Action:
        """Return the tool calls of a sampled turn."""
        ...

    def observation_ids(self, messages: Sequence[Message], action_token_ids: TokenIds) -> list[int]:
        """Return what `messages` add behind the sampled turn `action_token_ids`, up to the next turn's start.

        Contents are shortened, closing tags kept, so that no more than `max_observation_tokens` come back.
        """
        ...


def make_dialect(config: Config, tokenizer: PreTrainedTokenizerBase, tools: Tools) -> Dialect:
    """Return the dialect that the config names, for an environment with these tools.

    Raises:
        UserError: a chat template that is missing or cannot show tools; no room for a tool's result.
    """
    kind = InlineDialect if config.environment.dialect == "inline" else ChatDialect
    dialect = kind(tokenizer, tools, config.rollout.max_observation_tokens, config.model.chat_template_timeout_s)
    dialect.stop = tuple(dict.fromkeys([*dialect.stop, *config.environment.stop]))
    return dialect


class _Templated:
    """A tokenizer with its chat template, the tools, and the limits of what is written with them."""

    stop: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: Tools,
        max_observation_tokens: int,
        template_timeout_s: float = 5.0,
    ) -> None:
        self._tokenizer, self._tools, self._max_tokens = tokenizer, tools, max_observation_tokens
        self._template_timeout_s = template_timeout_s
        self._prepare()

    def _prepare(self) -> None:
        """Find out before the first rollout what cannot be written; raises UserError."""

    def _render(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        return render(self._tokenizer, messages, tools, timeout_s=self._template_timeout_s)


class InlineDialect(_Templated):
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
        self._break_structure = _breaker([*_structural_tokens(self._tokenizer), *tags])
        self._encode_observation([_message("tool", "")])
        self.prompt_ids(
            [_message("user", "question")]
        )  # a template that cannot be used is found before the engine starts

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokenise by the chat template, or as plain text where the model has none."""
        if self._tokenizer.chat_template:
            return _encode(self._tokenizer, self._render(messages))
        text = "\n\n".join(message["content"] for message in messages) + "\n"
        return list(self._tokenizer.encode(text))

    def parse(self, text: str) -> Action:
        """Read the tag that closes first; an answer is no tool call."""
        closed = [(end, tag) for tag in self._tags if (end := text.find(f"</{tag}>")) >= 0]
        end, tag = min(closed, default=(-1, "answer"))
        start = text.rfind(f"<{tag}>", 0, max(end, 0))
        if tag == "answer" or start < 0:
            return Action(text)
        inner = text[start + len(tag) + 2 : end].strip()
        try:
            return Action(text, (ToolCall(tag, self._arguments(tag, inner)),))
        except ValueError as error:
            return Action(text, error=f"The call of {tag} could not be read: {error}.")

    def _arguments(self, name: str, inner: str) -> dict[str, Any]:
        parameters = self._parameters[name]
        return {parameters[0]: inner} if len(parameters) == 1 else _json_object(inner or "{}")

    def observation_ids(self, messages: Sequence[Message], action_token_ids: TokenIds) -> list[int]:
        """Wrap the messages; what the turn ended with does not matter here."""
        return self._encode_observation([_clean(m, self._break_structure, self._max_tokens) for m in messages])

    def _encode_observation(self, messages: list[Message]) -> list[int]:
        def encode(contents: list[str]) -> list[int]:
            wrapped = (_wrap(m["role"], content) for m, content in zip(messages, contents, strict=True))
            return _encode(self._tokenizer, "".join(wrapped))

        return _fit(encode, [m["content"] for m in messages], self._max_tokens)


class ChatDialect(_Templated):
    """Tool calls and results as the model's chat template writes them."""

    def _prepare(self) -> None:
        if not self._tokenizer.chat_template:
            raise UserError("environment.dialect: the model has no chat template; use the inline dialect")
        self._break_structure = _breaker([*_structural_tokens(self._tokenizer), "<tool_call>", "</tool_call>"])
        self._check_template()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokenise by the chat template, with the tools where it shows them."""
        return _encode(self._tokenizer, self._render(messages, self._tools))

    def parse(self, text: str) -> Action:
        """Read `<tool_call>{json}</tool_call>` (Hermes, Qwen) or a turn that is one JSON call (Llama 3)."""
        spoken = text.rpartition("</think>")[2]
        try:
            return Action(text, tuple(_tool_call(call) for call in _written_calls(spoken)))
        except ValueError as error:
            return Action(text, error=f"The tool call could not be read: {error}.")

    def observation_ids(self, messages: Sequence[Message], action_token_ids: TokenIds) -> list[int]:
        """Return what the template writes behind a turn; the turn's end token only if it was not sampled."""
        cleaned = [_clean(message, self._break_structure, self._max_tokens) for message in messages]

        def encode(contents: list[str]) -> list[int]:
            filled = [{**m, "content": content} for m, content in zip(cleaned, contents, strict=True)]
            ids = _encode(self._tokenizer, self._difference(filled))
            return ids[1:] if action_token_ids and ids[:1] == list(action_token_ids[-1:]) else ids

        return _fit(encode, [m["content"] for m in cleaned], self._max_tokens)

    def _difference(self, messages: Sequence[Message]) -> str:
        """Return what the template writes behind the content of an assistant's turn that `messages` follow.

        The turn is a stand-in, because templates rewrite older turns (Qwen3 drops their thoughts) while the
        tokens that were sampled stay as they are.
        """
        conversation = [_message("user", "question"), _message("assistant", _STAND_IN), *messages]
        text = self._render(conversation)
        if _STAND_IN not in text:
            raise UserError("chat template: leaves out an assistant's turn that a tool message follows")
        return text.partition(_STAND_IN)[2]

    def _check_template(self) -> None:
        """Find out before the first rollout whether the template can show tools and their results."""
        question = [_message("user", "question")]
        plain = self._render(question)
        if self._tools and plain == self._render(question, self._tools):
            raise UserError("chat template: does not show tools to the model; use the inline dialect")
        role = "tool" if self._tools else "user"
        if _PROBE not in self._difference([_message(role, _PROBE)]):
            raise UserError(f"chat template: what a {role} message adds does not stand behind the assistant's turn")
        self.observation_ids([_message(role, "")], [])


_STAND_IN = "treegrpo-stand-in-turn"
_PROBE = "treegrpo-probe-result"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _wrap(role: str, content: str) -> str:
    return f"\n\n<information>{content}</information>\n\n" if role == "tool" else f"\n{content}\n"


def _written_calls(text: str) -> list[str]:
    """Return the JSON texts of a turn's calls."""
    if "<tool_call>" in text:
        calls = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
        if len(calls) < text.count("<tool_call>"):
            raise ValueError("<tool_call> is not closed")
        return calls
    bare = text.strip().removeprefix("<|python_tag|>").strip()
    return [bare] if bare.startswith("{") and '"name"' in bare else []


def _tool_call(text: str) -> ToolCall:
    call = _json_object(text)
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json_object(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("it needs a `name` and `arguments`, an object")
    return ToolCall(name, arguments)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("a JSON object is expected")
    return value


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _structural_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return special tokens, and added ones in brackets such as `</tool_response>`."""
    bracketed = [token for token in tokenizer.get_added_vocab() if re.fullmatch(r"[<\[].+[>\]]", token)]
    return [*tokenizer.all_special_tokens, *bracketed]


def _breaker(strings: Iterable[str]) -> Callable[[str], str]:
    """Return a function that puts a space behind the first character of each of these strings."""
    longest_first = sorted({s for s in strings if len(s) > 1}, key=len, reverse=True)
    if not longest_first:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(s) for s in longest_first))
    return lambda text: pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def _clean(message: Message, break_structure: Callable[[str], str], max_tokens: int) -> Message:
    """Bound the content, and break structure in what a tool said; the rest is the environment's own."""
    content = message["content"][: max_tokens * _CHARS_A_TOKEN]
    return {**message, "content": break_structure(content) if message["role"] == "tool" else content}


def _fit(encode: Callable[[list[str]], list[int]], contents: list[str], max_tokens: int) -> list[int]:
    """Return `encode(contents)`, each content cut to the greatest common length at which the limit is met.

    Raises:
        UserError: not even empty contents fit.
    """
    ids = encode(contents)
    if len(ids) <= max_tokens:
        return ids
    fitting = encode([""] * len(contents))
    if len(fitting) > max_tokens:
        raise UserError(
            f"rollout.max_observation_tokens: {max_tokens} tokens leave no room for a result, "
            f"whose wrapping takes {len(fitting)}"
        )
    low, high = 0, max(len(content) for content in contents)
    while high - low > 1:
        middle = (low + high) // 2
        ids = encode([content[:middle] for content in contents])
        low, high, fitting = (middle, high, ids) if len(ids) <= max_tokens else (low, middle, fitting)
    return fitting
