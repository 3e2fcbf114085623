"""Rewards: the table of the format terms, normalisation, and other people's signatures."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import RewardConfig
from treegrpo_cli.envs.tools import ToolState
from treegrpo_cli.errors import UserError
from treegrpo_cli.rewards import load_rewards
from treegrpo_cli.rewards.answers import normalise
from treegrpo_cli.types import Rollout, Task

SEARCH = (
    "<think>a</think>\n<search>b</search>",
    "\n\n<information>Doc 1(Title: Lima) The city.</information>\n\n",
)


def rollout(*turns: tuple[str, str], truth: Any = "Lima", state: Any = None, **task: Any) -> Rollout:
    return Rollout(
        Task("Capital?", truth, **task),
        prompt="PROMPT",
        prompt_messages=({"role": "user", "content": "Hi"},),
        completion="".join(text + shown for text, shown in turns),
        turns=turns,
        messages=({"role": "assistant", "content": "abc"},),
        state=state,
    )


def answered(answer: str, *, think: str = "<think>so</think> ") -> tuple[str, str]:
    return f"{think}<answer>{answer}</answer>", ""


def score(*rollouts: Rollout, **config: Any) -> list[float | None]:
    return asyncio.run(load_rewards(RewardConfig(**config)).reward(rollouts))


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
    with pytest.raises(UserError, match="no answer to compare with in the row of 'Capital\\?'"):
        score(rollout(answered("x"), truth=None))


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
        ("def reward(completions): raise SystemExit(3)", "raised RuntimeError: SystemExit"),
        ("def reward(completions, hop): return [1]", "needs 'hop'; did you mean 'hops'"),
        ("def reward(solution_str): return {'acc': 1}", "the dict it returned has no `score`"),
        ("def reward(solution_str): return float('nan')", "must give finite numbers or None, got nan"),
        ("def reward(text): return 1", r"must take \(prompts, completions.*got \(text\)"),
        ("reward = 3", "is no function"),
        ("x = 3", "has no 'reward'"),
        ("raise SystemExit(3)", "cannot import .*mine.py: SystemExit: 3"),
        ("import nothing_of_this_name", "cannot import .*mine.py: ModuleNotFoundError"),
    ],
)
def test_what_a_reward_does_wrong_is_said_with_its_name(tmp_path: Path, body: str, message: str) -> None:
    path = write_reward(tmp_path, body)
    with pytest.raises(UserError, match=message) as error:
        score(rollout(("abc", ""), columns={"hops": 1}), functions=[path])
    assert "mine.py" in str(error.value)


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
