"""What a rollout that goes on takes from the journal of the one before."""

from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config.files import make_config
from treegrpo_cli.data.tasks import row_digest
from treegrpo_cli.rollout.journal import Journal
from treegrpo_cli.rollout.records import meta
from treegrpo_cli.run.harvest import Harvest
from treegrpo_cli.trees.tree_record import TreeRecord
from treegrpo_cli.types import Task

TASK = Task("q", "a", columns={"question": "q", "answer": "a"})


@pytest.mark.parametrize(
    ("sections", "waiting"),
    [
        ({}, {("00000000", 1)}),
        ({"selection": {"rule": "uct"}}, {("00000000", 1)}),
        ({"selection": {"rule": "contrast"}}, set()),
        ({"selection": {"rule": "contrast"}, "rollout": {"num_rounds": 0}}, {("00000000", 1)}),
        ({"budget": {"prompt_tokens": 100}}, set()),
        ({"budget": {"prompt_tokens": 100}, "rollout": {"num_trees": 1}}, {("00000000", 1)}),
    ],
    ids=str,
)
def test_a_tree_without_those_that_it_waited_for_is_grown_again(
    sections: dict[str, Any], waiting: set[tuple[str, int]], tmp_path: Path
) -> None:
    config, output = make_config(sections), tmp_path / "trees.jsonl"
    journal = Journal(output, resume=False)
    journal.start()
    nodes = [{"id": 0, "parent": None, "reward": None}, {"id": 1, "parent": 0, "reward": 1.0}]
    about = meta(config) | {"number": 0, "row_digest": row_digest(TASK.columns)}
    journal.add(TreeRecord(prompt_id="00000000", tree_id=1, nodes=nodes, meta=about))
    journal.close(complete=False)
    harvest = Harvest(config, output, resume=True)
    harvest.recover([TASK])
    assert harvest.waiting() == waiting
    harvest.close()
