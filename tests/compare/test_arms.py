"""Files of arms become the settings of runs, and what is wrong with them is one line."""

from pathlib import Path

import pytest
from treegrpo_cli.compare.arms import load_arms, parse_seeds
from treegrpo_cli.errors import FileError, UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_arm_lies_over_the_common_file_and_under_the_command_line(tmp_path: Path) -> None:
    common = write(tmp_path / "common.toml", "[rollout]\nnum_trees = 6\nnum_rounds = 0\n[train]\nnum_steps = 9\n")
    arm = write(tmp_path / "trees.yaml", "rollout: {num_trees: 2, num_rounds: 1}\n")
    [loaded] = load_arms([arm], common, ["train.num_steps=7", "rollout.max_turns=5"])
    config = loaded.config()
    assert loaded.name == "trees"
    assert (config.rollout.num_trees, config.rollout.num_rounds) == (2, 1)
    assert (config.train.num_steps, config.rollout.max_turns) == (7, 5)


def test_an_empty_table_of_an_arm_leaves_the_common_settings(tmp_path: Path) -> None:
    common = write(tmp_path / "common.toml", "[rollout]\nnum_trees = 6\n")
    [arm] = load_arms([write(tmp_path / "a.toml", "[rollout]\n")], common)
    assert arm.config().rollout.num_trees == 6


def test_an_arm_says_otherwise_what_the_common_file_says_in_other_words(tmp_path: Path) -> None:
    common = write(tmp_path / "common.toml", "[loss]\ndual_clip = 3.0\n")
    [arm] = load_arms([write(tmp_path / "a.toml", "delta = 4.0\n")], common)
    assert arm.config().loss.dual_clip == 4.0


def test_a_run_has_its_own_seed_folder_and_budget(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "seed = 9\noutput_dir = 'elsewhere'\n[rollout]\nnum_trees = 3\n")
    [arm] = load_arms([file])
    config = arm.config({"seed": 4, "output_dir": "here", "rollout.max_turns": 2})
    assert (config.seed, config.output_dir) == (4, "here")
    assert (config.rollout.num_trees, config.rollout.max_turns) == (3, 2)
    assert arm.config().rollout.max_turns != 2


def test_a_name_in_the_file_goes_before_the_name_of_the_file(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.toml", "name = 'chains of 6'\n"), write(tmp_path / "b.toml", "name = 'chains-6'\n")]
    assert [arm.name for arm in load_arms(files[1:])] == ["chains-6"]
    with pytest.raises(FileError, match=r"a.toml: an arm is called by letters.*'chains of 6'$"):
        load_arms(files)


def test_two_arms_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [write(tmp_path / "a.toml", ""), write(tmp_path / "other" / "a.toml", "")]
    with pytest.raises(UserError, match=r"2 arms are called 'a'"):
        load_arms(files)


@pytest.mark.parametrize("key", ["seed", "output_dir"])
def test_what_every_run_has_of_its_own_is_no_override(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{key}: every run has its own; --"):
        load_arms([write(tmp_path / "a.toml", "")], None, [f"{key}=1"])


def test_mistakes_name_the_file_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.toml: unknown key 'rollout.num_tree'"):
        load_arms([write(tmp_path / "a.toml", "[rollout]\nnum_tree = 1\n")])
    with pytest.raises(UserError, match=r"^the command line: unknown key 'nope.key', "):
        load_arms([write(tmp_path / "a.toml", "seed = 1\n")], None, ["nope.key=1"])
    with pytest.raises(FileError, match=r"none.toml"):
        load_arms([tmp_path / "none.toml"])
    with pytest.raises(UserError, match=r"b.toml: rollout is a table, and was none"):
        load_arms([write(tmp_path / "b.toml", "[rollout]\n")], write(tmp_path / "common.toml", "rollout = 3\n"))


@pytest.mark.parametrize("text", ["", "0", "five", "3,3", "1,,2", "-1", "1.5", "1001", ",", "٣"])
def test_seeds_that_are_none_are_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--seeds "):
        parse_seeds(text)
