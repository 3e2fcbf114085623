"""Samples of completions: whose they are, and how they are shown."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from treegrpo_cli.config.files import make_config
from treegrpo_cli.rewards import LeafReward, RewardFailure
from treegrpo_cli.run.samples import Sample, draw_samples, draw_table, table_of
from treegrpo_cli.run.tree_metrics import reward_metrics


def grown(name: str, leaves: int) -> Any:
    """As much of a tree as samples are drawn from: node n's completion is `name` and n; nodes came in reverse."""
    return SimpleNamespace(
        in_key_order=lambda: list(reversed(range(leaves + 1))),
        rewards={leaf: LeafReward(leaf / 2, {"f": leaf / 4, "g": None}) for leaf in range(leaves)},
        rollout=lambda leaf: SimpleNamespace(prompt=f"prompt {name}", completion=f"{name}{leaf}"),
    )


def test_samples_are_kept_leaves_with_their_texts_and_rewards() -> None:
    advantages = np.array([9.0, 8.0, 7.0, 6.0, 5.0])  # of a1, a0, b2, b1, b0
    samples = draw_samples([grown("a", 1), grown("b", 2)], 9, [0, 1], advantages)
    assert samples == [
        Sample("prompt a", "a0", 0.0, {"f": 0.0, "g": None}, 8.0),
        Sample("prompt b", "b0", 0.0, {"f": 0.0, "g": None}, 5.0),
        Sample("prompt b", "b1", 0.5, {"f": 0.25, "g": None}, 6.0),
    ]
    assert draw_samples([grown("a", 1)], 0, [0, 1], advantages) == []


def test_what_is_unscored_has_no_advantage() -> None:
    tree = grown("a", 1)
    tree.rewards[0] = LeafReward(None, {"f": None}, RewardFailure("it failed"))
    [sample] = draw_samples([tree], 1, [0], np.zeros(2))
    assert sample.advantage is None


def test_samples_are_distinct_in_order_and_those_of_their_key() -> None:
    trees = [grown(name, 5) for name in "abcd"]
    draw = lambda step: draw_samples(trees, 6, [7, step], np.zeros(24))  # noqa: E731
    drawn = [[sample.completion for sample in draw(step)] for step in range(30)]
    assert drawn == [[sample.completion for sample in draw(step)] for step in range(30)]
    assert all(len(set(one)) == 6 and one == sorted(one) for one in drawn)
    assert {name for one in drawn for name in one} == {f"{tree}{leaf}" for tree in "abcd" for leaf in range(5)}


def test_true_is_a_few_completions() -> None:
    asked = ({"train": {"log_completions": True}}, {"log_completions": True}, {"train": {"log_completions": 9}}, {})
    assert [make_config(one).train.log_completions for one in asked] == [4, 4, 9, 0]


def test_every_reward_function_has_a_mean_and_a_deviation() -> None:
    leaves = [
        LeafReward(None, {"f": 1.0, "g": None}),
        LeafReward(4.0, {"f": 3.0, "g": 5.0}),
        LeafReward(None, {"f": None, "g": None}, RewardFailure("it failed")),
    ]
    deviation = 2**0.5  # of 1 and 3, with n - 1
    assert reward_metrics(leaves) == pytest.approx(
        {"rewards/f/mean": 2.0, "rewards/f/std": deviation, "rewards/g/mean": 5.0, "rewards/g/std": 0.0}
    )


def test_a_table_has_a_column_a_function_and_their_sum_where_there_are_several() -> None:
    one, two = [Sample("p", "c", 1.0, {"f": 1.0}, 0.7)], [Sample("p", "c", 1.5, {"f": 1.0, "g": 0.5})]
    assert table_of(one) == (["prompt", "completion", "f", "advantage"], [["p", "c", 1.0, 0.7]])
    columns, rows = table_of(two)
    assert columns == ["prompt", "completion", "f", "g", "reward", "advantage"]
    assert rows == [["p", "c", 1.0, 0.5, 1.5, None]]


def drawn(*samples: Sample) -> str:
    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(draw_table(list(samples), step=12))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_shows_step_texts_and_rewards() -> None:
    shown = drawn(Sample("What?", "[bold]<answer>Lima</answer>", 0.25, {"exact_match": 0.25}))
    for text in ("step 12", "prompt", "completion", "exact_match", "What?", "[bold]<answer>Lima</answer>", "0.250"):
        assert text in shown


def test_what_is_unscored_is_a_dash_and_control_characters_do_nothing() -> None:
    shown = drawn(Sample("p", "a\x1b[31mb", None, {"f": None}))
    assert "–" in shown
    assert "a\\x1b[31mb" in shown
    assert "\x1b" not in shown


def test_a_long_text_is_cut_on_a_terminal() -> None:
    shown = drawn(Sample("p", "x" * 50_000, 0.0, {"f": 0.0}))
    assert shown.count("x") == 2000
    assert "…" in shown
