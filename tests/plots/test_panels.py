"""What is drawn is what the metrics' definitions give, on runs that are written by hand."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from treegrpo_cli.errors import UserError
from treegrpo_cli.plots import lines as lines_module
from treegrpo_cli.plots.groups import Group
from treegrpo_cli.plots.history import History, Series
from treegrpo_cli.plots.lines import MAX_POINTS, line_of
from treegrpo_cli.plots.panels import PANELS, Drawing, Panel, View, make_panels
from treegrpo_cli.plots.statistics import draw_again

from tests.plots.written_runs import Line, evaluation, scored, step, tree_steps


def drawing_of(*runs: Sequence[Line], view: View | None = None, only: Sequence[str] = (), **more: object) -> Drawing:
    groups = [Group(f"run {place}", [History(run)]) for place, run in enumerate(runs)]
    return make_panels(groups, view or View(), only, **more)  # type: ignore[arg-type]


def panel_of(name: str, *runs: Sequence[Line], view: View | None = None) -> Panel:
    [panel] = drawing_of(*runs, view=view, only=[name]).panels
    return panel


def points(panel: Panel, group: int = 0, part: int = 0) -> list[tuple[float, float]]:
    [line] = [line for line in panel.lines if (line.group, line.part) == (group, part)]
    return list(zip(line.x.tolist(), [round(y, 9) for y in line.y.tolist()], strict=True))


def test_a_run_of_trees_has_every_panel_but_the_one_of_two_kinds() -> None:
    assert [panel.name for panel in drawing_of(scored(tree_steps(3))).panels] == list(PANELS)[:-1]


def test_the_score_has_the_interval_that_the_run_tells() -> None:
    [line] = panel_of("score", scored(tree_steps(2))).lines
    assert line.y.tolist() == [0.1, 0.2, 0.3]
    assert line.low is not None
    assert line.high is not None
    assert np.allclose(line.high - line.low, 0.2)


@pytest.mark.parametrize(("name", "values"), [("reward", [0.1, 0.2]), ("entropy", [1.0, 0.5])])
def test_reward_and_entropy_are_the_steps_own(name: str, values: list[float]) -> None:
    assert points(panel_of(name, tree_steps(2))) == list(zip([1.0, 2.0], values, strict=True))


def test_one_run_has_a_line_a_depth_and_several_a_line_over_depths() -> None:
    alone = panel_of("signal", tree_steps(3))
    assert alone.parts == ["depth 1", "depth 2"]
    assert points(alone, -1, 1) == [(1, 0.25), (2, 0.5), (3, 0.75)]
    several = panel_of("signal", tree_steps(3), tree_steps(1))
    assert points(several, 0) == [(1, 0.5), (2, 0.5)]
    assert points(several, 1) == [(1, 0.5), (2, 0.25)]


def test_tokens_are_those_sampled_and_those_forwarded() -> None:
    panel = panel_of("tokens", tree_steps(2))
    assert (points(panel), points(panel, part=1)) == ([(1, 100), (2, 100)], [(1, 300), (2, 300)])


def test_seconds_are_means_a_step_and_slivers_are_part_of_the_rest() -> None:
    panel = panel_of("seconds", scored(tree_steps(2)))
    assert panel.parts == ["rollout", "update", "evaluation", "rest"]
    [bar] = panel.bars
    evaluations = 3 * 3.0 / 2  # three of 3 s, over two steps
    assert bar.values == pytest.approx([1.0, 0.75, evaluations, 2.0 - 1.75])


def test_sharing_is_what_sampling_and_update_save() -> None:
    panel = panel_of("sharing", tree_steps(2))
    assert points(panel) == [(1, 0.25), (2, 0.25)]
    assert points(panel, part=2) == [(1, 1 - 300 / 400), (2, 1 - 300 / 400)]
    cached = panel_of("sharing", [step(1, tree__sharing_ratio=0.5, tree__prefix_cache_hit_ratio=0.75)])
    assert points(cached, part=1) == [(1, 0.75)]


def test_the_cost_of_trees_as_chains_counts_a_turn_once_a_leaf() -> None:
    tokens, calls = (panel_of(name, tree_steps(3, shared=0.5)) for name in ("cost", "calls"))
    assert points(tokens) == [(1, 100), (2, 200), (3, 300)]
    assert points(tokens, part=1) == [(1, 200), (2, 400), (3, 600)]
    assert points(calls) == [(1, 8), (2, 16), (3, 24)]
    assert points(calls, part=1) == [(1, 16), (2, 32), (3, 48)]


def test_trees_and_chains_are_set_against_each_other_for_what_they_sampled() -> None:
    trees, chains = scored(tree_steps(2)), scored(tree_steps(1, shared=0.0))
    panel = panel_of("per-token", trees, chains)
    assert points(panel, 0, 0) == [(0, 0.1), (100, 0.2), (200, 0.3)]
    assert points(panel, 1, 1) == [(0, 0.1), (100, 0.2)]
    for runs, view in (([trees], View()), ([trees, chains], View("tokens"))):
        with pytest.raises(UserError, match="--only per-token: needs"):
            panel_of("per-token", *runs, view=view)


def test_the_axis_may_be_what_was_spent() -> None:
    panel = panel_of("reward", tree_steps(2), view=View("tool-calls"))
    assert panel.x_label == "tool calls"
    assert points(panel) == [(8, 0.1), (16, 0.2)]


def test_runs_may_lack_what_others_have() -> None:
    lines = drawing_of([step(1)], scored(tree_steps(2)), [evaluation(0, 0.5)])
    assert [len(panel.lines) for panel in lines.panels if panel.name in ("score", "reward", "entropy")] == [2, 2, 1]


def test_a_metric_is_a_panel_of_its_own_and_a_mistake_names_the_nearest() -> None:
    drawing = drawing_of([step(1)], tree_steps(2), metrics=["entropy"])
    assert [(panel.name, len(panel.lines)) for panel in drawing.panels] == [("entropy", 1)]
    with pytest.raises(UserError, match=r"--metric 'entropie': .* did you mean 'entropy'"):
        drawing_of(tree_steps(1), metrics=["entropie"])


def test_what_is_asked_for_and_not_there_is_said() -> None:
    with pytest.raises(UserError, match="--only score: no run has evaluations"):
        drawing_of(tree_steps(1), only=["score"])
    with pytest.raises(UserError, match="nothing to draw"):
        drawing_of([{"step": 1}])


def naive_band(runs: Sequence[Sequence[float]], key: str) -> tuple[list[float], list[float], list[float]]:
    """Means over runs, and the ends of the 95% of their resamples; of fewer than four runs none is left out."""
    draws = draw_again(len(runs), key).tolist()
    means, lows, highs = [], [], []
    for values in zip(*runs, strict=True):
        again = sorted(statistics.fmean(values[place] for place in drawn) for drawn in draws)
        means.append(statistics.fmean(values))
        lows.append(again[math.ceil(0.025 * len(again)) - 1])
        highs.append(again[math.ceil(0.975 * len(again)) - 1])
    return means, lows, highs


def test_runs_of_a_group_are_their_mean_with_a_bootstrap_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treegrpo_cli.plots.statistics.NUM_RESAMPLES", 200)
    rewards = [[0.1, 0.4, 0.5], [0.2, 0.1, 0.9], [0.0, 0.3, 0.2]]
    runs = [History(step(place, reward=reward) for place, reward in enumerate(run, 1)) for run in rewards]
    [panel] = make_panels([Group("seeds", runs)], View(), ["reward"]).panels
    [line] = panel.lines
    mean, low, high = naive_band(rewards, "seeds")
    assert line.x.tolist() == [1, 2, 3]
    assert line.low is not None
    assert line.high is not None
    assert [line.y.tolist(), line.low.tolist(), line.high.tolist()] == [
        pytest.approx(ends) for ends in (mean, low, high)
    ]


def test_the_legend_says_of_each_kind_of_band_what_it_is() -> None:
    runs = [History(scored(tree_steps(2), first)) for first in (0.1, 0.2)]
    seeds, alone = Group("seeds", runs), Group("alone", runs[:1])
    over_questions, over_seeds = "95% interval over questions", "lines: {}; bands: 95% bootstrap interval"
    for groups, note in (
        ([alone], f"bands: {over_questions}"),
        ([seeds], over_seeds.format("mean of 2 seeds")),
        (
            [seeds, alone],
            f"{over_seeds.format('interquartile mean over seeds')}\nbands of single runs: {over_questions}",
        ),
    ):
        assert make_panels(groups, View(), ["score"]).note == note


def test_a_depth_that_no_step_has_a_number_of_leaves_the_others() -> None:
    lacking = [{**line, "tree/abs_advantage_depth_3": None} for line in tree_steps(2)]
    assert points(panel_of("signal", lacking, tree_steps(2)), 0) == [(1, 0.5), (2, 0.375)]


def test_a_group_ends_with_its_shortest_run_and_interpolates_between_places() -> None:
    one = Series(np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0]))
    other = Series(np.array([5.0, 15.0]), np.array([1.0, 3.0]))
    line = line_of([one, other], "key")
    assert line.x.tolist() == [5, 10, 15]
    assert line.y.tolist() == [(0.5 + 1) / 2, (1 + 2) / 2, (1.5 + 3) / 2]


def test_runs_of_a_group_that_have_no_place_in_common_still_draw() -> None:
    one, other = (Series(np.array([x]), np.array([y])) for x, y in ((1.0, 0.5), (3.0, 1.5)))
    assert line_of([one, other], "key").y.tolist() == [1.0]


def test_a_hundred_thousand_steps_are_drawn_as_means_of_neighbours() -> None:
    y = np.random.default_rng(0).random(100_000)
    line = line_of([Series(np.arange(1.0, 100_001), y)], "key")
    share = math.ceil(100_000 / MAX_POINTS)
    assert len(line.x) <= MAX_POINTS
    assert line.y[7] == pytest.approx(statistics.fmean(y[7 * share : 8 * share]))
    assert line.x[-1] == pytest.approx(100_000 - (share - 1) / 2)


def test_smoothing_is_a_mean_of_the_last_steps_and_keeps_what_was_there() -> None:
    [line] = panel_of("reward", tree_steps(4), view=View(smooth=3)).lines
    assert line.y.tolist() == pytest.approx([0.1, 0.15, 0.2, 0.3])
    assert line.faint is not None
    assert line.faint.tolist() == [0.1, 0.2, 0.3, 0.4]
    [score] = panel_of("score", scored(tree_steps(2)), view=View(smooth=3)).lines
    assert score.y.tolist() == [0.1, 0.2, 0.3]
    assert lines_module.smoothed_over(np.array([np.nan, 1.0]), 2).tolist()[1] == 1.0
