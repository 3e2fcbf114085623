"""What a notebook shows of trees, forests and scores: whole, bounded, and never somebody else's markup."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from treegrpo_cli import TreeRecord, Trees, score
from treegrpo_cli.trees.forest import to_forest
from treegrpo_cli.trees.markup import ABOVE, BELOW, NEITHER

from tests.sample_trees import full_tree, nodes_of, tree, vector_trees

TAGS = {"div", "strong", "em", "code", "table", "thead", "tbody", "tr", "th", "td", "span", "details", "summary"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "\"' style=x onmouseover=alert(1) <b",
    "<!-- <style>*{display:none}</style>",
    "&lt;script&gt; \u202e\x1b[31m\x00 \ud800 ]]> <svg/onload=alert(1)>",
]


class Whitelist(HTMLParser):
    """Refuses what no drawing of ours has, and counts what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= {"style"}, attrs
        assert all(re.fullmatch(r"[\w:;#., -]*", value or "") and "url" not in str(value) for _, value in attrs)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def words(html: str) -> str:
    """The drawing's text; fails where it holds anything but the elements and styles that we use."""
    parser = Whitelist()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert html.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", html)
    return " ".join(parser.words)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    nodes: list[dict[str, Any]] = nodes_of([None, 0, 1], [None, None, 1.0])
    for node in nodes:
        node |= {"text": text, "observation": text * 100}
    nodes[2] |= {"error": text}
    record = TreeRecord(prompt_id=text, tree_id=0, nodes=nodes, task={"question": text})
    own = record.replaced(scoring={"estimator": text, "options": {}})
    shown = [words(drawn._repr_html_()) for drawn in (record, own, Trees([record, own]))]
    first = re.sub(r"[\x00-\x1f\u202e\ud800]|\[31m", "", text)[:5]
    assert all(first in drawn for drawn in shown)


def test_a_tree_shows_its_nodes_in_depth_first_order_with_their_numbers() -> None:
    drawn = score(vector_trees(), "parent")[0]._repr_html_()
    shown = words(drawn)
    lines = [re.sub(r"\s+", " ", line) for line in re.findall(r"[│├└─ ]*(?<![\d.])\b\d\b(?=</span>)", drawn)]
    assert [int(line[-1]) for line in lines] == [0, 1, 4, 5, 2, 6, 7, 8, 9, 3]
    assert all(
        part in shown
        for part in ("vectors · tree 0", "parent", "10 nodes", "6 leaves, 6 scored", "▲ +0.167", "▼ -0.500")
    )


def test_an_unscored_tree_has_no_column_of_advantages() -> None:
    shown = words(TreeRecord.from_dict(full_tree())._repr_html_())
    assert "advantage" not in shown
    assert all(part in shown for part in ("Which capital? äöü 首都", "retriever: no answer", "(not kept)", "→ Doc 1"))


def test_a_large_tree_is_cut_and_says_how_to_see_all(tmp_path: Any) -> None:
    parents = [None, *range(600)]
    record = TreeRecord.from_dict(tree("it's 'q'", nodes=nodes_of(parents, [None] * 600 + [1.0])))
    html = record._repr_html_()
    assert html.count("<tr>") == 201
    assert "401 more: treegrpo inspect-tree FILE --prompt-id" in re.sub(r"\s+", " ", words(html))
    assert len(html) < 200_000
    scores = to_forest([record]).score("grpo")
    assert "401 more: to_pandas() has all" in re.sub(r"\s+", " ", words(scores._repr_html_()))
    many = Trees([record] * 300)
    assert many._repr_html_().count("<tr>") == 201


def test_a_forest_is_shown_by_tree_and_scores_by_node() -> None:
    forest = to_forest([TreeRecord.from_dict(fields) for fields in vector_trees()])
    shown = words(forest._repr_html_()).split()
    assert " ".join(shown[:6]) == "Forest(2 trees, 13 nodes, 0 tokens)"
    assert shown[-7:] == ["1", "0", "3", "2", "2", "0", "0.500"]
    scores = forest.score([{"estimator": "grpo"}, {"estimator": "parent", "weight": 0.5}])
    assert "grpo + 0.5 parent · 13 nodes" in words(scores._repr_html_())
    assert words(to_forest([])._repr_html_())
    assert words(to_forest([]).score("grpo")._repr_html_())
    assert words(Trees()._repr_html_())


def test_plain_names_are_short_and_say_what_there_is() -> None:
    trees = score(vector_trees(), "sibling")
    forest = to_forest(trees)
    assert repr(trees) == "Trees(2 trees of 1 prompt, 13 nodes)"
    assert repr(trees[0]) == "TreeRecord(prompt_id='vectors', tree_id=0, 10 nodes)"
    assert repr(forest) == "Forest(2 trees, 13 nodes, 0 tokens)"
    assert repr(forest.score("sibling")) == "Scores(sibling, 13 nodes)"


@pytest.mark.parametrize(("background", "letters"), [*ABOVE, *BELOW, NEITHER])
def test_numbers_read_on_their_own_background(background: str, letters: str) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(background), luminance(letters)])
    assert (light + 0.05) / (dark + 0.05) >= 4.5
