"""Siblings side by side, and the colours of tokens, in a browser."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from treegrpo_cli.cli.inspect import inspect

from tests.page.browser import Watch
from tests.page.hostile import page_of
from tests.sample_trees import nodes_of, tree

ROOT = Path(__file__).parents[2]

TURNS = ([4, 5, 6, 7], [4, 5, 9, 7], [4, 5, 6, 7], [4, 5, 6], [8])
"""The first and the third are the same; the fourth ends where they go on; the last has nothing in common."""


def family(turns: Sequence[Sequence[int]], rewards: Sequence[float], **fields: Any) -> dict[str, Any]:
    """A tree whose root's only child has a child for every turn."""
    nodes = nodes_of([None, 0, *[1] * len(turns)], [None, None, *rewards])
    for node, ids in zip(nodes, ([1, 2], [3], *turns), strict=True):
        node |= {"token_ids": list(ids), "text": " ".join(f"w{token}" for token in ids)}
        if node["id"]:
            node |= {"sampled": [[0, len(ids)]], "logprobs": [-0.5] * len(ids)}
    return tree("q", 0, nodes, **fields)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


def slow_alignment(turns: Sequence[Sequence[int]]) -> tuple[int, list[tuple[int, int]]]:
    """Of all turns what they begin with; of each the first that it repeats, or how far it goes along with another."""
    first = [next(k for k, other in enumerate(turns) if list(other) == list(own)) for own in turns]
    parts = []
    for k, own in enumerate(turns):
        along = [shared(own, other) for other in turns if list(other) != list(own)]
        parts.append((first[k], -1) if first[k] < k else (-1, max(along, default=0)))
    return min(shared(own, other) for own in turns for other in turns), parts


def test_siblings_are_aligned_as_the_slow_definition_says(watch: Watch, tmp_path: Path) -> None:
    draw = random.Random(0)
    families = [TURNS] + [[[draw.randrange(3) for _ in range(draw.randint(1, 6))] for _ in range(7)] for _ in range(30)]
    trees = [family(turns, [1.0] * len(turns)) | {"prompt_id": f"q{k}"} for k, turns in enumerate(families)]
    page = watch.open(page_of(tmp_path, trees))
    found = page.evaluate(
        """() => treegrpo.trees.map((tree) => {
          const { common, parts } = treegrpo.aligned(treegrpo.siblingsUnder(tree.start + 1));
          return [common, parts.map((part) => [part.repeats, part.repeats >= 0 ? -1 : part.at])];
        })"""
    )
    for turns, (common, parts) in zip(families, found, strict=True):
        assert (common, [tuple(part) for part in parts]) == slow_alignment(turns)


def test_a_branching_point_tells_what_each_turn_was_worth_and_on_how_many_leaves(watch: Watch, tmp_path: Path) -> None:
    page = watch.open(page_of(tmp_path, [family(TURNS[:3], [1.0, 0.0, 0.5])]))
    pane = page.locator("#siblings")
    assert pane.locator("h2").inner_text() == "3 siblings after node 1"
    lesson = pane.locator(".lesson").inner_text()
    assert lesson == "#6 (siblings 1, 3) worth 0.750 on 2 leaves; #9 (sibling 2) worth 0.000 on 1 leaf; gap 0.750"
    heads = pane.locator(".sibling-head").all_inner_texts()
    assert ["repeats sibling 1" in head for head in heads] == [False, False, True]
    assert "2 times the same: together 0.750 on 2 leaves" in heads[0]
    assert "all begin with the same 2 tokens" in pane.locator(".prefix").inner_text()
    assert pane.locator(".parting-token").all_inner_texts() == ["#6", "#9"]


def test_without_tokens_the_words_are_aligned(watch: Watch, tmp_path: Path) -> None:
    nodes = nodes_of([None, 0, 0], [None, 1.0, 0.0])
    nodes[1]["text"], nodes[2]["text"] = "look for Chad", "look for Mali"
    page = watch.open(page_of(tmp_path, [tree("q", 0, nodes)]))
    assert [text.strip() for text in page.locator(".parting-token").all_inner_texts()] == ["Chad", "Mali"]
    assert "look for" in page.locator("#siblings .prefix").inner_text()


def test_the_same_turn_drawn_again_is_said_to_teach_nothing_itself(watch: Watch, tmp_path: Path) -> None:
    page = watch.open(page_of(tmp_path, [family([[4, 5], [4, 5]], [1.0, 0.0])]))
    said = page.locator("#siblings .lesson").inner_text()
    assert said == "the same turn 2 times, worth 0.500 on 2 leaves: what differs came later"


def test_tokens_are_coloured_by_advantage_or_by_log_probability(watch: Watch, tmp_path: Path) -> None:
    fields = family([[4, 5, 6], [7]], [1.0, 0.0])
    fields["nodes"][2] |= {"sampled": [[0, 2]], "logprobs": [-1e-6, -3.0]}
    page = watch.open(page_of(tmp_path, [fields]))
    page.evaluate("() => treegrpo.select({ node: 2 })")
    classes = "(tokens) => tokens.map((token) => token.className.replace(' id', ''))"
    tokens = page.locator("#node .token")
    assert tokens.evaluate_all(classes) == ["token tone p5", "token tone p5", "token masked"]
    page.get_by_role("button", name="log-probability").click()
    assert tokens.evaluate_all(classes) == ["token tone s0", "token tone s5", "token masked"]
    tokens.nth(1).focus()
    tip = page.locator("#token-tip")
    assert tip.inner_text() == "token 5 · log-probability −3.000 (5.0%) · advantage +0.500"
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() == "token 6 · masked: not sampled, not trained"


def test_another_estimator_scores_rows_and_siblings_again(watch: Watch, tmp_path: Path) -> None:
    page = watch.open(
        page_of(tmp_path, [family([[4], [5]], [1.0, 0.0]), family([[6], [7]], [1.0, 1.0]) | {"tree_id": 1}])
    )
    cell = page.locator("#tree-rows [data-node='3'] .cell.advantage")
    assert cell.inner_text().split() == ["▼", "−0.500"]
    page.get_by_label("scored by").select_option(label="grpo")
    assert cell.inner_text().split() == ["▼", "−1.500"]
    page.evaluate("() => treegrpo.select({ node: 3 })")
    assert "−1.500" in page.locator("#siblings .sibling-head.chosen").inner_text()


def test_the_shipped_example_opens_at_its_prompts_and_steps_through_its_branching_points(
    watch: Watch, tmp_path: Path
) -> None:
    inspect(
        [ROOT / "examples" / "trees.jsonl"],
        html=tmp_path / "page.html",
        tokenizer=ROOT / "examples" / "geography",
    )
    page = watch.open(tmp_path / "page.html")
    page.locator("#prompt-rows .row", has_text="Ireland").click()
    lesson = page.locator("#siblings .lesson")
    assert lesson.inner_text().startswith("353 (siblings 1, 3) worth 1.000 on 2 leaves; 51")
    page.get_by_role("button", name="Branching point with the next smaller gap").click()
    assert lesson.inner_text().startswith("the same turn ")
