"""The shipped comparison: its arms load over each setting, and its questions are apart and have one answer."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from treegrpo_cli.compare.arms import load_arms
from treegrpo_cli.config import SelectionConfig
from treegrpo_cli.envs.bm25 import BM25Retriever
from treegrpo_cli.rollout.own_rule import load_own_rule

ROOT = Path(__file__).parents[1] / "examples"
EXAMPLE = ROOT / "comparison"
SETTINGS = ("slow", "sparse", "long")
NAMES = sorted(
    ["chains-6", "chains-12", "dynamic-chains", "adaptive-chains", "trees", "adaptive-state-loo", "adaptive-causal"]
)
LENGTHS = {"slow": {1, 2, 3}, "sparse": {3, 4}, "long": {4, 5, 6}}


@contextmanager
def on_path(*folders: Path) -> Iterator[None]:
    """Import from these folders."""
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        del sys.path[: len(folders)]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real questions, and policies after one step of their warm-up."""
    with on_path(EXAMPLE, ROOT / "geography"):
        from worlds import main
    directory = tmp_path_factory.mktemp("comparison")
    assert main([str(directory), "--steps", "1"]) == 0
    return directory


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_arm_loads_over_every_setting_and_spends_six_leaves_a_prompt_but_for_those_that_say_otherwise(
    setting: str,
) -> None:
    arms = load_arms(sorted((EXAMPLE / "arms" / setting).glob("*.toml")), EXAMPLE / f"{setting}.toml")
    assert [arm.name for arm in arms] == NAMES
    leaves = {arm.name: arm.config().rollout.num_trees * arm.config().rollout.num_leaves for arm in arms}
    assert {name for name, number in leaves.items() if number != 6} == {"chains-12"}
    assert all(f"runs/comparison/{setting}/" in arm.config().data.train for arm in arms)


def test_each_idea_loads_and_changes_one_table_of_the_two_trees_that_it_is_compared_with(tmp_path: Path) -> None:
    with on_path(EXAMPLE):
        from ideas import CHANGES, main
    assert main([str(tmp_path)]) == 0
    arms = load_arms(sorted(tmp_path.glob("*.toml")), EXAMPLE / "long.toml")
    configs = {arm.name: arm.config().model_dump() for arm in arms}
    assert next(iter(configs)) == "chains-6"
    base = configs["two-trees"]
    for name, changes in CHANGES.items():
        differing = {table for table, values in configs[name].items() if values != base[table]}
        assert differing == set(changes), name


def test_the_rule_that_asks_what_is_alive_draws_nothing_below_which_all_failed_but_the_root() -> None:
    alive = load_own_rule(SelectionConfig(rule=f"{EXAMPLE / 'alive.py'}:alive"))
    assert alive.reads_prompt
    assert alive.needs_rewards
    columns = {
        "value": np.array([0.25, 0.5, 0.0, np.nan]),
        "num_leaves": np.array([4, 2, 2, 0]),
        "depth": np.array([0, 1, 1, 1]),
    }
    scores = alive.function(columns, np.array([0, 1, 2, 3]))
    assert scores[:2] == pytest.approx([math.log(0.3 * 0.7), math.log(0.5 * 0.5)])
    assert scores[2:].tolist() == [-math.inf, -math.inf]
    failed = {name: column[:1] * (name != "value") for name, column in columns.items()}
    assert np.isfinite(alive.function(failed, np.array([0])))


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_evaluated_question_is_trained_on_and_the_facts_of_each_lead_to_its_answer(
    worlds: Path, setting: str
) -> None:
    asked = {split: rows(worlds / setting / f"{split}.jsonl") for split in ("train", "eval")}
    texts = {split: [row["question"] for row in every] for split, every in asked.items()}
    assert not set(texts["train"]) & set(texts["eval"])
    assert all(len(set(each)) == len(each) for each in texts.values())
    assert len(texts["eval"]) == 180
    told = {row["contents"] for row in rows(worlds / setting / "corpus.jsonl")}
    for row in [*asked["train"], *asked["eval"]]:
        chain = row["facts"]
        assert all(f"{s}\nThe {r} of {s} is {o}." in told for r, s, o in chain)
        assert [subject for _, subject, _ in chain[1:]] == [object for _, _, object in chain[:-1]]
        assert [chain[-1][2]] == row["golden_answers"]
    assert {row["num_searches"] for row in asked["eval"]} == LENGTHS[setting]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_tokenizer_knows_every_word_that_is_asked_and_shown(worlds: Path, setting: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(worlds / setting / "model")
    texts = [row["question"] for split in ("train", "eval") for row in rows(worlds / setting / f"{split}.jsonl")]
    texts += [row["contents"] for row in rows(worlds / setting / "corpus.jsonl")]
    assert not [text for text in texts if tokenizer.unk_token_id in tokenizer.encode(text)]


def test_one_search_in_the_order_of_the_facts_finds_each_fact_of_a_long_question_first(worlds: Path) -> None:
    corpus = [row["contents"].split("\n") for row in rows(worlds / "long" / "corpus.jsonl")]
    retriever = BM25Retriever([(title, text) for title, text in corpus])
    for row in rows(worlds / "long" / "eval.jsonl"):
        for relation, subject, object in row["facts"]:
            best = retriever.retrieve_one(f"{relation} {subject}", 2)[0]
            assert best.text == f"The {relation} of {subject} is {object}."
