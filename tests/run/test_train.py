"""Training runs: what they leave behind, exact resume, and what stops them."""

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file
from treegrpo_cli import read_trees, score
from treegrpo_cli.config.files import dump_config, load_config, make_config
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.errors import FileError, Stopped, UserError
from treegrpo_cli.models.pretrained import load_tokenizer
from treegrpo_cli.rollout import step as step_module
from treegrpo_cli.rollout.player import Player
from treegrpo_cli.run import local_trainer as local_trainer_module
from treegrpo_cli.run import session as session_module
from treegrpo_cli.run.directory import RunDirectory
from treegrpo_cli.run.keeping import Keeper
from treegrpo_cli.run.loop import prompts_from, train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.session import Session
from treegrpo_cli.samplers.stepping import SteppedSampler
from treegrpo_cli.samplers.transformers import TransformersSampler
from treegrpo_cli.train.checkpoint import checkpoints
from treegrpo_cli.train.trainer import Trainer
from treegrpo_cli.trees.tree_file import TreeWriter
from treegrpo_cli.types import Completion, Task

from tests.reference_metrics import is_dead, reference_metrics
from tests.runs import count_vowels, small_run, treegrpo

QUIET = Reporter(quiet=True)
MEASURED = ("step_time", "time/", "tokens_per_second/", "engine/", "memory/", "budget/step_seconds")


def metrics_of(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a run without what differs from one machine's day to the next."""
    lines = (Path(settings["output_dir"]) / "metrics.jsonl").read_bytes().splitlines()
    return [
        {name: value for name, value in orjson.loads(line).items() if not name.startswith(MEASURED)} for line in lines
    ]


def weights_of(settings: dict[str, Any]) -> dict[str, bytes]:
    newest = checkpoints(settings["output_dir"])[-1]
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(newest / "model.safetensors").items()}


def run(settings: dict[str, Any], *, resume: bool = False) -> None:
    train(make_config(settings), QUIET, resume=resume)


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of four steps that nothing interrupted."""
    settings = small_run(tmp_path_factory.mktemp("whole"), tiny_model_dir)
    run(settings)
    return settings


def test_a_run_leaves_config_metrics_trees_and_checkpoints(whole: dict[str, Any]) -> None:
    folder = Path(whole["output_dir"])
    assert load_config(folder / "config.toml") == make_config(whole)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    assert sorted(path.name for path in (folder / "trees").iterdir()) == [
        f"step-{n:05d}.jsonl.zst" for n in (1, 2, 3, 4)
    ]
    steps = [(line["step"], "reward" in line) for line in metrics_of(whole)]
    assert steps == [(0, False), (1, True), (2, True), (2, False), (3, True), (4, True), (4, False)]


def test_the_weights_move_and_every_node_carries_the_version_that_sampled_it(whole: dict[str, Any]) -> None:
    folder = Path(whole["output_dir"])
    before, after = load_file(Path(whole["model"]["path"]) / "model.safetensors"), weights_of(whole)
    assert any(before[name].numpy().tobytes() != after[name] for name in after)
    for step in (1, 3):
        trees = list(read_trees(folder / "trees" / f"step-{step:05d}.jsonl.zst"))
        assert len(trees) == 2 * 2
        assert {node["policy_version"] for tree in trees for node in tree.nodes if node["parent"] is not None} == {
            step - 1
        }
        assert all(tree.scoring and tree.scoring["estimator"] == "tree-grpo" for tree in trees)


def calls_as_chains(nodes: Sequence[dict[str, Any]]) -> int:
    """Tool calls on the way to each leaf, counted leaf by leaf."""
    parents, calls = {node["parent"] for node in nodes}, 0
    for leaf in set(range(len(nodes))) - parents:
        place: int | None = leaf
        while place is not None:
            calls += nodes[place]["num_tool_calls"]
            place = nodes[place]["parent"]
    return calls


def test_the_tree_files_hold_what_the_metrics_say_and_what_their_own_scoring_gives(whole: dict[str, Any]) -> None:
    steps = [line for line in metrics_of(whole) if "reward" in line]
    for line in steps:
        trees = list(read_trees(Path(whole["output_dir"]) / "trees" / f"step-{line['step']:05d}.jsonl.zst"))
        expected = reference_metrics(trees)
        assert {name: line[name] for name in expected} == pytest.approx(expected)
        assert line["tree/num_tool_calls"] == sum(node["num_tool_calls"] for tree in trees for node in tree.nodes)
        assert line["tree/chain_tool_calls"] == sum(calls_as_chains(tree.nodes) for tree in trees)
        anew = score(trees, "tree-grpo")
        assert [node["advantage"] for tree in trees for node in tree.nodes] == pytest.approx(
            [node["advantage"] for tree in anew for node in tree.nodes]
        )
    tokens = [
        len(node["token_ids"])
        for path in (Path(whole["output_dir"]) / "trees").iterdir()
        for tree in read_trees(path)
        for node in tree.nodes
    ]
    assert steps[-1]["num_tokens"] == sum(tokens)


def test_a_step_says_where_its_seconds_went(whole: dict[str, Any]) -> None:
    lines = (Path(whole["output_dir"]) / "metrics.jsonl").read_bytes().splitlines()
    records = [orjson.loads(line) for line in lines]
    for step in (record for record in records if "reward" in record):
        pieces = [step[f"time/{piece}"] for piece in ("rollout", "scoring", "packing", "update", "weights")]
        assert all(seconds > 0 for seconds in pieces)
        assert sum(pieces) <= step["step_time"]
        assert 0 <= step["time/tools_waited"] <= step["time/rollout"]
        assert 0 < step["time/selection"] <= step["time/rollout"]
        assert 0 < step["engine/busy_share"] <= 1
        assert step["tokens_per_second/generated"] > 0
        assert step["tokens_per_second/trained"] > 0
        assert step["memory/peak_gib"] > 0.01
    assert all(record["time/evaluation"] > 0 for record in records if "reward" not in record)


def test_sampler_and_trainer_agree_on_log_probabilities(whole: dict[str, Any]) -> None:
    steps = [line for line in metrics_of(whole) if "reward" in line]
    assert max(line["sampling/sampling_logp_difference/max"] for line in steps) < 1e-4


def test_every_reward_function_has_its_metrics(whole: dict[str, Any]) -> None:
    for line in metrics_of(whole):
        if "reward" in line:
            assert line["rewards/count_vowels/mean"] == pytest.approx(line["reward"])
            assert line["rewards/count_vowels/std"] >= 0


def test_completions_are_shown_a_step_where_that_is_asked(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_settings = {"num_steps": 2, "eval_steps": 0, "log_completions": 3}
    settings = small_run(tmp_path, tiny_model_dir, train=train_settings)
    train(make_config(settings), Reporter())
    shown = capsys.readouterr().err
    assert [line.strip() for line in shown.splitlines() if line.startswith("step ")] == ["step 1", "step 2"]
    assert shown.count("count_vow") >= 2  # a narrow column may fold it
    assert shown.count("Answer.") == 2 * 3  # the prompt's instructions


def test_checkpoints_load_in_transformers(whole: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    newest = checkpoints(whole["output_dir"])[-1]
    model = AutoModelForCausalLM.from_pretrained(newest)
    assert (
        model.get_input_embeddings().weight.detach().numpy().tobytes() == weights_of(whole)["model.embed_tokens.weight"]
    )
    assert AutoTokenizer.from_pretrained(newest).chat_template


def kill_behind_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """End the next run when it has written this step, like kill -9: nothing more is saved."""
    finish_step = Session.finish_step

    def die(self: Session, *arguments: Any) -> None:
        finish_step(self, *arguments)
        if self.step == step:
            raise RuntimeError("the machine is gone")

    patch.setattr(Session, "finish_step", die)
    patch.setattr(Keeper, "save_at_end", lambda *_: None)


def test_a_killed_run_resumes_to_the_same_metrics_and_weights(
    whole: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run(tmp_path, tiny_model_dir)
    with monkeypatch.context() as patch:
        kill_behind_step(patch, 3)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(settings)
    assert [line["step"] for line in metrics_of(settings)][-1] == 3
    run(settings, resume=True)
    assert metrics_of(settings) == metrics_of(whole)
    assert weights_of(settings) == weights_of(whole)
    aside = Path(settings["output_dir"]) / "old-1"
    assert [orjson.loads(line)["step"] for line in (aside / "metrics.jsonl").read_bytes().splitlines()] == [3]
    assert [path.name for path in (aside / "trees").iterdir()] == ["step-00003.jsonl.zst"]


def test_a_rule_knows_the_rewards_of_the_steps_before_also_where_a_run_resumes(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, selection={"rule": "contrast", "kappa": 4}, train={"eval_steps": 0})
    grow, known = Session.grow, {}

    def look(self: Session, prompts: Any) -> Any:
        trees = grow(self, prompts)
        known.setdefault(self.step + 1, []).append(self.player.rewards_so_far)
        return trees

    monkeypatch.setattr(Session, "grow", look)
    with monkeypatch.context() as patch:
        kill_behind_step(patch, 3)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(settings)
    run(settings, resume=True)
    assert {step: len(times) for step, times in known.items()} == {1: 1, 2: 1, 3: 2, 4: 1}
    assert known[3][0] == known[3][1]
    rewards: list[float] = []
    for step, times in known.items():
        assert (times[0].count, times[0].sum) == (len(rewards), pytest.approx(sum(rewards)))
        trees = read_trees(Path(settings["output_dir"]) / "trees" / f"step-{step:05}.jsonl.zst")
        rewards += [node["reward"] for tree in trees for node in tree.nodes if node["reward"] is not None]
    assert len(set(rewards)) > 1


def test_a_killed_run_of_adapters_with_dropout_resumes_exactly_whatever_its_engine_seeds(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_parts = Session._open

    def seeding(self: Session, *arguments: Any) -> None:
        torch.manual_seed(123)  # as vLLM's engine does when it starts
        open_parts(self, *arguments)

    monkeypatch.setattr(Session, "_open", seeding)
    runs = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        runs.append(small_run(tmp_path / name, tiny_model_dir))
        runs[-1]["model"] |= {"lora_rank": 4, "lora_dropout": 0.3}
    run(runs[0])
    with monkeypatch.context() as patch:
        kill_behind_step(patch, 3)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(runs[1])
    run(runs[1], resume=True)
    assert metrics_of(runs[1]) == metrics_of(runs[0])
    assert weights_of(runs[1]) == weights_of(runs[0])


def test_a_run_killed_before_its_first_checkpoint_starts_over_says_so_and_keeps_what_it_wrote(
    whole: dict[str, Any],
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = small_run(tmp_path, tiny_model_dir)
    with monkeypatch.context() as patch:
        kill_behind_step(patch, 1)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(settings)
    before = (Path(settings["output_dir"]) / "metrics.jsonl").read_bytes()
    run(settings, resume=True)
    assert metrics_of(settings) == metrics_of(whole)
    assert (Path(settings["output_dir"]) / "old-1" / "metrics.jsonl").read_bytes() == before
    assert "has no checkpoint: the run starts again from its first step" in capsys.readouterr().err


@pytest.mark.parametrize("dies_in", ["grow", "finish_step"])
def test_an_error_behind_whole_steps_saves_them(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dies_in: str,
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"save_steps": 0, "eval_steps": 0})
    method = getattr(Session, dies_in)

    def die(self: Session, *arguments: Any) -> Any:
        if self.step == 3:
            raise RuntimeError("our own bug")
        return method(self, *arguments)

    monkeypatch.setattr(Session, dies_in, die)
    with pytest.raises(RuntimeError, match="our own bug"):
        run(settings)
    assert [path.name for path in checkpoints(settings["output_dir"])] == ["checkpoint-3"]
    assert "stopped after step 3; continue with the same command and --resume" in capsys.readouterr().err


def test_an_update_that_fails_half_way_is_no_step_and_saves_none(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_settings = {"num_steps": 2, "prompts_per_minibatch": 1, "save_steps": 1, "eval_steps": 0}
    settings = small_run(tmp_path, tiny_model_dir, train=train_settings)
    optimizer_step, steps = Trainer._optimizer_step, []

    def die_in_the_last(self: Trainer, *arguments: Any) -> Any:
        steps.append(self.step)
        if len(steps) == 4:
            raise RuntimeError("the driver crashed")
        return optimizer_step(self, *arguments)

    monkeypatch.setattr(Trainer, "_optimizer_step", die_in_the_last)
    with pytest.raises(RuntimeError, match="the driver crashed"):
        run(settings)
    assert steps == [0, 0, 1, 1]
    [only] = checkpoints(settings["output_dir"])
    assert only.name == "checkpoint-1"


def test_a_default_run_saves_on_its_way() -> None:
    assert make_config({}).train.save_steps == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_resume_goes_on_from_it(
    whole: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"save_steps": 0})
    grow, signalled = Session.grow, []

    def interrupted(self: Session, prompts: Any) -> Any:
        if self.step == 1 and not signalled:
            signalled.append(True)
            os.kill(os.getpid(), number)
        return grow(self, prompts)

    monkeypatch.setattr(Session, "grow", interrupted)
    with pytest.raises(Stopped, match=r"after step 1; .*--resume") as stopped:
        run(settings)
    assert stopped.value.signal_number == number
    assert [path.name for path in checkpoints(settings["output_dir"])] == ["checkpoint-1"]
    run(settings, resume=True)
    assert metrics_of(settings) == metrics_of(whole)
    assert weights_of(settings) == weights_of(whole)


def test_an_evaluation_that_was_stopped_is_logged_once(
    whole: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run(tmp_path, tiny_model_dir)
    evaluate = session_module.evaluate

    def interrupted(*arguments: Any) -> Any:
        if steps_of(settings) == [0, 1, 2]:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "evaluate", interrupted)
        with pytest.raises(Stopped, match="after step 2"):
            run(settings)
    assert steps_of(settings) == [0, 1, 2]
    with monkeypatch.context() as patch:
        kill_behind_step(patch, 3)  # the checkpoint of step 2 was saved before its evaluation, which is logged now
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(settings, resume=True)
    run(settings, resume=True)
    assert metrics_of(settings) == metrics_of(whole)


def steps_of(settings: dict[str, Any]) -> list[int]:
    metrics = Path(settings["output_dir"]) / "metrics.jsonl"
    return [line["step"] for line in metrics_of(settings)] if metrics.exists() else []


def test_a_stop_before_the_first_step_says_how_to_start_again(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for eval_steps, command in ((0, "the same command starts"), (2, "the same command with --resume starts")):
        train_settings = {"num_steps": 1, "save_steps": 0, "eval_steps": eval_steps}
        settings = small_run(tmp_path, tiny_model_dir, train=train_settings)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "grow", lambda self, _: os.kill(os.getpid(), signal.SIGINT) or self.stop.check())
            with pytest.raises(Stopped, match=f"stopped before the first step was finished; {command}"):
                run(settings)
        run(settings, resume="--resume" in command)
        shutil.rmtree(settings["output_dir"])


def test_trees_that_the_disk_does_not_take_end_the_run_behind_metrics_and_a_checkpoint(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"save_steps": 0, "eval_steps": 0})
    write_group = TreeWriter.write_group

    def full(self: TreeWriter, group: Any) -> None:
        if "step-00002" in str(self.path):
            raise FileError(self.path, "No space left on device")
        write_group(self, group)

    monkeypatch.setattr(TreeWriter, "write_group", full)
    with pytest.raises(FileError, match=r"step-00002.*No space left"):
        run(settings)
    assert steps_of(settings) == [1, 2]
    assert [path.name for path in checkpoints(settings["output_dir"])] == ["checkpoint-2"]


def test_rows_that_changed_since_the_checkpoint_are_named(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"num_steps": 1, "eval_steps": 0})
    run(settings)
    settings["train"]["num_steps"] = 2
    run(settings, resume=True)
    assert "have changed since the run began" not in capsys.readouterr().err
    rows = Path(settings["data"]["train"])
    rows.write_text(rows.read_text().replace("France", "Gaul"))
    settings["train"]["num_steps"] = 3
    run(settings, resume=True)
    assert "the rows of data.train" in capsys.readouterr().err


def test_an_output_directory_that_holds_a_run_is_refused_and_untouched(whole: dict[str, Any]) -> None:
    before = (Path(whole["output_dir"]) / "metrics.jsonl").read_bytes()
    with pytest.raises(FileError, match="already holds a run; continue it with --resume"):
        run(whole)
    assert (Path(whole["output_dir"]) / "metrics.jsonl").read_bytes() == before


def test_a_run_that_could_not_start_is_not_in_the_way_of_the_next_try(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"num_steps": 1, "eval_steps": 0})
    with pytest.raises(UserError, match=r"model.path"):
        run({**settings, "model": {"path": str(tmp_path / "mising")}})
    run(settings)
    assert len(metrics_of(settings)) == 1


def test_evaluation_without_questions_is_refused_with_the_key(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.eval: not set"):
        run(small_run(tmp_path, tiny_model_dir, data={"eval": ""}))


def test_resume_with_other_settings_is_refused_with_the_key(whole: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"optimizer.learning_rate = 0.001, the settings now say 0.5"):
        run({**whole, "optimizer": {"learning_rate": 0.5}}, resume=True)


def test_the_command_resumes_a_folder_by_its_own_settings_and_names_what_changes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = small_run(tmp_path, tiny_model_dir, train={"num_steps": 1, "eval_steps": 0})
    (tmp_path / "settings.toml").write_text(dump_config(make_config(settings)))
    first = treegrpo("train", str(tmp_path / "settings.toml"), "--quiet")
    assert first.returncode == 0, first.stderr
    moved = Path(settings["output_dir"]).rename(tmp_path / "moved")
    again = treegrpo("train", "--resume", str(moved), "train.num_steps=2", "optimizer.learning_rate=0.01", "--quiet")
    assert again.returncode == 0, again.stderr
    [warning] = [line for line in again.stderr.splitlines() if "warning" in line]
    assert warning.startswith("treegrpo: warning: optimizer.learning_rate was 0.001 until now and is 0.01")
    lines = (moved / "metrics.jsonl").read_bytes().splitlines()
    assert [(orjson.loads(line)["step"], orjson.loads(line)["learning_rate"]) for line in lines] == [
        (1, 1e-3),
        (2, 1e-2),
    ]
    assert load_config(moved / "config.toml").optimizer.learning_rate == 0.01


def test_a_folder_without_a_run_and_one_without_resume_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, problem in (
        (["--resume", "empty"], "empty: holds no run to resume"),
        (["empty"], "empty: is a folder; add --resume to continue the run in it"),
        (
            ["--resume", "empty", "output_dir=x"],
            "output_dir: the run to resume is already named, empty; leave out one of the two",
        ),
        (["--resume", "output_dir=nowhere"], "nowhere: holds no run to resume"),
    ):
        done = treegrpo("train", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (2, f"treegrpo: {problem}\n")


def test_resume_without_a_run_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no run to resume"):
        run(small_run(tmp_path, tiny_model_dir), resume=True)


@pytest.mark.parametrize(("dead_prompts", "num_refills"), [("drop", 0), ("refill", 2)])
def test_a_step_with_equal_rewards_moves_nothing_where_dead_prompts_are_dropped(
    tiny_model_dir: Path, tmp_path: Path, dead_prompts: str, num_refills: int
) -> None:
    settings = small_run(
        tmp_path,
        tiny_model_dir,
        reward={"functions": ["exact_match"]},
        advantage={"dead_prompts": dead_prompts},
        train={"num_steps": 1, "eval_steps": 0, "max_gen_batches": 2},
    )
    run(settings)
    [line] = metrics_of(settings)
    assert line["frac_reward_zero_std"] == 1
    assert line["tree/num_refills"] == num_refills
    assert line["tree/num_discarded_prompts"] == line["tree/num_dead_prompts"] == 2 + num_refills
    assert line["tree/discarded_tokens"] == line["tree/generated_tokens"] > 0
    before = load_file(tiny_model_dir / "model.safetensors")
    assert weights_of(settings) == {name: tensor.numpy().tobytes() for name, tensor in before.items()}


def test_prompts_are_whole_passes_over_the_data_each_in_its_own_order() -> None:
    config = make_config({})
    tasks = [Task(str(number)) for number in range(6)]
    drawn = list(islice(prompts_from(tasks, config, 0), 24))
    passes = [[prompt.task.question for prompt in drawn[start : start + 6]] for start in range(0, 24, 6)]
    assert all(sorted(one) == [str(number) for number in range(6)] for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert len({prompt.prompt_id for prompt in drawn}) == 24
    assert list(islice(prompts_from(tasks, config, 13), 4)) == drawn[13:17]


def test_a_second_training_in_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with output_lock(tmp_path / "run"):
        done = treegrpo("train", "output_dir=run", "model.path=m", "data.train=d", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        f"treegrpo: {tmp_path / 'run'}: is being written by another run, process {os.getpid()}\n",
    )


def test_a_slow_reward_changes_no_batch_and_so_not_one_bit_of_what_is_sampled(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import random, time\n"
        "from tests.runs import count_vowels\n"
        "def slow(prompts, completions, **columns):\n"
        "    time.sleep(random.random() / 20)\n"
        "    return count_vowels(prompts, completions)\n"
    )
    runs = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        runs.append(
            small_run(
                tmp_path / name,
                tiny_model_dir,
                reward={"functions": [f"{tmp_path / 'slow.py'}:slow"]},
                train={"num_steps": 2, "eval_steps": 0},
            )
        )
        run(runs[-1])
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    assert weights_of(runs[0]) == weights_of(runs[1])


def moving_reward(completions: list[str], **_: Any) -> list[float]:
    """A reward that leaves the folder that the program was started in."""
    os.chdir("/")
    return [float(len(completion)) for completion in completions]


def test_user_code_that_changes_the_working_directory_moves_no_run(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_dir, "model")
    functions = {"functions": ["tests.run.test_train:moving_reward"]}
    run({**small_run(tmp_path, Path("model"), reward=functions), "output_dir": "here"})
    assert Path.cwd() == Path("/")
    assert [path.name for path in checkpoints(tmp_path / "here")] == ["checkpoint-2", "checkpoint-4"]
    assert len(list((tmp_path / "here" / "trees").iterdir())) == 4


def test_checkpoints_do_not_need_the_models_folder_any_more(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    settings = small_run(tmp_path, tmp_path / "model", train={"eval_steps": 0})
    update = Trainer.update

    def update_without_folder(*arguments: Any) -> Any:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        return update(*arguments)

    monkeypatch.setattr(Trainer, "update", update_without_folder)
    run(settings)
    assert not (tmp_path / "model").exists()
    [*_, newest] = checkpoints(settings["output_dir"])
    assert load_tokenizer(newest).get_vocab() == load_tokenizer(tiny_model_dir).get_vocab()


def test_a_checkpoint_that_is_not_whole_is_passed_over_aloud(
    whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole["output_dir"], tmp_path / "run")
    settings = {**whole, "output_dir": str(tmp_path / "run")}
    (tmp_path / "run" / "checkpoint-4" / "training_state.json").unlink()
    run(settings, resume=True)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'run' / 'checkpoint-4'} is no whole checkpoint, and is passed over" in said
    assert weights_of(settings) == weights_of(whole)


@pytest.mark.parametrize("place", ["file", "file/run", "/dev/full"])
def test_a_folder_that_can_be_none_is_named_before_anything_runs(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    config = make_config({"output_dir": str(tmp_path / place)})
    with pytest.raises(FileError, match=r"(file|/dev/full): is no folder"):
        RunDirectory(config, resume=False).check()


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_an_engine_of_another_policy_is_said_at_the_first_step(
    shift: float, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, warnings = SteppedSampler.sample, []

    async def shifted(self: SteppedSampler, *args: Any) -> Completion:
        completion = await sample(self, *args)
        return replace(completion, logprobs=[logprob - shift for logprob in completion.logprobs])

    monkeypatch.setattr(SteppedSampler, "sample", shifted)
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "warn", warnings.append)
    settings = small_run(tmp_path, tiny_model_dir)
    train(make_config(settings), reporter)
    expected = "engine and trainer are two policies: their log-probabilities of a sampled token differ by 0.5 nats"
    assert [line.startswith(expected) for line in warnings if "two policies" in line] == [True] * (shift > 0)


def test_what_the_engine_cached_in_an_evaluation_is_not_counted_with_the_step_behind_it(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[int, int] = {}

    def requests_since(self: TransformersSampler) -> float:
        before, counted[id(self)] = counted.get(id(self), 0), self._num_requests
        return float(self._num_requests - before)

    monkeypatch.setattr(TransformersSampler, "prefix_cache_hit_ratio", requests_since)

    def counts(name: str, eval_steps: int) -> list[float]:
        (tmp_path / name).mkdir()
        settings = small_run(tmp_path / name, tiny_model_dir, train={"eval_steps": eval_steps, "num_steps": 2})
        run(settings)
        key = "tree/prefix_cache_hit_ratio"
        return [line[key] for line in metrics_of(settings) if key in line]

    assert counts("evaluated", 1) == counts("plain", 0)


def test_an_evaluation_samples_as_many_chains_as_it_is_told_and_leaves_the_run_as_it_was(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, int]] = []
    evaluate = session_module.evaluate

    def counted(player: Player, *arguments: Any) -> Any:
        asked.append((player.params.greedy, player.config.rollout.num_trees))
        return evaluate(player, *arguments)

    monkeypatch.setattr(session_module, "evaluate", counted)

    def lines(name: str, num_samples: int) -> list[dict[str, Any]]:
        (tmp_path / name).mkdir()
        changes = {"num_steps": 2, "eval_steps": 2, "eval_samples": num_samples}
        settings = small_run(tmp_path / name, tiny_model_dir, train=changes)
        run(settings)
        return metrics_of(settings)

    greedy, sampled = lines("greedy", 0), lines("sampled", 3)
    assert asked == [(True, 1)] * 2 + [(False, 3)] * 2
    assert greedy[0]["eval/count_vowels"] != sampled[0]["eval/count_vowels"]
    steps = [[line for line in every if "reward" in line] for every in (greedy, sampled)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 2


def vowels_unless_rome(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Nothing is learned from one of the three questions."""
    rewards = count_vowels(prompts, completions)
    return [0.5 if "Italy" in prompt else reward for prompt, reward in zip(prompts, rewards, strict=True)]


@pytest.fixture(scope="module")
def refilled(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of four steps in which dead prompts are replaced, that nothing interrupted."""
    settings = refill_run(tmp_path_factory.mktemp("refilled"), tiny_model_dir)
    run(settings)
    return settings


def refill_run(folder: Path, model: Path) -> dict[str, Any]:
    return small_run(
        folder,
        model,
        reward={"functions": [f"{__name__}:vowels_unless_rome"]},
        advantage={"dead_prompts": "refill"},
        train={"max_gen_batches": 2},
    )


def test_dead_prompts_are_replaced_and_what_they_took_is_counted_and_kept(refilled: dict[str, Any]) -> None:
    lines, place = [line for line in metrics_of(refilled) if "reward" in line], 0
    assert len(lines) == 4
    assert sum(line["tree/num_refills"] for line in lines) >= 2
    for line in lines:
        path = Path(refilled["output_dir"]) / "trees" / f"step-{line['step']:05d}.jsonl.zst"
        trees = list(read_trees(path))
        prompt_ids = list(dict.fromkeys(tree.prompt_id for tree in trees))
        assert prompt_ids == [f"{number:08d}" for number in range(place, place + len(prompt_ids))]
        place += len(prompt_ids)
        groups = [[tree for tree in trees if tree.prompt_id == prompt_id] for prompt_id in prompt_ids]
        thrown = [tree for group in groups if is_dead(group) for tree in group]
        assert [tree for tree in trees if (tree.meta or {}).get("discarded")] == thrown
        assert len(groups) == 2 + line["tree/num_refills"] <= 4
        assert line["tree/num_discarded_prompts"] == line["tree/num_dead_prompts"] == len(thrown) / 2
        assert line["tree/discarded_tokens"] == sum(len(node["logprobs"]) for tree in thrown for node in tree.nodes)
        calls = [sum(node["num_tool_calls"] for tree in some for node in tree.nodes) for some in (thrown, trees)]
        assert [line["tree/discarded_tool_calls"], line["tree/num_tool_calls"]] == calls
        expected = reference_metrics(trees, drop_dead=True)
        assert {name: line[name] for name in expected} == pytest.approx(expected)
    italy = sum("Italy" in tree.fields["task"]["question"] for tree in trees)
    assert italy < len(trees)


@pytest.mark.parametrize("dies_in", ["finish_step", "refill"])
def test_a_run_killed_while_it_refills_resumes_to_the_same_prompts_metrics_and_weights(
    refilled: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    settings = refill_run(tmp_path, tiny_model_dir)
    with monkeypatch.context() as patch:
        if dies_in == "refill":
            kill_in_the_second_refill(patch)
        else:
            kill_behind_step(patch, 3)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(settings)
    run(settings, resume=True)
    assert metrics_of(settings) == metrics_of(refilled)
    assert weights_of(settings) == weights_of(refilled)


def kill_in_the_second_refill(patch: pytest.MonkeyPatch) -> None:
    """End the next run in its second refill, with the steps before it saved as they are when they are due."""
    grow_batch, refills = step_module._grow_batch, []

    async def die(player: Any, prompts: Any, *arguments: Any) -> Any:
        refills.extend([1] if len(prompts) < 2 else [])
        if len(refills) == 2:
            raise RuntimeError("the machine is gone")
        return await grow_batch(player, prompts, *arguments)

    patch.setattr(step_module, "_grow_batch", die)
    patch.setattr(Keeper, "save_at_end", lambda *_: None)


def test_a_checkpoint_without_a_count_of_prompts_goes_on_where_its_steps_end(
    whole: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_run(tmp_path, tiny_model_dir)
    with monkeypatch.context() as patch:
        kill_behind_step(patch, 3)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(settings)
    load = local_trainer_module.load_checkpoint

    def without(*arguments: Any) -> dict[str, Any]:
        state = load(*arguments)
        assert state.pop("num_prompts") == 2 * 2
        return state

    monkeypatch.setattr(local_trainer_module, "load_checkpoint", without)
    run(settings, resume=True)
    assert metrics_of(settings) == metrics_of(whole)


UNEVEN: dict[str, Any] = {
    "reward": {"functions": [f"{__name__}:vowels_unless_rome"]},
    "rollout": {"num_rounds": 2, "num_expansions": 1, "allocation": "uncertain", "rescue": "dead", "max_rescues": 2},
    "selection": {"rule": "contrast"},
    "advantage": {"dead_prompts": "refill"},
    "train": {"num_steps": 3, "eval_steps": 0},
}


def test_a_run_that_deals_and_refills_resumes_exactly_and_says_what_it_spent(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        runs.append(small_run(tmp_path / name, tiny_model_dir, **UNEVEN))
        runs[-1]["rollout"] |= {"max_turns": 2, "max_prompt_tokens": 128, "max_turn_tokens": 16}
    run(runs[0])
    with monkeypatch.context() as patch:
        kill_behind_step(patch, 3)
        patch.setattr(Session, "is_done", property(lambda self: False))  # so that step 3 is not saved as the last
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(runs[1])
    assert [path.name for path in checkpoints(runs[1]["output_dir"])] == ["checkpoint-2"]
    run(runs[1], resume=True)
    assert metrics_of(runs[1]) == metrics_of(runs[0])
    assert weights_of(runs[1]) == weights_of(runs[0])
    for line in metrics_of(runs[0]):
        trees = list(read_trees(Path(runs[0]["output_dir"]) / "trees" / f"step-{line['step']:05d}.jsonl.zst"))
        groups = [
            [t for t in trees if t.prompt_id == prompt_id] for prompt_id in dict.fromkeys(t.prompt_id for t in trees)
        ]
        leaves = [sum(node["status"] != "open" for tree in group for node in tree.nodes) for group in groups]
        alive = [count - 2 for count, group in zip(leaves, groups, strict=True) if not is_dead(group)]
        assert line["tree/num_expansions"] == sum(leaves) - len(trees)
        assert line["tree/num_expansions"] == 2 * len(trees) + line["tree/num_rescue_expansions"]
        assert line["tree/num_rescue_expansions"] <= 2 * line["tree/num_rescue_prompts"]
        assert line["tree/num_rescue_prompts"] == line["tree/num_rescued_prompts"] + line["tree/num_dead_prompts"]
        assert line["tree/frac_expansions_alive"] == pytest.approx(sum(alive) / line["tree/num_expansions"])
        assert line["tree/max_prompt_leaves"] == max(leaves)
        assert line["budget/withheld_expansions"] == 0
        same = ("tokens", "generated_tokens"), ("tool_calls", "num_tool_calls"), ("leaves", "num_leaves")
        assert all(line[f"budget/step_{ours}"] == line[f"tree/{other}"] for ours, other in same)
