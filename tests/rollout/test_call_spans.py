"""Where the tool calls of a turn stand: in its text, in its tokens, in a tree, and who cannot say."""

import asyncio
import random
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout import token_places, world
from treegrpo_cli.rollout.call_spans import harmony_spans, json_spans, tokens_of
from treegrpo_cli.rollout.collect import collect
from treegrpo_cli.rollout.dialects import InlineDialect
from treegrpo_cli.rollout.forest import join
from treegrpo_cli.rollout.forest import score as score_in_training
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.rollout.records import tree_record
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.rollout.world import World
from treegrpo_cli.trees.scoring import score
from treegrpo_cli.types import Task

from tests.fakes import HashSampler
from tests.tiny import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
CALL = '{"name": "search", "arguments": {"query": "x"}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"Well. <tool_call>\n{CALL}\n</tool_call> So.", [f"<tool_call>\n{CALL}\n</tool_call>"]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [f"<tool_call>{CALL}</tool_call>"] * 2),
        (f"<think><tool_call>no</think> <tool_call>{CALL}</tool_call>", [f"<tool_call>{CALL}</tool_call>"]),
        (f"say <tool_call>{CALL[:9]}", [f"<tool_call>{CALL[:9]}"]),
        (f" {CALL} ", [CALL]),
        (f"[TOOL_CALLS] [{CALL}]", [f"[TOOL_CALLS] [{CALL}]"]),
        (f"First\n```json\n{CALL}\n```\nand ```\nx = 1\n```", [f"```json\n{CALL}\n```"]),
        ('{"capital": "Lisbon"}', []),
        ("Lisbon", []),
        ("", []),
    ],
)
def test_a_call_written_in_json_stands_with_its_marks(text: str, calls: list[str]) -> None:
    assert [text[start:end] for start, end in json_spans(text)] == calls


def test_a_call_of_gpt_oss_is_a_message_to_a_function() -> None:
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>"
    call = "assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    text = thought + call
    assert [text[start:end] for start, end in harmony_spans(text)] == [call]


@pytest.mark.parametrize("text", ["say <search>käse 🧀🧀</search> now", "<search>x</search>", "é🧀<search>🧀</search>"])
def test_the_tokens_of_a_call_are_those_that_hold_its_characters(text: str) -> None:
    start, end = text.index("<search>"), text.index("</search>") + len("</search>")
    token_ids = TOKENIZER.encode(text, add_special_tokens=False)
    mask = tokens_of(TOKENIZER, token_ids, [(start, end)])
    before, inside = (int(x) for x in (mask.argmax(), mask.sum()))
    assert mask[before : before + inside].all()
    decoded = [
        TOKENIZER.decode(token_ids[first:last])
        for first, last in ((before, before + inside), (before + 1, before + inside), (before, before + inside - 1))
    ]
    assert text[start:end] in decoded[0]
    assert all(text[start:end] not in short for short in decoded[1:]), "a token too many"
    assert not tokens_of(TOKENIZER, token_ids, []).any()


@pytest.mark.parametrize("places", ["summed", "searched"])
def test_wherever_a_span_stands_its_tokens_are_those_behind_which_it_begins_and_ends(
    places: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if places == "searched":
        monkeypatch.setattr(token_places, "_sizes_of", lambda tokenizer: None)
    else:
        monkeypatch.setattr(token_places, "SearchedPlaces", None)
    draw = random.Random(0)
    words = ["a", "käse", "🧀🧀", " ", "the capital of ", "<search>", "x" * 40, "<|im_end|>"]
    text = "".join(draw.choices(words, k=60))
    token_ids = TOKENIZER.encode(text, add_special_tokens=False)
    prefixes = [TOKENIZER.decode(token_ids[:num]) for num in range(1, len(token_ids))]
    ends = [*(len(prefix.rstrip("\N{REPLACEMENT CHARACTER}")) for prefix in prefixes), len(text)]
    for _ in range(200):
        start, end = sorted(draw.sample(range(len(text) + 1), 2))
        first = next(token for token, there in enumerate(ends) if there > start)
        last = next(token for token, there in enumerate(ends) if there >= end)
        mask = tokens_of(TOKENIZER, token_ids, [(start, end)])
        assert mask.nonzero()[0].tolist() == list(range(first, last + 1))
    assert not tokens_of(TOKENIZER, token_ids[:5], [(len(text), len(text) + 1)]).any(), "behind all tokens"


@pytest.mark.parametrize(
    "vocabulary", [{"\u2581a": 0, "<0x0A>": 1}, {"##a": 0, "ä": 1, "中": 2}], ids=["pieces", "words"]
)
def test_only_the_tokens_of_byte_level_bpe_are_summed(vocabulary: dict[str, int]) -> None:
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    )
    assert token_places._sizes_of(other) is None
    sizes = token_places._sizes_of(TOKENIZER)
    assert sizes is not None
    assert len(sizes) == len(TOKENIZER)


def test_a_turn_that_does_not_decode_to_the_bytes_of_its_tokens_is_searched() -> None:
    [first, *_] = TOKENIZER.encode("🧀", add_special_tokens=False)
    broken = [
        *TOKENIZER.encode("a", add_special_tokens=False),
        first,
        *TOKENIZER.encode("bc", add_special_tokens=False),
    ]
    assert isinstance(token_places.places_of(TOKENIZER, broken), token_places.SearchedPlaces)
    text = TOKENIZER.decode(broken)
    assert tokens_of(TOKENIZER, broken, [(text.index("b"), len(text))]).tolist() == [False, False, True, True]


class Asked(HashSampler):
    """Thinks before it searches."""

    async def sample(self, *given: Any) -> Any:
        completion = await super().sample(*given)
        text = f"hm {completion.text}"
        token_ids = TOKENIZER.encode(text, add_special_tokens=False)
        return type(completion)(token_ids, [-0.5] * len(token_ids), text, "stop")


def masked(**environment: Any) -> Any:
    terms = [{"estimator": "grpo"}, {"estimator": "parent", "mask": "tool-calls"}]
    return make_config({"environment": environment, "advantage": {"terms": terms}, "rollout": {"max_turns": 3}})


def test_a_tree_keeps_the_tool_calls_and_its_file_is_scored_as_in_training(tmp_path: Any) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": 0, "contents": "Lisbon\\nLisbon is the capital of Portugal."}')
    config = masked(name="search", options={"corpus": str(tmp_path / "corpus.jsonl"), "topk": 1})

    async def grow() -> list[Any]:
        player = Player(World(config, TOKENIZER), Asked(TOKENIZER), config)
        prompts = [Prompt(i, f"p{i}", Task(f"Which town {i}?", "lisbon")) for i in range(4)]
        return [tree async for grown in collect(player, prompts, 2) for tree in grown.trees]

    trees = asyncio.run(grow())
    records = [tree_record(tree) for tree in trees]
    calls = []
    for node in (node for record in records for node in record.nodes[1:]):
        spoken = [TOKENIZER.decode(node["token_ids"][first:last]) for first, last in node["tool_call_spans"]]
        calls += spoken
        assert len(spoken) == ("<search>" in node["text"])
        assert all(call.strip() == node["text"].removeprefix("hm ") for call in spoken)
    assert calls
    scores = score_in_training(join(trees), trees, config.advantage)
    assert scores.unmasked_advantage is not None
    again = [node for tree in score(records, terms=config.advantage.score_terms) for node in tree.nodes]
    assert [node["advantage"] for node in again] == pytest.approx(scores.advantage.tolist(), nan_ok=True)
    assert [node["unmasked_advantage"] for node in again] == pytest.approx(scores.unmasked_advantage.tolist())


def test_a_mask_is_refused_where_nobody_says_where_calls_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(InlineDialect):
        reader_name = "vLLM's hermes"

        def find_calls(self, text: str) -> None:  # type: ignore[override]
            return None

    dialect = Silent(TOKENIZER, (), 100, 5.0, end_ids=(), tool_parser="auto")
    monkeypatch.setattr(world, "make_dialect", lambda *_: dialect)
    with pytest.raises(UserError, match=r"^advantage\.terms: mask tool-calls: vLLM's hermes does not say where .*$"):
        World(masked(name="calculator"), TOKENIZER)
    World(make_config({"environment": {"name": "calculator"}}), TOKENIZER)
