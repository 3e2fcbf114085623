"""A followed run -> what stands on the terminal: facts, a small plot, and the last tree where there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from treegrpo_cli.errors import UserError
from treegrpo_cli.plots.follow import Follower, State
from treegrpo_cli.plots.groups import Group
from treegrpo_cli.plots.history import History
from treegrpo_cli.plots.lines import line_of
from treegrpo_cli.plots.panels import PHASES, chosen_score, depths_of
from treegrpo_cli.plots.style import printable
from treegrpo_cli.plots.terminal import draw_lines
from treegrpo_cli.run.progress import duration
from treegrpo_cli.trees.draw import draw_tree
from treegrpo_cli.trees.tree_file import read_trees

PLOT_HEIGHT, MIN_PLOT, MIN_TREE = 12, 7, 8
LABEL = 10
FAILURES = {"prompt": "prompts", "reset": "starts", "tool": "branches by a tool", "reward": "rewards"}
COLOURS = {State.RUNNING: "green", State.FINISHED: "green", State.STOPPED: "yellow", State.KILLED: "red"}


class Dashboard:
    """Draws a follower; remembers the last tree, which is read once a step."""

    def __init__(self, follower: Follower, *, ascii_only: bool) -> None:
        self.follower, self.ascii_only = follower, ascii_only
        self._tree: tuple[int, list[Text]] = (0, [])

    def rows(self, width: int, height: int) -> list[Text]:
        """At most so many rows, none wider than `width`."""
        rows = facts(self.follower, width, ascii_only=self.ascii_only)
        room = height - len(rows) - 2
        if room >= MIN_PLOT and len(self.follower.history) and find_spec("plotext"):
            rows += ["", *self._plot(width, min(room - 1, PLOT_HEIGHT))]  # type: ignore[list-item]
        room = height - len(rows) - 2
        if room >= MIN_TREE:
            tree = self._last_tree(width)
            rows += ["", *tree[:room]] if tree else []  # type: ignore[list-item]
        texts = [row if isinstance(row, Text) else Text(row) for row in rows[:height]]
        for text in texts:
            text.truncate(width)
        return texts

    def _plot(self, width: int, height: int) -> Iterable[Text]:
        history = self.follower.history
        group = Group("", [history])
        score, lines, names = chosen_score([group]), [], []
        for name, label in (("reward", "reward"), (f"eval/{score}", f"{score} on held-out questions")):
            series = history.series(name, "step")
            if series is not None and not all(map(math.isnan, series.y)):
                lines.append(line_of([series], ""))
                names.append(label)
        if not lines:
            return
        marks = "ox" if self.ascii_only else "⠒x"
        parts: list[Any] = []
        for mark, name, colour in zip(marks, names, ("blue", "red"), strict=False):
            parts += [(mark, colour), f" {printable(name)}  "]
        yield Text.assemble(*parts, "against step")
        yield from draw_lines(lines, width, height, ascii_only=self.ascii_only).split("\n")

    def _last_tree(self, width: int) -> list[Text]:
        step = self.follower.step
        if step and self._tree[0] != step:
            file = self.follower.folder / "trees" / f"step-{step:05d}.jsonl.zst"
            try:
                record = next(read_trees(file))
                self._tree = (step, [Text(f"step {step}, first tree", style="bold"), *draw_tree(record, width)])
            except (UserError, StopIteration):  # not written yet, or not kept
                return []
        return self._tree[1] if self._tree[0] == step else []


def facts(follower: Follower, width: int, *, ascii_only: bool) -> list[Text]:
    """The run in a few rows of words and numbers."""
    history = follower.history
    rows = [_head(follower, width, ascii_only=ascii_only)]
    if not len(history):
        return rows
    rows += _told(_now(follower), width)
    rows += _told([("seconds", part) for part in _seconds(history)], width)
    depths = [(depth, history.last.get(f"tree/abs_advantage_depth_{depth}")) for depth in depths_of(history)]
    rows += _told([("signal", f"depth {depth} {value:.3g}") for depth, value in depths if value is not None], width)
    rows += _told([("failures", part) for part in _failures(history)], width, style="red")
    return rows


def _head(follower: Follower, width: int, *, ascii_only: bool) -> Text:
    state, config = follower.state, follower.config
    text = Text.assemble(
        (printable(follower.folder.absolute().name), "bold"), "  ", (str(state), COLOURS.get(state, ""))
    )
    if not len(follower.history):
        return text
    total = f" of {config.train.num_steps}" if config else ""
    text.append(f"  step {follower.step}{total}")
    share = follower.share_done()
    if share is not None:
        room = min(20, width - text.cell_len - 6)
        if room >= 5:
            done = round(share * room)
            text.append("  ").append(("#" if ascii_only else "━") * done, "green")
            text.append(("-" if ascii_only else "─") * (room - done), "dim")
        text.append(f" {math.floor(100 * share)}%")
    left = follower.seconds_left()
    if left and not state.is_over:
        text.append(f"  about {duration(left)} left")
    return text


def _now(follower: Follower) -> list[tuple[str, str]]:
    last, found = follower.history.last, list[tuple[str, str]]()

    def add(label: str, name: str, form: Callable[[Any], str]) -> None:
        if isinstance(last.get(name), int | float):
            found.append((label, form(last[name])))

    score = chosen_score([Group("", [follower.history])])
    add("reward", "reward", lambda value: f"{value:.3f}")
    add("reward", "entropy", lambda value: f"entropy {value:.3g} nats")
    add("reward", "frac_reward_zero_std", lambda value: f"{value:.0%} of prompts without a difference")
    evaluation = follower.history.last_evaluation
    if isinstance(evaluation.get(f"eval/{score}"), int | float):
        ends = [evaluation.get(f"eval/{score}_{end}") for end in ("low", "high")]
        interval = f" ({ends[0]:.3f} to {ends[1]:.3f})" if None not in ends else ""
        value = f"{evaluation[f'eval/{score}']:.3f}{interval} at step {evaluation['step']}"
        found.append(("held out", f"{printable(score)} {value}"))
    add("speed", "tokens_per_second/generated", lambda value: f"{value:,.0f} tokens/s sampled")
    add("speed", "tokens_per_second/trained", lambda value: f"{value:,.0f} trained")
    add("speed", "tree/sharing_ratio", lambda value: f"{value:.0%} saved by sharing")
    if follower.history.spent.tokens:
        spent = follower.history.spent
        found.append(("spent", f"{spent.tokens:,} generated tokens"))
        found.append(("spent", f"{spent.tool_calls:,} tool calls"))
        found.append(("spent", f"{duration(spent.seconds)} of steps"))
    return found


def _seconds(history: History) -> list[str]:
    known = [(phase, history.last.get(f"time/{phase}")) for phase in PHASES]
    step_time = history.last.get("step_time")
    parts = [f"{phase} {value:.3g}" for phase, value in known if value and value >= 0.01 * (step_time or 0)]
    return ([f"{step_time:.3g} a step"] if step_time else []) + parts


def _failures(history: History) -> list[str]:
    shares = [(said, history.last.get(f"failures/{kind}")) for kind, said in FAILURES.items()]
    return [f"{share:.1%} of {said}" for said, share in shares if share]


def _told(pairs: Sequence[tuple[str, str]], width: int, style: str = "") -> list[Text]:
    """A row a label, its values side by side; those that do not fit go on below."""
    rows: list[Text] = []
    label = None
    for name, value in pairs:
        fits = label == name and rows[-1].cell_len + cell_len(value) + 2 <= width
        if fits:
            rows[-1].append(f", {value}", style)
        else:
            rows.append(Text.assemble((f"{name if label != name else '':<{LABEL}}", "dim"), (value, style)))
        label = name
    return rows
