"""What an evaluation says of its chains: means, pass@k, votes, by their definitions."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
from treegrpo_cli.rewards import LeafReward, RewardFailure
from treegrpo_cli.rollout.collect import Grown
from treegrpo_cli.rollout.failures import Failure
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.run.evaluation import Evaluation, ks, pass_at_k
from treegrpo_cli.run.intervals import mean_with_interval
from treegrpo_cli.types import Rollout, Task


def chain(worth: LeafReward, answer: str | None) -> Any:
    """As much of a tree of one chain as an evaluation reads."""
    text = "" if answer is None else f"<answer>{answer}</answer>"
    rollout = Rollout(Task("q"), "", (), text, ((text, ""),), ())
    return SimpleNamespace(rewards={3: worth}, rollout=lambda leaf: rollout)


def asked(*questions: list[tuple[float | None, str | None]], num_samples: int) -> Evaluation:
    """An evaluation of questions by (reward, answer) of their chains, which end in any order."""
    evaluation = Evaluation(["f"], num_samples)
    for number, chains in reversed(list(enumerate(questions))):
        trees = [chain(LeafReward(reward, {"f": reward}), answer) for reward, answer in chains]
        evaluation.add(Grown(Prompt(number, str(number), Task("q")), trees, []))
    return evaluation


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in (1, 2, 5) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_draws_that_hold_one_that_passed(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_k_are_powers_of_two_and_n() -> None:
    assert [ks(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_a_question_counts_by_the_mean_of_its_chains() -> None:
    evaluation = asked([(1.0, "a"), (0.0, "b")], [(1.0, "a"), (None, "b")], [(None, None)], num_samples=2)
    assert evaluation.means() == {"f": mean_with_interval([0.5, 1.0])}
    assert evaluation.reward() == mean_with_interval([0.5, 1.0])


def test_chains_that_failed_or_were_left_out_are_unscored() -> None:
    evaluation = asked([(1.0, "a"), (None, "b")], [(0.0, "a")], [], num_samples=2)
    assert evaluation.num_unscored == 1 + 1 + 2


def test_pass_at_k_leaves_out_questions_with_fewer_scored_chains() -> None:
    evaluation = asked([(1.0, "a"), (0.5, "b"), (0.0, "c")], [(0.5, "a"), (None, "b")], num_samples=3)
    assert evaluation.pass_at(1, 1.0).mean == pytest.approx((1 / 3 + 0) / 2)
    assert evaluation.pass_at(2, 1.0) == mean_with_interval([2 / 3])
    assert evaluation.pass_at(2, 0.5) == mean_with_interval([1.0])
    assert math.isnan(evaluation.pass_at(4, 1.0).mean)


@pytest.mark.parametrize(
    ("chains", "reward"),
    [
        ([(0.0, "Quito"), (1.0, "the Lima!"), (1.0, "lima")], 1.0),
        ([(0.0, "Quito"), (1.0, "Lima")], 0.0),  # the first one given wins a tie
        ([(0.0, None), (0.0, None), (1.0, "Lima")], 1.0),  # who has no answer does not vote
        ([(None, "Quito"), (None, "Quito"), (1.0, "Lima")], 1.0),  # nor what is unscored
    ],
)
def test_the_answer_of_the_majority_counts(chains: list[tuple[float | None, str | None]], reward: float) -> None:
    assert asked(chains, num_samples=3).voted() == mean_with_interval([reward])


def test_a_question_without_answers_counts_by_its_first_chain_where_others_have_some() -> None:
    evaluation = asked([(0.25, None), (0.5, None)], [(1.0, "a"), (1.0, "a")], num_samples=2)
    assert evaluation.voted() == mean_with_interval([0.25, 1.0])
    assert asked([(0.25, None)], num_samples=1).voted() is None


def test_several_functions_have_a_mean_each_and_their_sum() -> None:
    evaluation = Evaluation(["f", "g"], 1)
    worths = [
        LeafReward(3.0, {"f": 1.0, "g": 2.0}),
        LeafReward(None, {"f": 0.0, "g": None}, RewardFailure("g failed")),
    ]
    for number, worth in enumerate(worths):
        failures = [Failure("reward", str(number), "g failed", 0)] if worth.failure else []
        evaluation.add(Grown(Prompt(number, str(number), Task("q")), [chain(worth, None)], failures))
    assert evaluation.means() == {
        "f": mean_with_interval([1.0, 0.0]),
        "g": mean_with_interval([2.0]),
        "reward": mean_with_interval([3.0]),
    }
    assert [failure.reason for failure in evaluation.failures] == ["g failed"]
