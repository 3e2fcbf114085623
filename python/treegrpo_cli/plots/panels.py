"""Groups of runs -> what there is to draw: panels of lines or bars, the same for a picture and for the terminal.

score       the evaluations' score; band: the 95% interval over questions, of several runs that over runs
reward      mean reward of a step's leaves
entropy     of the distribution that turns are sampled from
signal      mean |advantage| of the turns at each depth
tokens      sampled, and forwarded by the update, a step
seconds     a step, by phase
sharing     share that is saved: sampling, as the paper has it; prefix cache; update, every token once
cost        generated tokens so far, and what the same leaves had taken as chains
calls       the same of tool calls
per-token   the score for the generated tokens, where there are runs of trees and of chains
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from treegrpo_cli.errors import UserError
from treegrpo_cli.plots.groups import Group
from treegrpo_cli.plots.history import AXES, Array, History, Series
from treegrpo_cli.plots.lines import MAX_POINTS, Line, line_of

MAX_DEPTHS = 7
SLIVER = 0.01
"""Of a step: a phase that takes less in every group is part of the rest."""
PHASES = ("rollout", "scoring", "packing", "update", "weights", "evaluation")


@dataclass(frozen=True, slots=True, eq=False)
class Bar:
    """A group's bar: the value of each part; all runs' mean."""

    group: int
    values: Sequence[float]


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One picture: its lines or its bars. `parts` says what a line's or a value's `part` is, () where there is one."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    parts: Sequence[str] = ()
    is_ordered: bool = False
    """Whether the parts have an order, as depths do."""


@dataclass(frozen=True, slots=True)
class View:
    """How things are drawn: against what, and over how many steps a mean is taken."""

    axis: str = "step"
    smooth: int = 1


@dataclass(slots=True)
class Drawing:
    """The groups and all that is drawn of them."""

    groups: Sequence[Group]
    view: View
    panels: list[Panel] = field(default_factory=list)

    @property
    def note(self) -> str:
        """What lines and bands are, for the legend; a line for each kind of band."""
        numbers = {len(group.runs) for group in self.groups}
        of_one = "95% interval over questions" if self._has_bands_of_one_run else ""
        if max(numbers) == 1:
            return f"bands: {of_one}" if of_one else ""
        from treegrpo_cli.plots.statistics import meaning

        how = meaning(max(numbers)) if len(numbers) == 1 else "interquartile mean over seeds"
        return f"lines: {how}; bands: 95% bootstrap interval" + (f"\nbands of single runs: {of_one}" if of_one else "")

    @property
    def _has_bands_of_one_run(self) -> bool:
        lines = [line for panel in self.panels for line in panel.lines if line.low is not None]
        return any(len(self.groups[line.group].runs) == 1 for line in lines)


def make_panels(groups: Sequence[Group], view: View, only: Sequence[str] = (), metrics: Sequence[str] = ()) -> Drawing:
    """Return the panels that have anything to show: `only` these, and one of each metric; all where neither is given.

    Raises UserError for one that is asked for by name and is empty.
    """
    maker = _Maker(groups, view)
    names = only or (() if metrics else PANELS)
    drawing = Drawing(groups, view)
    for name in names:
        panel = PANELS[name](maker)
        if panel.lines or panel.bars:
            drawing.panels.append(panel)
        elif only:
            raise UserError(f"--only {name}: {EMPTY.get(name, 'no run has the metrics for it')}")
    for metric in dict.fromkeys(metrics):
        holder = next((run for group in groups for run in group.runs if metric in run), groups[0].runs[0])
        holder.check_metric(metric)
        drawing.panels.append(maker.metric(metric))
    if not drawing.panels:
        raise UserError("the runs have nothing to draw: no step is finished, and nothing is evaluated")
    return drawing


class _Maker:
    """Makes each panel of the same groups."""

    def __init__(self, groups: Sequence[Group], view: View) -> None:
        self.groups, self.view = groups, view
        self.x_label = AXES[view.axis] + (f", means of {view.smooth}" if view.smooth > 1 else "")
        if max(run.num_steps for group in groups for run in group.runs) > MAX_POINTS:
            self.x_label += " (thinned)"

    def metric(self, name: str) -> Panel:
        """Any metric, under its own name."""
        return Panel(name, name, self.x_label, "", self._lines(self._of(name), smooth=not name.startswith("eval/")))

    def score(self) -> Panel:
        name = chosen_score(self.groups)
        lines = self._lines(self._of(f"eval/{name}"), smooth=False) if name else []
        return Panel("score", "Score on held-out questions", AXES[self.view.axis], name, lines)

    def per_token(self) -> Panel:
        """Trees against chains: the same scores, for what was sampled for them."""
        name, kinds = chosen_score(self.groups), {group.has_trees for group in self.groups}
        lines = [
            line_of(found, group.name, place, 0 if group.has_trees else 1)
            for place, group in enumerate(self.groups)
            if (found := _found(group, lambda run: run.series(f"eval/{name}", "tokens")))
        ]
        is_new = len(kinds) == 2 and self.view.axis != "tokens"
        parts = ("trees", "chains")
        title = "Trees against chains: score"
        return Panel("per-token", title, AXES["tokens"], name, lines if is_new else [], parts=parts)

    def reward(self) -> Panel:
        return Panel(
            "reward", "Reward of the training rollouts", self.x_label, "mean reward", self._lines(self._of("reward"))
        )

    def entropy(self) -> Panel:
        lines = self._lines(self._of("entropy"))
        return Panel("entropy", "Entropy of the policy", self.x_label, "nats a token", lines)

    def signal(self) -> Panel:
        """One group: a line a depth. Several: a line a group, over the depths, the mean of all steps."""
        title, y_label = "Signal by depth", "mean |advantage|"
        if len(self.groups) == 1:
            depths = _chosen(sorted({depth for run in self.groups[0].runs for depth in depths_of(run)}))
            lines = [
                Line(-1, part, line.x, line.y)
                for part, depth in enumerate(depths)
                for line in self._lines(self._of(f"tree/abs_advantage_depth_{depth}"))
            ]
            parts = [f"depth {depth}" for depth in depths]
            return Panel("signal", title, self.x_label, y_label, lines, parts=parts, is_ordered=True)
        lines = [
            line_of(found, group.name, place)
            for place, group in enumerate(self.groups)
            if (found := _found(group, _by_depth))
        ]
        return Panel("signal", f"{title}, mean of all steps", "depth (turns behind the prompt)", y_label, lines)

    def tokens(self) -> Panel:
        parts = {"sampled": "tree/generated_tokens", "forwarded by the update": "tree/trained_tokens"}
        lines = self._parts([self._of(name) for name in parts.values()])
        return Panel("tokens", "Tokens", self.x_label, "tokens a step", lines, parts=list(parts))

    def seconds(self) -> Panel:
        bars = []
        for place, group in enumerate(self.groups):
            known = [found for run in group.runs if (found := seconds_of(run))]
            if known:
                bars.append(Bar(place, np.mean(known, axis=0).tolist()))
        shown = [
            part for part in range(len(PHASES)) if any(bar.values[part] > SLIVER * sum(bar.values) for bar in bars)
        ]
        rests = [sum(bar.values) - sum(bar.values[part] for part in shown) for bar in bars]
        bars = [
            Bar(bar.group, [*(bar.values[part] for part in shown), rest]) for bar, rest in zip(bars, rests, strict=True)
        ]
        parts = [*(PHASES[part] for part in shown), "rest"]
        return Panel("seconds", "Seconds by phase", "seconds a step, mean", "", (), bars, parts)

    def sharing(self) -> Panel:
        parts = {
            "sampling": self._of("tree/sharing_ratio"),
            "prefix cache hits": self._of("tree/prefix_cache_hit_ratio"),
            "update": self._saved_by_update,
        }
        lines = self._parts(list(parts.values()))
        return Panel("sharing", "Sharing", self.x_label, "share saved", lines, parts=list(parts))

    def cost(self) -> Panel:
        lines = self._parts([self._total("tree/generated_tokens"), self._total(chain_tokens)], smooth=False)
        parts = ("as sampled", "the same leaves as chains")
        return Panel(
            "cost", "Trees against chains: tokens", AXES[self.view.axis], "generated tokens", lines, parts=parts
        )

    def calls(self) -> Panel:
        has_calls = any(run.spent.tool_calls for group in self.groups for run in group.runs)
        totals = [self._total("tree/num_tool_calls"), self._total("tree/chain_tool_calls")]
        lines = self._parts(totals, smooth=False) if has_calls else []
        parts = ("as run", "the same leaves as chains")
        return Panel(
            "calls", "Trees against chains: tool calls", AXES[self.view.axis], "tool calls", lines, parts=parts
        )

    def _of(self, name: str) -> Callable[[History], Series | None]:
        return lambda run: run.series(name, self.view.axis)

    def _saved_by_update(self, run: History) -> Series | None:
        found = run.series("tree/computed_tokens", self.view.axis)
        if found is None or "tree/chain_tokens" not in run:
            return None
        rows = ~np.isnan(run.column("tree/computed_tokens"))
        x = run.x(self.view.axis)[rows]
        computed, chains = run.column("tree/computed_tokens")[rows], run.column("tree/chain_tokens")[rows]
        return Series(x, 1 - computed / np.where(chains > 0, chains, np.nan))

    def _total(self, what: str | Callable[[History], Array]) -> Callable[[History], Series | None]:
        """Of a column what has come together so far."""

        def total(run: History) -> Series | None:
            column = run.column(what) if isinstance(what, str) else what(run)
            rows = ~np.isnan(column)
            return Series(run.x(self.view.axis)[rows], np.cumsum(column[rows])) if rows.any() else None

        return total

    def _lines(self, extract: Callable[[History], Series | None], part: int = 0, *, smooth: bool = True) -> list[Line]:
        return [
            line_of(found, group.name, place, part, self.view.smooth if smooth else 1)
            for place, group in enumerate(self.groups)
            if (found := _found(group, extract))
        ]

    def _parts(self, extracts: Sequence[Callable[[History], Series | None]], *, smooth: bool = True) -> list[Line]:
        return [line for part, extract in enumerate(extracts) for line in self._lines(extract, part, smooth=smooth)]


PANELS: dict[str, Callable[[_Maker], Panel]] = {
    "score": _Maker.score,
    "reward": _Maker.reward,
    "entropy": _Maker.entropy,
    "signal": _Maker.signal,
    "tokens": _Maker.tokens,
    "seconds": _Maker.seconds,
    "sharing": _Maker.sharing,
    "cost": _Maker.cost,
    "calls": _Maker.calls,
    "per-token": _Maker.per_token,
}
EMPTY = {
    "score": "no run has evaluations (data.eval, train.eval_steps)",
    "per-token": "needs evaluated runs of trees and of chains, and another axis than --x tokens, where it is the score",
}


def chosen_score(groups: Sequence[Group]) -> str:
    """Return the score that most runs have, the reward before others; "" where nothing is evaluated."""
    names = [name for group in groups for run in group.runs for name in run.scores]
    return max(dict.fromkeys(names), key=lambda name: (names.count(name), name == "reward"), default="")


def depths_of(run: History) -> list[int]:
    """Depths that have a signal."""
    prefix = "tree/abs_advantage_depth_"
    return sorted(int(rest) for name in run.names if (rest := name.removeprefix(prefix)) != name and rest.isdecimal())


def seconds_of(run: History) -> list[float]:
    """Mean seconds a step of each of `PHASES`, and of what is left of the step; [] where no step is told."""
    if not run.num_steps:
        return []
    phases = [float(np.nansum(run.column(f"time/{phase}"))) for phase in PHASES]
    in_steps = sum(phases) - phases[PHASES.index("evaluation")]
    return [value / run.num_steps for value in (*phases, max(run.spent.seconds - in_steps, 0.0))]


def chain_tokens(run: History) -> Array:
    """Tokens that had been sampled for the leaves of each step as chains, each turn once a leaf."""
    return run.column("completions/mean_length") * run.column("tree/num_leaves")


def _found(group: Group, extract: Callable[[History], Series | None]) -> list[Series]:
    def told() -> Iterator[Series]:
        for run in group.runs:
            series = extract(run)
            if series is not None and not np.isnan(series.y).all():
                yield series

    return list(told())


def _by_depth(run: History) -> Series | None:
    columns = {depth: run.column(f"tree/abs_advantage_depth_{depth}") for depth in depths_of(run)}
    means = {depth: float(np.nanmean(column)) for depth, column in columns.items() if not np.isnan(column).all()}
    return Series(np.array(list(means), np.float64), np.array(list(means.values()))) if means else None


def _chosen(depths: Sequence[int]) -> list[int]:
    """At most so many of them, the first and the last among them."""
    places = np.unique(np.linspace(0, len(depths) - 1, min(MAX_DEPTHS, len(depths))).round().astype(int))
    return [depths[place] for place in places]
