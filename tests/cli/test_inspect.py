"""Drawing, nesting and counting: what a tree looks like, whatever its text and depth."""

import json
import random
import tracemalloc
import unicodedata
from collections import Counter, defaultdict
from itertools import combinations, groupby
from typing import Any

import pytest
from rich.cells import cell_len
from treegrpo_cli.cli.show.as_json import nested_json
from treegrpo_cli.errors import UserError
from treegrpo_cli.trees.draw import draw_tree
from treegrpo_cli.trees.scoring import score
from treegrpo_cli.trees.summary import Summary
from treegrpo_cli.trees.summary_lines import lines_of_summary
from treegrpo_cli.trees.texts import plain, shorten
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.sample_trees import VECTOR_PARENTS, VECTOR_REWARDS, full_tree, nodes_of, tree, vector_trees


def record_of(fields: dict[str, Any]) -> TreeRecord:
    return TreeRecord.parse(json.dumps(fields))


def scored(nodes: list[dict[str, Any]], **fields: Any) -> TreeRecord:
    [record] = score([record_of(tree(nodes=nodes, **fields))], "parent", roots="tree")
    return record


def drawn(record: TreeRecord, width: int = 80) -> list[str]:
    return [line.plain.rstrip() for line in draw_tree(record, width)]


def text_nodes(texts: list[str], parents: list[int | None], rewards: list[float | None]) -> list[dict[str, Any]]:
    nodes = nodes_of(parents, rewards)
    return [node | {"text": text} for node, text in zip(nodes, texts, strict=True)]


def test_a_tree_is_drawn_as_a_tree_with_its_numbers_in_columns() -> None:
    texts = ["Which?", "a", "b", "b1"]
    record = scored(text_nodes(texts, [None, 0, 0, 2], [None, 1.0, None, 0.5]))
    assert drawn(record) == [
        "q · tree 0 ────────────────────────────────────────────────────────────── parent",
        "4 nodes · 2 leaves, 2 scored · mean reward 0.750",
        "                                                 depth  reward  value  advantage",
        "○ prompt Which?                                      0          0.750      0.000",
        "├─● done: a                                          1   1.000  1.000     +0.250",
        "└─○ b                                                1          0.500     -0.250",
        "  ● done: b1                                         2   0.500  0.500      0.000",
    ]


def test_status_observation_error_and_what_was_not_kept_are_shown() -> None:
    [record] = score([record_of(full_tree())], "parent")
    lines = drawn(record)
    shown = "\n".join(lines)
    assert lines[1] == "Which capital? äöü 首都"
    for part in (
        "truncated_turns, not kept",
        "error: ",
        "! retriever: no answer",
        "→ Doc 1(Title: Chad) N'Djamena",
    ):
        assert part in shown


def test_a_leaf_without_a_reward_shows_no_number() -> None:
    [record] = score([record_of(tree(nodes=nodes_of([None, 0, 0], [None, 1.0, None])))], "parent")
    assert drawn(record)[-1].split()[-3:] == ["·", "·", "·"]


def test_a_tree_without_text_shows_its_token_counts() -> None:
    tokens = {"token_ids": [7, 8, 9], "sampled": [[0, 2]], "logprobs": [-0.5, -0.25]}
    nodes = nodes_of([None, 0], [None, 1.0])
    nodes = [nodes[0] | {"token_ids": [1, 2]}, nodes[1] | tokens]
    lines = drawn(scored(nodes))
    assert "prompt 2 tokens" in lines[3]
    assert "2 sampled + 1 observed tokens" in lines[4]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "text", ["word " * 100, "日本の首都は" * 40, "x" * 500, "👩‍👩‍👧 é́ " * 50, "\u202e\x1b[31m[red]" * 60]
)
def test_no_text_breaks_the_columns(text: str, width: int) -> None:
    nodes = text_nodes([text] * 4, [None, 0, 0, 2], [None, 1.0, None, 0.0])
    nodes[2]["observation"] = text
    lines = drawn(scored(nodes, task={"question": text}), width)
    assert all(cell_len(line) <= width for line in lines)
    rows = [line for line in lines if line.endswith("00") and "scored" not in line]
    assert [cell_len(line) for line in rows] == [width] * 4


def test_text_is_shown_without_control_characters_and_never_as_markup() -> None:
    hostile = "[bold]a[/bold]\x1b[2J\x1b]0;title\x07\r\n\x00\u202eb\x9b31m"
    shown = plain(hostile)
    assert shown == "[bold]a[/bold]␛[2J␛]0;title␇ ␀<U+202E>b<U+009B>31m"
    nodes = text_nodes([hostile] * 2, [None, 0], [None, 1.0])
    lines = drawn(scored(nodes, prompt_id=hostile))
    assert not [c for line in lines for c in line if unicodedata.category(c).startswith("C")]
    assert any("[bold]a[/bold]" in line for line in lines)


def test_a_cut_text_keeps_both_ends() -> None:
    assert shorten("a" * 50 + "<answer>b</answer>", 25, tail=0.75).endswith("<answer>b</answer>")
    assert shorten("首都" * 10, 9, tail=0.5) == "首都…首都"
    assert shorten("short", 5) == "short"


def test_a_long_chain_is_folded_and_a_short_one_is_not() -> None:
    def chain(length: int) -> list[str]:
        parents = [None, *range(length)]
        return drawn(scored(nodes_of(parents, [None] * length + [1.0])))

    assert len(chain(30)) == 3 + 31
    folded = chain(100_000)
    assert "⋮ 99,985 more turns, each without a sibling" in folded
    assert len(folded) == 3 + 8 + 1 + 8


def test_a_chain_twice_as_long_takes_twice_the_memory() -> None:
    def peak(length: int) -> int:
        record = scored(nodes_of([None, *range(length)], [None] * length + [1.0]))
        tracemalloc.start()
        try:
            drawn(record)
            Summary().add_group([record])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(40_000) < 2.5 * peak(20_000) < 2.5 * 20_000 * 200


def test_a_tree_that_branches_at_every_turn_stays_within_its_columns() -> None:
    parents: list[int | None] = [None]
    for turn in range(300):
        parents += [2 * turn, 2 * turn]
    rewards = [None] + [1.0 if place % 2 else None for place in range(1, 600)] + [0.0]
    parents = [None if p is None else p for p in parents]
    lines = drawn(scored(nodes_of(parents, rewards)))
    assert len(lines) == 3 + 601
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[-1].startswith("…")
    assert "node 600" in lines[-1]


def test_nesting_puts_children_inside_and_keeps_everything_else() -> None:
    record = record_of(full_tree())
    nested = json.loads(nested_json(record))
    assert list(nested) == [name if name != "nodes" else "root" for name in record.fields]
    flat: dict[int, dict[str, Any]] = {}
    waiting = [nested["root"]]
    while waiting:
        node = waiting.pop()
        children = node.pop("children")
        assert [child["parent"] for child in children] == [node["id"]] * len(children)
        assert [child["id"] for child in children] == sorted(child["id"] for child in children)
        flat[node["id"]] = node
        waiting += children
    assert [flat[place] for place in range(len(flat))] == record.nodes


def test_nesting_goes_to_depth_200_and_no_deeper() -> None:
    def chain(depth: int) -> TreeRecord:
        return record_of(tree(nodes=nodes_of([None, *range(depth)], [None] * depth + [1.0])))

    assert nested_json(chain(200)).count(b'"children"') == 201
    with pytest.raises(UserError, match=r"201 deep.* 200"):
        nested_json(chain(201))


def test_a_summary_counts_what_the_published_trees_hold() -> None:
    summary = Summary()
    summary.add_group(score([record_of(fields) for fields in vector_trees()], "grpo", center="mean", scale="none"))
    found = summary.to_json()
    assert len(VECTOR_PARENTS) == len(VECTOR_REWARDS) == 10
    assert (found["num_prompts"], found["num_trees"], found["num_nodes"]) == (1, 2, 13)
    assert (found["num_leaves"], found["num_scored_leaves"], found["max_depth"]) == (8, 8, 3)
    assert found["reward"] == 0.5
    assert found["leaf_depth"] == (1 + 2 + 2 + 3 + 3 + 3 + 1 + 1) / 8
    assert found["children"] == (3 + 2 + 1 + 3 + 2) / 5
    assert found["num_branching_nodes"] == 4
    # Depth 1: A, B, C, D, E with values 1/2, 2/3, 0, 0, 1 are siblings: 10 pairs, of which only C = D.
    # Depth 2: A1 and A2; B1 is an only child. Depth 3: B1a = B1b and B1c.
    pairs = [(d["num_comparisons"], d["num_decisive_comparisons"]) for d in found["depths"]]
    assert pairs == [(0, 0), (10, 9), (1, 1), (3, 2)]
    assert [d["reward"] for d in found["depths"]] == pytest.approx([None, 1 / 3, 0.5, 2 / 3])
    assert found["depths"][3]["abs_advantage"] == pytest.approx(0.5)
    assert all(cell_len(line.plain) <= 80 for line in lines_of_summary(summary))
    # |values| differ by 1/6, 1/2, 1/2, 1/2; 2/3, 2/3, 1/3; 0, 1; 1 at depth 1; by 1 below A; by 1, 1, 0 below B1.
    gaps = [(1 / 6 + 3 / 2 + 5 / 3 + 2) / 10, 1, 2 / 3]
    assert [d["gap"] for d in found["depths"]] == [None, *map(pytest.approx, gaps)]
    sizes = [1 / 6 + 3 * 0.5, 1 + 1 / 6, 1.5]  # A 0, B 1/6, C D E .5; A1, A2 .5, B1 1/6; three times .5
    shares = [d["abs_advantage_share"] for d in found["depths"]]
    assert shares == pytest.approx([0, *(size / sum(sizes) for size in sizes)])
    assert found["positions"] == [], "these trees have no tokens"


def test_a_prompt_whose_rewards_are_equal_is_counted_as_dead() -> None:
    summary = Summary()
    summary.add_group(score([record_of(tree("a", nodes=nodes_of([None, 0, 0], [None, 1.0, 1.0])))], "grpo"))
    summary.add_group(score([record_of(tree("b"))], "grpo"))
    assert summary.to_json()["num_dead_prompts"] == 1


def test_a_summary_counts_pairs_of_siblings_depths_and_statuses_as_one_by_one() -> None:
    draw = random.Random(5)
    trees = []
    for prompt in range(20):
        for tree_id in range(draw.randint(1, 3)):
            parents = [None, *(draw.randrange(place) for place in range(1, draw.randint(2, 15)))]
            leaves = set(range(1, len(parents))) - set(parents)
            rewards = [draw.choice([None, 0.0, 0.5, 1.0]) if place in leaves else None for place in range(len(parents))]
            nodes = nodes_of(parents, rewards)
            for leaf in leaves:
                nodes[leaf] |= {"status": "truncated_turns"} if draw.random() < 0.3 else {}
            trees.append(record_of(tree(f"p{prompt}", tree_id, nodes)))
    summary, groups = Summary(), [list(group) for _, group in groupby(trees, key=lambda record: record.prompt_id)]
    pairs, nodes_at, status, sums = Counter(), Counter(), Counter(), Counter()
    for group in groups:
        scored_group = score(group, "parent")
        summary.add_group(scored_group)
        below = defaultdict(list)
        for record in scored_group:
            inner = {node["parent"] for node in record.nodes}
            for node in record.nodes:
                nodes_at[node["depth"]] += 1
                if node["id"] not in inner:
                    status[node.get("status", "done")] += 1
                if node["parent"] is not None and node["value"] is not None:
                    below[(record.tree_id if node["parent"] else -1, node["parent"])].append(node)
                    sums[node["depth"]] += abs(node["advantage"])
        for siblings in below.values():
            for one, other in combinations(siblings, 2):
                pairs[one["depth"], abs(one["value"] - other["value"]) > 1e-8] += 1
    found = summary.to_json()
    assert found["status"] == dict(status)
    for depth, level in enumerate(found["depths"]):
        assert level["num_nodes"] == nodes_at[depth]
        assert level["num_comparisons"] == pairs[depth, True] + pairs[depth, False]
        assert level["num_decisive_comparisons"] == pairs[depth, True]
    at_one = found["depths"][1]
    first_turns = [node for record in score(trees, "parent") for node in record.nodes if node["depth"] == 1]
    counted = sum(node["advantage"] is not None for node in first_turns)
    assert at_one["abs_advantage"] == pytest.approx(sums[1] / counted)
    assert found["max_depth"] == max(nodes_at)


def test_depths_beyond_200_are_one_line_of_a_summary() -> None:
    summary = Summary()
    parents = [None, *range(1000)]
    summary.add_group([scored(nodes_of(parents, [None] * 1000 + [1.0]))])
    found = summary.to_json()
    assert found["max_depth"] == 1000
    assert len(found["depths"]) == 200
    assert found["deeper"]["num_nodes"] == 801
    lines = [line.plain for line in lines_of_summary(summary)]
    assert lines[-1].startswith(" 200+       801")
    assert lines[-2].startswith("  199         1")
