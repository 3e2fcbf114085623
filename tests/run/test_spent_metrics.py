"""What a step took and where its expansions went, counted on trees that were grown for it."""

from typing import Any

import pytest
from treegrpo_cli.run.spent_metrics import spent_metrics

from tests.rollout.test_waves import all_dead, grow, half_dead, num_leaves, tokens_of, wave_config


@pytest.mark.parametrize(
    ("rollout", "budget", "withheld"),
    [
        ({}, {}, 0),
        ({}, {"step_leaves": 40}, 20),
        ({}, {"prompt_leaves": 4}, 36),
        ({"allocation": "even"}, {"step_tokens": 1}, 48),
        ({"rescue": "dead", "max_rescues": 3, "allocation": "even"}, {}, 0),
    ],
)
def test_expansions_are_those_that_were_started_and_withheld(
    rollout: dict[str, Any], budget: dict[str, int], withheld: int
) -> None:
    config = wave_config(rollout, budget=budget)
    step, _ = grow(config, half_dead)
    metrics, leaves = spent_metrics(step, config.rollout, 2.5), num_leaves(step)
    rescues = sum(grown.num_rescues for grown in step)
    assert metrics["budget/withheld_expansions"] == withheld
    assert metrics["tree/num_expansions"] == sum(leaves) - 12 == 48 - withheld + rescues
    alive = sum(count - 2 for count, grown in zip(leaves, step, strict=True) if grown.is_alive)
    assert metrics["tree/frac_expansions_alive"] == pytest.approx(alive / max(sum(leaves) - 12, 1))
    assert metrics["tree/max_prompt_leaves"] == max(leaves)
    assert metrics["tree/num_rescue_expansions"] == rescues
    assert metrics["budget/step_tokens"] == tokens_of(step, 99)
    assert (metrics["budget/step_leaves"], metrics["budget/step_seconds"]) == (sum(leaves), 2.5)


def test_rescued_prompts_are_those_that_differ_now() -> None:
    config = wave_config({"rescue": "dead", "max_rescues": 3, "allocation": "even"})
    step, _ = grow(config, all_dead)
    metrics = spent_metrics(step, config.rollout, 1.0)
    assert [metrics[f"tree/{name}"] for name in ("num_rescue_prompts", "num_rescued_prompts")] == [6, 0]
    assert metrics["tree/num_rescue_expansions"] == 18


def test_a_step_in_which_every_prompt_failed_took_nothing() -> None:
    config = wave_config()
    step, _ = grow(config, lambda _: "broken")
    metrics = spent_metrics(step, config.rollout, 1.0)
    assert {value for name, value in metrics.items() if name != "budget/step_seconds"} == {0.0}
