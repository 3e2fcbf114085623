"""What the page holds is what the file says, and what the definitions of the estimators give."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.cli.inspect import inspect

from tests.page.hostile import hostile_trees, page_of
from tests.page.reading import block, read_page, unpacked
from tests.sample_trees import full_tree, nodes_of, tree, vector_trees

PARENT = [0, 0, 1 / 6, -0.5, 0.5, -0.5, 0, 1 / 3, 1 / 3, -2 / 3]
"""`parent` on the first tree of the published test vectors, r A B C A1 A2 B1 B1a B1b B1c."""


def scoring(page: Path, label: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [each for each in block(page, "index")["scorings"][1:] if each["label"] == label]
    return found[0]


def test_advantages_and_values_of_every_estimator_are_those_of_its_definition(tmp_path: Path) -> None:
    page = page_of(tmp_path, vector_trees())
    columns = scoring(page, "parent")["columns"]
    assert unpacked(columns["advantage"], "d")[:10] == pytest.approx(PARENT)
    assert unpacked(columns["advantage"], "d")[10:] == pytest.approx([0, -0.5, 0.5])
    assert unpacked(columns["value"], "d")[:4] == pytest.approx([0.5, 0.5, 2 / 3, 0])
    grpo = unpacked(scoring(page, "grpo")["columns"]["advantage"], "d")
    assert grpo[3] == pytest.approx(-0.5 / (0.5345224838 + 1e-6), rel=1e-6)
    assert {each["label"] for each in block(page, "index")["scorings"]} >= {"grpo", "tree-grpo", "sibling", "depth"}


def test_the_first_scoring_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    page = page_of(tmp_path, vector_trees(), estimator="sibling", options={"center": "loo", "scale": "none"})
    first = block(page, "index")["scorings"][0]
    assert (first["name"], first["label"]) == (None, "sibling")
    assert json.loads(first["options"])["options"]["center"] == "loo"
    assert unpacked(first["columns"]["advantage"], "d")[4:6] == pytest.approx([1, -1])


def test_an_estimator_that_cannot_score_the_file_is_listed_with_its_reason(tmp_path: Path) -> None:
    index = block(page_of(tmp_path, vector_trees()), "index")
    refused = {each["name"]: each["reason"] for each in index["refused"]}
    assert set(refused) == {"anchor", "causal", "state-loo"}
    assert "token_ids" in refused["anchor"]
    assert not any("\n" in reason or "trees.jsonl" in reason for reason in refused.values())
    assert set(refused).isdisjoint(each["label"] for each in index["scorings"])


def test_the_columns_of_nodes_are_those_of_the_file(tmp_path: Path) -> None:
    fields = full_tree()
    nodes = fields["nodes"]
    index = block(page_of(tmp_path, [fields]), "index")["nodes"]
    assert unpacked(index["parent"], "i") == [-1, *(node["parent"] for node in nodes[1:])]
    for name in ("reward", "entropy", "confidence"):
        assert unpacked(index[name], "d") == [node.get(name) for node in nodes]
    assert unpacked(index["policy_version"], "i") == [node.get("policy_version", -1) for node in nodes]
    statuses = [index["statuses"][code] for code in base64.b64decode(index["status"])]
    assert statuses[:3] == ["open", "open", "done"]


def test_tokens_carry_their_mask_and_their_logprobs(tmp_path: Path) -> None:
    fields = full_tree()
    page = page_of(tmp_path, [fields])
    tokens = block(page, "tree-0")
    start, ids = unpacked(tokens["token_start"], "i"), unpacked(tokens["token_ids"], "I")
    flags, logprobs = base64.b64decode(tokens["flags"]), unpacked(tokens["logprobs"], "f")
    for node, first, end in zip(fields["nodes"], start, start[1:], strict=False):
        assert ids[first:end] == node.get("token_ids", [])
        sampled = [any(a <= k < b for a, b in node.get("sampled", [])) for k in range(end - first)]
        assert [bool(flag & 1) for flag in flags[first:end]] == sampled
        known = [logprob for logprob in logprobs[first:end] if logprob is not None]
        assert known == pytest.approx(node.get("logprobs", []))


def test_the_same_trees_give_the_same_bytes(tmp_path: Path) -> None:
    first = page_of(tmp_path, hostile_trees()).read_bytes()
    assert page_of(tmp_path, hostile_trees()).read_bytes() == first


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    page = read_page(page_of(tmp_path, hostile_trees()))

    def digest(name: str) -> str:
        return base64.b64encode(hashlib.sha256(page.blocks[name].encode()).digest()).decode()

    assert page.policy == (
        f"default-src 'none'; script-src 'sha256-{digest('script')}'; style-src 'sha256-{digest('style')}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_no_block_of_data_holds_a_character_that_html_reads(tmp_path: Path) -> None:
    page = read_page(page_of(tmp_path, hostile_trees()))
    data = {name: text for name, text in page.blocks.items() if name.startswith("treegrpo-")}
    assert len(data) == len(hostile_trees()) + 2
    assert not any(char in text for text in data.values() for char in "<>&\u2028\u2029")


def test_only_the_trees_that_are_asked_for_are_shown_and_all_of_them_count(tmp_path: Path) -> None:
    page = page_of(tmp_path, vector_trees(), tree_id=1)
    assert block(page, "index")["trees"]["tree_id"] == [1]
    assert unpacked(scoring(page, "parent")["columns"]["advantage"], "d") == pytest.approx([0, -0.5, 0.5])
    limited = page_of(tmp_path, [*vector_trees(), tree("other")], limit=2)
    assert block(limited, "index")["trees"]["tree_id"] == [0, 1]


def test_the_steps_of_a_run_stand_beside_its_prompts(tmp_path: Path) -> None:
    for step in (1, 2):
        task = {"question": "the same"}
        line = json.dumps(tree(f"p{step}", 0, nodes_of([None, 0, 0], [None, 1.0, 0.0]), task=task))
        (tmp_path / f"step-{step}.jsonl").write_text(line + "\n")
    inspect([tmp_path], estimator="parent", html=tmp_path / "page.html")
    prompts = block(tmp_path / "page.html", "index")["prompts"]
    assert (prompts["step"], prompts["id"], prompts["same"]) == ([1, 2], ["p1", "p2"], [0, 0])
