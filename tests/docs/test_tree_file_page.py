"""The page of the tree file names every field, with the type that the reader holds it to."""

import json

from treegrpo_cli import TreeRecord
from treegrpo_cli.trees.format import NODE_TYPES, STATUS_CODES, UNREWARDED
from treegrpo_cli.trees.tree_file import read_trees

from tests.docs.tree_fields import NODE, PAGE, named, unnamed_fields

WORDS = {(str,): "text", (int,): "integer", (bool,): "true or false", (int, float): "number", (list,): "list"}
UNCHECKED = {"num_tool_calls", "num_failed_tool_calls", "env_reward", "rewards", "true_reward"}
"""Fields that we write and that no reader needs: any JSON passes there."""


def test_every_field_of_a_node_is_named_with_its_type() -> None:
    fields = named(*NODE)
    assert fields.keys() == {"id", "parent", "reward", *NODE_TYPES, *UNCHECKED}
    assert [name for name, types in NODE_TYPES.items() if not fields[name].startswith(WORDS[types])] == []


def test_statuses_and_what_may_have_a_reward_are_the_readers() -> None:
    assert named("Status") == {name: "no" if name in UNREWARDED else "yes" for name in STATUS_CODES}


def test_the_shipped_trees_hold_no_other_field() -> None:
    trees = [record.fields for record in read_trees(PAGE.parents[2] / "examples" / "trees.jsonl")]
    assert unnamed_fields(trees) == set()


def test_a_field_that_the_page_lacks_is_found() -> None:
    tree = {"nodes": [{"id": 0, "mood": "good"}], "meta": {"weather": "fair"}, "colour": "red"}
    assert unnamed_fields([tree]) == {"mood", "weather", "colour"}


def test_the_least_file_that_the_page_shows_is_one() -> None:
    [line] = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith('{"schema"')]
    assert TreeRecord.parse(line).to_json() == json.dumps(json.loads(line), separators=(",", ":")).encode()
