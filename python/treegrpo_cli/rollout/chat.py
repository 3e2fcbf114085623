"""Messages -> token ids by the model's own chat template, and sampled text -> Action by a reader of its tool calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.call_readers import Reader, choose_reader
from treegrpo_cli.rollout.call_spans import FINDERS, Span
from treegrpo_cli.rollout.conversations import Conversations
from treegrpo_cli.rollout.example_calls import example_calls
from treegrpo_cli.rollout.own_readers import read_json
from treegrpo_cli.rollout.writing import Templated, breaker, clean, fit, message, structural_tokens
from treegrpo_cli.types import Action, Message, TokenIds

KEPT = (
    "trees keep every token as it was sampled, so a server that writes the conversation anew shows the model another "
    "context"
)
MAX_NAME_CHARS = 200
NAMES = ("name", "tool_call_id")


class ChatDialect(Templated):
    """Tool calls and results as the model's chat template writes them."""

    def _prepare(self) -> None:
        if not self._tokenizer.chat_template:
            raise UserError("environment.dialect: the model has no chat template; use the inline dialect")
        ends = [self._tokenizer.decode([end], skip_special_tokens=False) for end in sorted(self._end_ids)]
        ends = [end for end in ends if end]
        self._break_structure = breaker([*structural_tokens(self._tokenizer), *ends, "<tool_call>", "</tool_call>"])
        plain = self._render([message("user", "question")])
        if self._tools and plain == self._render([message("user", "question")], self._tools):
            raise UserError("chat template: does not show tools to the model; use the inline dialect")
        self._conversations = Conversations(self._render, self._tools, ends)
        self._closing_ids = self._find_closing_ids()
        self._choose_reader()
        self.observation_ids([message("tool" if self._tools else "user", "")], [])
        self.notices = tuple(self._find_notices())

    def _find_closing_ids(self) -> frozenset[int]:
        """Return tokens that close a turn of text; none where the next turn's first token is what ends one (GLM)."""
        last = self._encoder.behind(self._conversations.last_turn_end())
        followed = self._encoder.behind(self._conversations.user_message())
        marks = {*self._tokenizer.all_special_ids, *self._tokenizer.get_added_vocab().values()}
        return frozenset({*last[:1], *followed[:1]} & marks if last else ())

    def _find_notices(self) -> Iterator[str]:
        if self._closing_ids and not self._closing_ids & self._end_ids:
            [closing, *_] = self._tokenizer.convert_ids_to_tokens(sorted(self._closing_ids))
            yield f"chat template: closes a turn by {closing}, at which the model does not stop; its turns may run on"
        if self._tools and self._conversations.loses_words():
            yield f"chat template: leaves out what a turn says beside its tool calls; {KEPT}"
        elif self._tools and self._conversations.loses_thoughts("tool"):
            yield f"chat template: leaves thoughts out of earlier turns; {KEPT}"
            return
        if self._conversations.loses_thoughts("user"):
            yield f"chat template: leaves thoughts out of earlier turns once a user's message follows; {KEPT}"

    def _choose_reader(self) -> None:
        """Take the reader that reads back what the template writes for calls of these tools."""
        self._read: Reader = read_json
        if self._tools:
            examples, prompt = example_calls(self._conversations, self._tools), self._conversations.prompt()
            self.reader_name, self._read = choose_reader(
                self._tool_parser, self._tokenizer, self._tools, examples, prompt
            )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Tokenise by the chat template, with the tools where it shows them."""
        return self._encoder.whole(self._render(messages, self._tools))

    def parse(self, text: str) -> Action:
        """Read the turn's tool calls, by the reader that reads what the chat template writes."""
        try:
            return Action(text, tuple(self._read(text)))
        except ValueError as error:
            return Action(text, error=f"The tool call could not be read: {error}.")

    def find_calls(self, text: str) -> Sequence[Span] | None:
        """Return the spans of the turn's calls, marks included; None where somebody else's parser reads them."""
        if not self._tools:
            return ()
        find = FINDERS.get(self.reader_name)
        return None if find is None else find(text)

    def observation_ids(self, messages: Sequence[Message], action_token_ids: TokenIds) -> list[int]:
        """Return what the template writes behind a turn; the turn's end token only if none was sampled."""
        cleaned = [self._clean(message) for message in messages]
        whole, write = self._conversations.behind(cleaned)

        def encode(contents: list[str]) -> list[int]:
            filled = [{**m, "content": content} for m, content in zip(cleaned, contents, strict=True)]
            ids = self._encoder.behind(whole if filled == cleaned else write(filled))
            return ids[1:] if self._ends_twice(action_token_ids, ids) else ids

        return fit(encode, [m["content"] for m in cleaned], self._max_tokens)

    def _clean(self, message: Message) -> Message:
        """Bound and break what came from outside: also a tool's name and id, which the policy wrote."""
        written = {key: self._break_structure(message[key])[:MAX_NAME_CHARS] for key in NAMES if message.get(key)}
        return {**clean(message, self._break_structure, self._max_tokens), **written}

    def _ends_twice(self, turn: TokenIds, ids: Sequence[int]) -> bool:
        """Whether `ids` start with the token that ended the turn, or with another that only closes a turn.

        Llama 3.1 ends a turn of calls with `<|eom_id|>` where the template writes `<|eot_id|>`.
        """
        if not len(turn) or not ids:
            return False
        last, first = int(turn[-1]), ids[0]
        return last in self._end_ids | self._closing_ids and (first == last or first in self._closing_ids)
