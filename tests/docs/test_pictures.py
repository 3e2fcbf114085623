"""The drawn pictures are those of their scripts, show numbers that are so, and are described in words."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from treegrpo_cli import TreeRecord, score

from docs.pictures import credit, every_token_once, scheduling
from docs.pictures.__main__ import FOLDER, PICTURES

PAGES = Path(__file__).parents[2] / "docs"
NAMES = list(credit.TURNS)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_one_that_its_script_draws(name: str) -> None:
    drawn = (FOLDER / name).read_text(encoding="utf-8")
    assert drawn == str(PICTURES[name]()), "draw it anew: python -m docs.pictures"
    assert ElementTree.fromstring(drawn).findtext("{http://www.w3.org/2000/svg}title")


def test_the_values_of_the_worked_tree_are_means_of_the_rewards_below() -> None:
    for name, turn in credit.TURNS.items():
        below = [leaf.reward for path, leaf in map(path_of, credit.TURNS) if name in path and leaf.reward is not None]
        assert turn.value == pytest.approx(sum(below) / len(below))
        assert credit.LEAVES.get(name, 1) == len(below)


def test_the_advantages_of_the_worked_tree_are_those_of_the_estimator_parent() -> None:
    nodes = [
        {"id": NAMES.index(name), "parent": NAMES.index(turn.parent) if turn.parent else None, "reward": turn.reward}
        for name, turn in credit.TURNS.items()
    ]
    tree = {"schema": "treegrpo.tree/1", "prompt_id": "p", "tree_id": 0, "nodes": nodes}
    [scored] = score([tree], "parent")
    assert isinstance(scored, TreeRecord)
    assert [node["advantage"] for node in scored.nodes] == pytest.approx(
        [turn.advantage for turn in credit.TURNS.values()]
    )


def test_a_packed_piece_stands_once_and_behind_its_path() -> None:
    packed = every_token_once.PACKED
    assert sorted(packed) == sorted({name for row in every_token_once.ROWS for name in row})
    assert all(packed.index(above) <= packed.index(name) for name in packed for above in every_token_once.path(name))
    assert [len(run) for run in every_token_once.runs()] == [4, 1, 2, 1]


def test_the_schedules_end_when_the_picture_says() -> None:
    """A barrier adds the slowest call of each turn up; without one the slowest tree decides."""
    assert scheduling.end(scheduling.lock_step()) == 4 + 3 + 3 + 3
    assert scheduling.end(scheduling.free()) == max(4 + sum(calls) for calls in scheduling.TOOLS) == 9
    assert sum(scheduling.batches(scheduling.free())) == sum(scheduling.batches(scheduling.lock_step())) == 16


def test_every_picture_of_the_pages_is_described() -> None:
    shown = [found for page in PAGES.rglob("*.md") for found in re.findall(r"!\[(.*?)\]\((\S+)\)", page.read_text())]
    assert {Path(path).name for _, path in shown} >= PICTURES.keys()
    assert [path for words, path in shown if len(words.split()) < 5] == []


def path_of(name: str) -> tuple[set[str], credit.Turn]:
    """Return the turns from the root to this one, and the turn."""
    turn, path = credit.TURNS[name], {name}
    parent = turn.parent
    while parent:
        path.add(parent)
        parent = credit.TURNS[parent].parent
    return path, turn
