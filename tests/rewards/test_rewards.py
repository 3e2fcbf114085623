"""Rewards: the table of the format terms, normalisation, and other people's signatures."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import RewardConfig
from treegrpo_cli.envs.tools import ToolState
from treegrpo_cli.errors import UserError
from treegrpo_cli.rewards import LeafReward, load_rewards
from treegrpo_cli.rewards.answers import normalise
from treegrpo_cli.types import Rollout, Task

SEARCH = (
    "<think>a</think>\n<search>b</search>",
    "\n\n<information>Doc 1(Title: Lima) The city.</information>\n\n",
)


def rollout(
    *turns: tuple[str, str], truth: Any = "Lima", state: Any = None, env_reward: float | None = None, **task: Any
) -> Rollout:
    return Rollout(
        Task("Capital?", truth, **task),
        prompt="PROMPT",
        prompt_messages=({"role": "user", "content": "Hi"},),
        completion="".join(text + shown for text, shown in turns),
        turns=turns,
        messages=({"role": "assistant", "content": "abc"},),
        state=state,
        env_reward=env_reward,
    )


def answered(answer: str, *, think: str = "<think>so</think> ") -> tuple[str, str]:
    return f"{think}<answer>{answer}</answer>", ""


def judge(*rollouts: Rollout, **config: Any) -> list[LeafReward]:
    return asyncio.run(load_rewards(RewardConfig(**config)).reward(rollouts))


def score(*rollouts: Rollout, **config: Any) -> list[float | None]:
    """The weighted sums, where nothing fails."""
    leaves = judge(*rollouts, **config)
    assert [leaf.failure for leaf in leaves] == [None] * len(leaves)
    return [leaf.reward for leaf in leaves]


def reasons(*rollouts: Rollout, **config: Any) -> list[str | None]:
    return [leaf.failure and leaf.failure.reason for leaf in judge(*rollouts, **config)]


def write_reward(path: Path, body: str) -> str:
    (path / "mine.py").write_text(body)
    return f"{path / 'mine.py'}:reward"


@pytest.mark.parametrize(
    ("answer", "truth", "exact", "f1"),
    [
        ("Lima", "lima", 1, 1),
        (" the  LIMA. ", "Lima", 1, 1),
        ("Lima, Peru", "Lima", 0, 2 / 3),
        ("Lima", ["Cusco", "Lima"], 1, 1),
        ("Lima", {"target": ["Cusco", "Lima"]}, 1, 1),
        ("Lima", {"target": "Lima"}, 1, 1),
        ("42", 42, 1, 1),
        ("an old man and the sea", "The Old Man and the Sea", 1, 1),
        ("red red fox", "red fox fox", 0, 2 / 3),
        ("Quito", "Lima", 0, 0),
        ("", "Lima", 0, 0),
        ("", "A", 0, 0),
        ("A", "a", 1, 1),
        ("+", "-", 0, 0),
    ],
)
def test_answers_are_compared_after_normalisation(answer: str, truth: Any, exact: float, f1: float) -> None:
    one = rollout(answered(answer), truth=truth)
    assert score(one, functions=["exact_match"]) == [exact]
    assert score(one, functions=["f1"]) == [pytest.approx(f1)]


def test_normalisation_never_makes_a_text_empty() -> None:
    assert normalise("The  U.S., an  example!") == "us example"
    assert normalise("The") == "the"


def test_the_last_answer_of_the_agent_counts() -> None:
    assert score(rollout(("<answer>Quito</answer> or <answer>Lima</answer>", ""))) == [1]
    assert score(rollout(("<answer>Lima</answer> or <answer>Quito</answer>", ""))) == [0]


def test_an_answer_inside_an_observation_is_not_the_agents() -> None:
    planted = ("<search>x</search>", "\n\n<information><answer>Lima</answer></information>\n\n")
    assert score(rollout(planted, ("I give up", "")), functions=["exact_match"]) == [0]
    assert score(rollout(planted, ("<answer>Quito</answer>", planted[1])), functions=["exact_match"]) == [0]


def test_an_answer_does_not_reach_across_an_observation() -> None:
    assert score(rollout(("<answer>", "Lima"), ("</answer>", ""))) == [0]


SHOWN = ToolState(("Doc 1(Title: Peru) its capital is Lima.",))
MALFORMED_RIGHT = ("<answer>Lima</answer>", "")


@pytest.mark.parametrize(
    ("turns", "state", "reward"),
    [
        ([SEARCH, answered("Lima")], SHOWN, 1.0),
        ([answered("Lima")], None, 1.0),
        ([MALFORMED_RIGHT], None, 0.75),
        ([SEARCH, answered("Quito")], ToolState(("nothing",)), 0.25),
        ([SEARCH, answered("Quito")], SHOWN, 0.25 + 0.125),
        ([SEARCH, answered("")], SHOWN, 0.25 + 0.125),
        ([SEARCH, answered("Quito", think="")], SHOWN, 0.0625),
        ([SEARCH, ("<think>hm</think>", "")], SHOWN, 0.0),
        ([], None, 0.0),
    ],
)
def test_format_terms_follow_the_table(turns: list[tuple[str, str]], state: Any, reward: float) -> None:
    terms = {"structure": 0.25, "final_format": 0.0625, "retrieval": 0.125}
    assert score(rollout(*turns, state=state), functions=["format"], **terms) == [reward]


def test_a_golden_answer_counts_as_shown_only_as_whole_words() -> None:
    terms = {"functions": ["format"], "structure": 0.25, "retrieval": 0.125}
    wrong = [SEARCH, answered("Quito")]
    assert score(rollout(*wrong, state=ToolState(("Limassol is a port",))), **terms) == [0.25]


WELL, MALFORMED = 1.0, 0.8


@pytest.mark.parametrize(
    ("turns", "reward"),
    [
        ([SEARCH, SEARCH, answered("Lima")], WELL),
        ([("<think>a < b\n</think><search></search>\n", SEARCH[1]), answered("Lima")], WELL),
        ([("<think>2+2</think><calculate>2+2</calculate>", SEARCH[1]), answered("Lima")], WELL),
        ([(SEARCH[0], "\n\n<information></answer><think></information>\n\n"), answered("Lima")], WELL),
        ([("so " + SEARCH[0], SEARCH[1]), answered("Lima")], MALFORMED),
        ([("<search>b</search>", SEARCH[1]), answered("Lima")], MALFORMED),
        ([("<think>a</think> then <search>b</search>", SEARCH[1]), answered("Lima")], MALFORMED),
        ([("<think>a<think>b</think><search>b</search>", SEARCH[1]), answered("Lima")], MALFORMED),
        ([("<think>a</think><search>b", SEARCH[1]), answered("Lima")], MALFORMED),
        ([("<think>a</think><browse>b</browse>", SEARCH[1]), answered("Lima")], MALFORMED),
        ([(SEARCH[0], "\nThis is not an action.\n"), answered("Lima")], MALFORMED),
        ([(SEARCH[0], ""), answered("Lima")], MALFORMED),
        ([(SEARCH[0] + SEARCH[1] + "<think>x</think><answer>Lima</answer>", "")], MALFORMED),
        ([SEARCH, ("<think>x</think><answer>Lima</answer> done", "")], MALFORMED),
        ([SEARCH, ("<think>x</think><answer>Lima</answer>", "more")], MALFORMED),
        ([SEARCH, ("<answer>Lima</answer><think>x</think>", "")], MALFORMED),
    ],
)
def test_well_formed_is_the_grammar_and_nothing_else(turns: list[tuple[str, str]], reward: float) -> None:
    assert score(rollout(*turns), functions=["format"]) == [pytest.approx(reward)]


def test_rewards_add_up_by_weight() -> None:
    half = rollout(answered("Lima, Peru"))
    assert score(half, functions=["exact_match", "f1"], weights=[10.0, 0.5]) == [pytest.approx(1 / 3)]


def test_a_reward_without_an_answer_names_the_question() -> None:
    without, with_answer = rollout(answered("x"), truth=None), rollout(answered("Lima"))
    assert reasons(without, with_answer) == ["reward: no answer to compare with in the row of 'Capital?'", None]


TRL_SYNC = """
def reward(prompts, completions, hops, **columns):
    assert prompts == ["PROMPT", "PROMPT"] and columns["tag"] == ["x", None], columns
    return [None if h is None else h + len(c) for h, c in zip(hops, completions)]
"""
TRL_ASYNC = """
import asyncio
async def reward(completions, hops):
    await asyncio.sleep(0)
    return [None if h is None else h + len(c) for h, c in zip(hops, completions)]
"""


@pytest.mark.parametrize("body", [TRL_SYNC, TRL_ASYNC])
def test_a_trl_reward_gets_texts_and_columns_and_may_leave_unscored(tmp_path: Path, body: str) -> None:
    rows = [{"hops": 2, "tag": "x"}, {"hops": None}]
    both = [rollout(("abc", ""), columns=row) for row in rows]
    assert score(*both, functions=["f1", write_reward(tmp_path, body)]) == [5.0, None]


def test_a_trl_reward_gets_messages_where_the_rows_are_messages(tmp_path: Path) -> None:
    body = """
def reward(prompts, completions):
    return [p[0]["content"] == "Hi" and c[0]["role"] == "assistant" for p, c in zip(prompts, completions)]
"""
    one = rollout(("abc", ""), messages=({"role": "user", "content": "Hi"},))
    assert score(one, functions=[write_reward(tmp_path, body)]) == [1.0]


@pytest.mark.parametrize(
    "body",
    [
        "def reward(completions, answer): [a.append('x') for a in answer]; return [0.0]",
        "def reward(solution_str, ground_truth, extra_info): ground_truth.append('x'); return 0.0",
        "def reward(solution_str, ground_truth, extra_info): extra_info['more'].append('x'); return 0.0",
    ],
)
def test_what_a_reward_does_to_its_arguments_changes_no_row(tmp_path: Path, body: str) -> None:
    columns: dict[str, Any] = {"answer": ["Lima"], "extra_info": {"more": ["y"]}}
    one = rollout(("abc", ""), truth=columns["answer"], columns=columns)
    assert score(one, functions=[write_reward(tmp_path, body)]) == [0.0]
    assert columns == {"answer": ["Lima"], "extra_info": {"more": ["y"]}}


@pytest.mark.parametrize("returned", ["0.5", "{'score': 0.5, 'acc': 1}"])
@pytest.mark.parametrize("prefix", ["", "async "])
def test_a_verl_reward_gets_what_verl_gives(tmp_path: Path, returned: str, prefix: str) -> None:
    body = f"""
{prefix}def reward(data_source, solution_str, ground_truth, extra_info=None):
    assert (data_source, solution_str, ground_truth, extra_info) == ("nq", "abcSHOWN", "Lima", {{"index": 3}})
    return {returned}
"""
    one = rollout(("abc", "SHOWN"), data_source="nq", columns={"extra_info": {"index": 3}})
    assert score(one, functions=[write_reward(tmp_path, body)]) == [0.5]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def reward(completions): return [float('nan')]", "must give finite numbers or None, got nan"),
        ("def reward(completions): return [float('inf')]", "must give finite numbers or None, got inf"),
        ("def reward(completions): return ['1']", "must give finite numbers or None, got '1'"),
        ("def reward(completions): return [[1]]", r"must give numbers or None, got \[1\]"),
        ("def reward(completions): return [1, 2]", "returned 2 rewards for 1 completions"),
        ("def reward(completions): return 1.0", "must return a list of numbers, got a float"),
        ("def reward(completions): return None", "must return a list of numbers, got a NoneType"),
        ("def reward(completions): return {}['x']", "raised KeyError: 'x'"),
        ("def reward(completions): raise SystemExit(3)", "raised SystemExit: 3"),
        ("async def reward(completions): raise SystemExit(3)", "raised SystemExit: 3"),
        ("import asyncio\nasync def reward(completions): raise asyncio.CancelledError", "raised CancelledError"),
        ("import asyncio\ndef reward(solution_str): raise asyncio.CancelledError('x')", "raised CancelledError: x"),
        ("def reward(completions): raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("def reward(completions): raise ValueError('\\ud800')", r"raised ValueError: \?"),
        ("def reward(completions, hop): return [1]", "needs 'hop'; did you mean 'hops'"),
        ("def reward(solution_str): return {'acc': 1}", "the dict it returned has no `score`"),
        (
            "class Odd(list):\n def __len__(self): raise SystemExit(7)\ndef reward(completions): return Odd([1])",
            "what it returned raised SystemExit: 7",
        ),
        (
            "class Odd(dict):\n def __contains__(self, k): raise SystemExit(7)\ndef reward(solution_str): return Odd()",
            "what it returned raised SystemExit: 7",
        ),
        (
            "class Odd:\n @property\n def __class__(self): raise SystemExit(9)\ndef reward(completions): return Odd()",
            "raised SystemExit: 9",
        ),
        ("def reward(solution_str): return float('nan')", "must give finite numbers or None, got nan"),
        (
            "class Odd:\n def __float__(self): return 1 / 0\n def __repr__(self): return 1 / 0\n"
            "def reward(solution_str): return Odd()",
            "must give numbers or None, got a Odd",
        ),
    ],
)
def test_what_a_reward_does_wrong_is_the_failure_of_its_leaf(tmp_path: Path, body: str, message: str) -> None:
    path = write_reward(tmp_path, body)
    [leaf] = judge(rollout(("abc", ""), columns={"hops": 1}), functions=["exact_match", path])
    assert leaf.reward is None
    assert leaf.by_function == {"exact_match": 0.0, "reward": None}
    assert leaf.failure is not None
    assert re.match(f"reward {re.escape(path)}: {message}", leaf.failure.reason)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def reward(text): return 1", r"must take \(prompts, completions.*got \(text\)"),
        ("reward = 3", "is no function"),
        ("x = 3", "has no 'reward'"),
        ("raise SystemExit(3)", "cannot import .*mine.py: SystemExit: 3"),
        ("import nothing_of_this_name", "cannot import .*mine.py: ModuleNotFoundError"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_refused_with_its_name(tmp_path: Path, body: str, message: str) -> None:
    path = write_reward(tmp_path, body)
    with pytest.raises(UserError, match=message) as error:
        load_rewards(RewardConfig(functions=[path]))
    assert "mine.py" in str(error.value)


def test_one_wrong_value_costs_its_own_leaf_alone(tmp_path: Path) -> None:
    path = write_reward(tmp_path, "def reward(completions): return [1.0, float('nan'), 0.5]")
    three = [rollout((text, "")) for text in "abc"]
    leaves = judge(*three, functions=[path])
    assert [leaf.reward for leaf in leaves] == [1.0, None, 0.5]
    assert [leaf.failure is not None for leaf in leaves] == [False, True, False]


def test_a_failure_brings_the_traceback_of_the_users_own_code(tmp_path: Path) -> None:
    path = write_reward(tmp_path, "def inner(): return {}['x']\ndef reward(completions): return inner()")
    [leaf] = judge(rollout(("a", "")), functions=[path])
    assert leaf.failure is not None
    shown = "\n".join(leaf.failure.trace)
    assert re.findall(r"mine.py\", line (\d), in (\w+)", shown) == [("2", "reward"), ("1", "inner")]
    assert "treegrpo_cli" not in shown


def test_a_column_of_any_name_reaches_the_function(tmp_path: Path) -> None:
    path = write_reward(tmp_path, "def reward(completions, timeout_s, **columns): return timeout_s")
    assert score(rollout(("a", ""), columns={"timeout_s": 7.0, "function": "x"}), functions=[path]) == [7.0]


def test_a_verl_reward_fails_a_rollout_at_a_time(tmp_path: Path) -> None:
    path = write_reward(tmp_path, "def reward(solution_str): return 1 / (solution_str != 'b')")
    leaves = judge(*[rollout((text, "")) for text in "abc"], functions=[path])
    assert [leaf.reward for leaf in leaves] == [1.0, None, 1.0]
    assert leaves[1].failure is not None
    assert "ZeroDivisionError" in leaves[1].failure.reason


@pytest.mark.parametrize("prefix", ["", "async "])
def test_a_reward_that_does_not_answer_in_time_fails(tmp_path: Path, prefix: str) -> None:
    wait = "await asyncio.sleep(60)" if prefix else "time.sleep(60)"
    path = write_reward(tmp_path, f"import asyncio, time\n{prefix}def reward(completions): {wait}")
    expected = f"reward {path}: no answer within 0.05 s (reward.timeout_s)"
    assert reasons(rollout(("a", "")), rollout(("b", "")), functions=[path], timeout_s=0.05) == [expected, expected]


def test_the_environments_own_reward_is_a_function_like_others() -> None:
    three = [rollout(answered("Lima"), env_reward=reward, truth=None) for reward in (0.25, None, -2.0)]
    assert score(*three, functions=["environment"]) == [0.25, 0.0, -2.0]
    assert not load_rewards(RewardConfig(functions=["environment"])).needs_answer
    endless = rollout(("a", ""), env_reward=float("inf"))
    assert reasons(endless, functions=["environment"]) == [
        "reward environment: the rewards of the path's steps add up to inf"
    ]


def test_what_each_function_gave_stands_beside_the_sum() -> None:
    [leaf] = judge(rollout(answered("Lima, Peru")), functions=["exact_match", "f1"], weights=[10.0, 0.5])
    assert leaf.by_function == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}


def test_what_a_function_needs_and_no_row_has_is_known_before_the_first_rollout(tmp_path: Path) -> None:
    trl = write_reward(tmp_path, "def reward(completions, hop, level=0, **columns): ...")
    (tmp_path / "verl.py").write_text("def reward(solution_str, truth): ...")
    rewards = load_rewards(RewardConfig(functions=["f1", trl, f"{tmp_path / 'verl.py'}:reward"]))
    rows = [Task("q", columns={"hops": 1}), Task("q", columns={"level": 2})]
    first, second = rewards.problems(rows)
    assert first == f"reward {trl}: needs 'hop'; did you mean 'hops'?"
    assert second.startswith(
        f"reward {tmp_path / 'verl.py'}:reward: needs 'truth'; valid: data_source, extra_info, ground_truth, "
    )
    assert len(rewards.problems([*rows, Task("q", columns={"hop": 1})])) == 1


def test_a_function_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="functions names f1 twice; give it a weight"):
        RewardConfig(functions=["f1", "exact_match", "f1"])


def test_functions_are_called_by_short_names_where_those_differ(tmp_path: Path) -> None:
    own, other = write_reward(tmp_path, "def reward(completions): ..."), "examples/own_reward.py:brief"
    (tmp_path / "second.py").write_text("def reward(completions): ...")
    same = f"{tmp_path / 'second.py'}:reward"
    assert load_rewards(RewardConfig(functions=["f1", own, other])).names == ["f1", "reward", "brief"]
    assert load_rewards(RewardConfig(functions=[own, same, other])).names == [own, same, "brief"]


@pytest.mark.parametrize(
    "body",
    [
        "def reward(completions, states): return [s + len(c) for s, c in zip(states, completions)]",
        "def reward(completions, rollouts): return [r.state + len(r.completion) for r in rollouts]",
        "def reward(solution_str, state): return state + len(solution_str)",
        "def reward(solution_str, rollout): return rollout.state + len(solution_str)",
        "def reward(solution_str, states): return states[0] + len(solution_str)",
        "def reward(solution_str, rollouts): return rollouts[0].state + len(solution_str)",
    ],
)
def test_a_reward_of_either_signature_sees_the_environments_state(tmp_path: Path, body: str) -> None:
    both = [rollout(("a", ""), state=10), rollout(("bcd", ""), state=20)]
    assert score(*both, functions=[write_reward(tmp_path, body)]) == [11, 23]


def test_a_column_goes_before_what_the_environment_offers_under_its_name(tmp_path: Path) -> None:
    path = write_reward(tmp_path, "def reward(completions, states): return [len(state) for state in states]")
    assert score(rollout(("a", ""), state=10, columns={"states": "Utah"}), functions=[path]) == [4]


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown 'exact_mach'; did you mean 'exact_match'"):
        load_rewards(RewardConfig(functions=["exact_mach"]))


def test_built_in_rewards_need_an_answer_and_others_may_not(tmp_path: Path) -> None:
    own = write_reward(tmp_path, "def reward(completions): return [0.0]")
    assert load_rewards(RewardConfig(functions=["f1"])).needs_answer
    assert not load_rewards(RewardConfig(functions=[own])).needs_answer


def test_numpy_rewards_are_taken(tmp_path: Path) -> None:
    body = "import numpy as np\ndef reward(completions): return np.ones(len(completions), dtype=np.float32) / 2"
    assert score(rollout(("a", "")), functions=[write_reward(tmp_path, body)]) == [0.5]


def test_the_example_rewards_run_as_they_stand() -> None:
    functions = ["examples/own_reward.py:brief", "examples/own_reward.py:compute_score"]
    assert score(rollout(("Lima" * 250, "")), rollout(("", "")), functions=functions) == [1.5, None]
