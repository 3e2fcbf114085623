"""An estimator of one's own in runs: what they write is what scoring their files by it gives."""

from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli import UserError, read_trees, score
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.preflight import check as check_run
from treegrpo_cli.run.preflight import train_questions
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.runs import small_run

QUIET = Reporter(quiet=True)
EXAMPLE = "examples/own_estimator.py:steps"
OWN = {"estimator": EXAMPLE, "discount": 0.5}


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("own")
    return small_run(folder, tiny_model_dir, advantage=OWN, train={"num_steps": 1, "prompts_per_step": 2})


def assert_scored(trees: list[TreeRecord]) -> None:
    again = score([record.replaced(scoring=None) for record in trees], EXAMPLE, discount=0.5)
    assert [record.to_json() for record in again] == [record.to_json() for record in trees]
    assert trees[0].scoring == {"estimator": EXAMPLE, "options": {"discount": 0.5}, "level": "node"}
    assert any(node["advantage"] for record in trees for node in record.nodes)


def test_training_scores_by_it_and_its_files_say_so(settings: dict[str, Any]) -> None:
    train(make_config(settings), QUIET)
    [file] = (Path(settings["output_dir"]) / "trees").iterdir()
    assert_scored(list(read_trees(file)))


def test_a_rollout_scores_by_it_and_resumes(settings: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "trees.jsonl"
    generate(make_config(settings), output, QUIET)
    whole = list(read_trees(output))
    assert_scored(whole)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:2]))
    generate(make_config(settings), output, QUIET, resume=True)
    again = {(record.prompt_id, record.tree_id): record for record in read_trees(output)}
    for record in whole:
        assert again[record.prompt_id, record.tree_id].nodes == record.nodes
        assert again[record.prompt_id, record.tree_id].scoring == record.scoring


def test_its_mistakes_are_found_before_a_run(settings: dict[str, Any]) -> None:
    config = make_config({**settings, "advantage": {"estimator": EXAMPLE, "discuont": 1}})
    with pytest.raises(
        UserError, match=r"advantage\.estimator: steps has no option 'discuont'; did you mean .discount."
    ):
        check_run(config, [train_questions(config)])
