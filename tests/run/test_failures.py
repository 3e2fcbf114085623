"""What fails is counted, named once and left out; too much of it ends a run behind a checkpoint, with exit code 1."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from treegrpo_cli.config.files import dump_config, make_config
from treegrpo_cli.errors import FailedRunError
from treegrpo_cli.rollout.collect import Grown
from treegrpo_cli.rollout.failures import Failure
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.run.doubts import Doubts, Signs
from treegrpo_cli.run.failures import MIN_PROMPTS, FailureCount, FailureLog
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.train.checkpoint import checkpoints
from treegrpo_cli.types import Task

from tests.runs import small_run, treegrpo

TWO_TREES_OF_THREE = {"num_trees": 2, "num_expansions": 2, "num_rounds": 1}


def grown(number: int, kept: list[int], *kinds: Any) -> Grown:
    """A prompt with a tree for each number of kept leaves, and failures of these kinds."""
    trees: list[Any] = [SimpleNamespace(rewards=dict.fromkeys(range(leaves))) for leaves in kept]
    return Grown(Prompt(number, f"p{number}", Task("q")), trees, [Failure(kind, f"p{number}", "why") for kind in kinds])


def counted(*groups: Grown, limit: float = 0.5) -> FailureCount:
    config = make_config({"rollout": TWO_TREES_OF_THREE, "train": {"max_failed_fraction": limit}})
    count = FailureCount(config)
    for group in groups:
        count.add(group)
    return count


def test_shares_are_of_prompts_and_of_branches() -> None:
    count = counted(grown(0, [3, 2], "tool", "reward", "reward"), grown(1, [], "prompt"), grown(2, [3, 3]))
    assert count.metrics() == {
        "failures/prompt": 1 / 3,
        "failures/reset": 0,
        "failures/tool": 1 / 12,
        "failures/reward": 2 / 12,
    }
    assert count.share == (6 + 1 + 2) / (6 + 12)  # a prompt that failed counts as six leaves, as the others have


def test_a_step_fails_beyond_the_limit_and_not_at_it() -> None:
    half = [grown(0, [], "reset"), grown(1, [3, 3])]
    counted(*half).check("step 1")
    worse = counted(grown(0, [], "reset"), grown(1, [2, 1], "tool", "tool"))  # 5 + 2 of 5 + 5
    with pytest.raises(
        FailedRunError, match=r"^70% of step 1 failed \(reset 1, tool 2\), .* 0.5; the last was .* why$"
    ):
        worse.check("step 1")


def test_nothing_at_all_is_no_failure_and_everything_may_fail_where_the_limit_is_one() -> None:
    assert counted().share == 0
    counted(grown(0, [], "prompt"), limit=1.0).check("step 1")


def test_a_rollout_is_not_ended_by_its_first_prompts() -> None:
    count = counted(*(grown(number, [], "prompt") for number in range(MIN_PROMPTS - 1)))
    count.check_so_far("the rollout")
    count.add(grown(MIN_PROMPTS, [], "prompt"))
    with pytest.raises(FailedRunError, match="100% of the rollout failed"):
        count.check_so_far("the rollout")


def test_each_kind_is_named_once_with_its_reason_and_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log = FailureLog(Reporter())
    tool = Failure("tool", "p1", "ValueError: no", 1, ("  File tool.py, line 3", "ValueError: no"))
    log.name([tool, Failure("tool", "p2", "another"), Failure("reset", "p3", "down")])
    log.name([Failure("reset", "p4", "down again")])
    assert capsys.readouterr().err.splitlines() == [
        "treegrpo: warning: a tool failed and closed its branch: ValueError: no (prompt p1, tree 1; further ones "
        "are only counted)",
        "  File tool.py, line 3",
        "ValueError: no",
        "treegrpo: warning: the environment failed to reset for a prompt: down (prompt p3; further ones are only "
        "counted)",
    ]


def signs(**counts: Any) -> Signs:
    return Signs(**({"num_leaves": 6, "num_scored": 6, "num_tool_calls": 4, "low": 0.0, "high": 1.0} | counts))


TOOLS = [{"type": "function", "function": {"name": "search"}}, {"name": "open"}]


@pytest.mark.parametrize(
    ("step", "num_steps", "said"),
    [
        (signs(), 9, None),
        (signs(num_failed_tool_calls=3), 9, None),
        (signs(num_failed_tool_calls=4), 1, "every tool call failed (4 of 4)"),
        (signs(num_scored=0), 1, "none of 6 leaves has a reward"),
        (signs(num_tool_calls=0), 2, None),
        (signs(num_tool_calls=0), 3, "no tool was called in 3 steps, although the environment has some (search, open)"),
        (signs(high=0.0), 2, None),
        (signs(high=0.0), 3, "all rewards are equal in 3 steps (now 0)"),
        (signs(num_scored=1, high=0.0), 9, None),
    ],
)
def test_a_run_that_looks_well_and_learns_nothing_says_so_once(step: Signs, num_steps: int, said: str | None) -> None:
    lines: list[str] = []
    doubts = Doubts(lines.append, TOOLS)
    for _ in range(num_steps):
        doubts.look(step)
    assert [line.startswith(said) for line in lines] == [True] if said else not lines
    for _ in range(9 if said else 0):
        doubts.look(step)
    assert len(lines) == bool(said)


def test_steps_that_differ_in_between_begin_the_count_anew() -> None:
    lines: list[str] = []
    doubts = Doubts(lines.append, TOOLS)
    for step in (signs(high=0.0), signs(high=0.0), signs(), signs(high=0.0), signs(high=0.0)):
        doubts.look(step)
    assert not lines


@pytest.mark.parametrize(
    ("dtype", "means", "said"),
    [
        ("float32", [2e-5, 0.009], []),
        ("float32", [0.011, 0.011, 0.02], [0.011]),
        ("float32", [0.02, 0.01, 0.05, 0.09, 0.11], [0.02, 0.05, 0.11]),
        ("bfloat16", [0.02, 0.09], []),
        ("bfloat16", [0.02, 0.5], [0.5]),
    ],
)
def test_an_engine_that_is_another_policy_than_the_trainers_is_said_and_again_where_it_grows(
    dtype: str, means: list[float], said: list[float]
) -> None:
    lines: list[str] = []
    doubts = Doubts(lines.append, TOOLS)
    for mean in means:
        doubts.compare(mean, 10 * mean, dtype)
    differ = "engine and trainer are two policies: their log-probabilities of a sampled token differ by"
    assert [line.split(" nats")[0] for line in lines[::2]] == [f"{differ} {mean:.2g}" for mean in said]
    assert all(f"({10 * mean:.2g} at most)" in line for mean, line in zip(said, lines[::2], strict=True))
    assert all(line.startswith("usual causes: weights that did not arrive") for line in lines[1::2])


def test_an_environment_without_tools_is_not_asked_to_call_some() -> None:
    lines: list[str] = []
    Doubts(lines.append, [], num_steps=1).look(signs(num_tool_calls=0))
    assert not lines


REWARD = """
calls = []

def reward(prompts, completions, **_):
    calls.append(len(prompts))
    if {condition}:
        raise ValueError("the judge is down")
    return [float(len(completion) % 5) for completion in completions]
"""


def settings_with(folder: Path, model: Path, condition: str, **train_settings: Any) -> dict[str, Any]:
    (folder / "judge.py").write_text(REWARD.format(condition=condition))
    steps = {"num_steps": 3, "eval_steps": 0, "save_steps": 0} | train_settings
    return small_run(folder, model, train=steps, reward={"functions": [f"{folder / 'judge.py'}:reward"]})


def test_a_run_in_which_too_much_fails_ends_behind_a_checkpoint_with_exit_code_1(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = settings_with(tmp_path, tiny_model_dir, "len(calls) > 8")  # two steps of two prompts and two trees
    (tmp_path / "c.toml").write_text(dump_config(make_config(settings)))
    done = treegrpo("train", "c.toml", "--quiet", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("treegrpo: warning: a reward function failed and left a leaf unscored")
    assert "ValueError: the judge is down" in lines[0]
    assert lines[-2].endswith("stopped after step 2; continue with the same command and --resume")
    assert lines[-1].startswith(
        "treegrpo: 100% of step 3 failed (reward 12), more than train.max_failed_fraction = 0.5"
    )
    assert [path.name for path in checkpoints(settings["output_dir"])] == ["checkpoint-2"]


def test_below_the_limit_a_failed_leaf_is_counted_and_left_out_of_every_mean(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = settings_with(tmp_path, tiny_model_dir, "len(calls) % 4 == 1")
    train(make_config(settings), Reporter(quiet=True))
    lines = (Path(settings["output_dir"]) / "metrics.jsonl").read_bytes().splitlines()
    steps = [orjson.loads(line) for line in lines]
    assert [step["failures/reward"] for step in steps] == [0.25] * 3
    assert all(step["rewards/reward/mean"] == pytest.approx(step["reward"]) for step in steps)


def test_a_step_of_which_nothing_is_left_changes_no_weight_and_the_run_goes_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = settings_with(tmp_path, tiny_model_dir, "False", max_failed_fraction=1.0, num_steps=2)
    settings["rollout"]["max_prompt_tokens"] = 2
    train(make_config(settings), Reporter(quiet=True))
    lines = (Path(settings["output_dir"]) / "metrics.jsonl").read_bytes().splitlines()
    steps = [orjson.loads(line) for line in lines]
    assert [(step["failures/prompt"], step["tree/num_leaves"], step["grad_norm"]) for step in steps] == [(1, 0, 0)] * 2


BROKEN_WORLD = """
class World:
    tools = ()
    takes_cut_turns = True

    def reset(self, task):
        return 0, [{"role": "user", "content": task.question}]

    def step(self, state, action):
        raise RuntimeError("the index is gone")
"""


@pytest.mark.parametrize(
    ("errors", "code", "said"),
    [
        ("close", 1, "treegrpo: 100% of the rollout failed (tool "),
        ("show", 0, "treegrpo: warning: every tool call failed ("),
    ],
)
def test_a_rollout_in_which_every_tool_call_fails_does_not_end_as_if_all_were_well(
    tiny_model_dir: Path, tmp_path: Path, errors: str, code: int, said: str
) -> None:
    (tmp_path / "world.py").write_text(BROKEN_WORLD)
    settings = small_run(tmp_path, tiny_model_dir)
    settings["environment"] = {"name": f"{tmp_path / 'world.py'}:World", "tool_errors": errors}
    (tmp_path / "c.toml").write_text(dump_config(make_config(settings)))
    done = treegrpo("rollout", "c.toml", "--output", "t.jsonl", "--quiet", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith(said)]


def test_a_prompt_that_failed_counts_as_many_leaves_as_budgets_left_the_others() -> None:
    count = counted(grown(0, [1, 1]), grown(1, [], "reset"), grown(2, [1, 1]))
    assert count.share == 2 / (2 + 4)
