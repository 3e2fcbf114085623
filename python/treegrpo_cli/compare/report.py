"""Results -> the same tables for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from treegrpo_cli.compare.tables import Rows, drawn, in_markdown
from treegrpo_cli.plots.curves import AXES

NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Report:
    """What is written of a comparison; `different` has (dotted key, value in each arm), `pictures` names of files."""

    results: Mapping[str, Any]
    different: Sequence[tuple[str, Sequence[Any]]]
    notes: Sequence[str] = ()
    pictures: Sequence[str] = field(default=())

    def tables(self) -> list[Table]:
        """Return the tables for a terminal."""
        return [drawn(rows) for rows in (self._scores(), self._reached())]

    def markdown(self) -> str:
        """Return the whole report."""
        arms = [arm["name"] for arm in self.results["arms"]]
        parts = [f"# {', '.join(arms)}", self._introduction(), *(f"- {note}" for note in self.notes)]
        parts += [in_markdown(self._scores()), *(f"![{name}]({name})" for name in self.pictures)]
        parts += [in_markdown(self._reached())]
        if self.different:
            cells = [[f"`{key}`", *(_setting(value) for value in values)] for key, values in self.different]
            parts.append(in_markdown(Rows("What differs", ["setting", *arms], cells)))
        return "\n\n".join(parts) + "\n"

    def _introduction(self) -> str:
        results = self.results
        axis = results["axis"]
        end = _amount(results["compared_up_to"])
        means = dict.fromkeys(arm["statistic"] for arm in results["arms"])
        return (
            f"`{results['score']}` on held-out questions up to {end} {AXES[axis]}. "
            f"Every value is the interquartile mean over seeds ({', '.join(means)}) with its 95% bootstrap interval. "
            "The area is the mean score on the way. Differences are to the first arm, seed by seed; `*` marks those "
            "whose interval leaves out zero. P(better) is the share of pairs of seeds in which the arm is above the "
            "first."
        )

    def _scores(self) -> Rows:
        results = self.results
        axis, first = results["axis"], results["arms"][0]["name"]
        heads = ["arm", "seeds", "final", "area", "Δ final", "Δ area", "P(better) final", "P(better) area"]
        cells = []
        for arm in results["arms"]:
            against = arm["against_first"]
            row = [arm["name"], str(len(arm["seeds"])), _score(arm["final"]), _score(arm["area"])]
            row += ["", "", "", ""] if against is None else [
                _difference(against["final"]["difference"]),
                _difference(against["area"]["difference"]),
                _score(against["final"]["probability_of_improvement"], 2),
                _score(against["area"]["probability_of_improvement"], 2),
            ]  # fmt: skip
            cells.append(row)
        end = _amount(results["compared_up_to"])
        return Rows(f"{results['score']} at {end} {AXES[axis]}; Δ and P against {first}", heads, cells)

    def _reached(self) -> Rows:
        arms = self.results["arms"]
        cells = []
        for place, target in enumerate(self.results["targets"]):
            for axis in (axis for axis in AXES if all(axis in arm["reached"] for arm in arms)):
                found = [arm["reached"][axis][place] for arm in arms]
                seeds = [len(arm["seeds"]) for arm in arms]
                cells.append([f"{target:g}", AXES[axis], *map(_reaching, found, seeds)])
        title = "Spent until a score is first reached; × is the share of the first arm's, n the seeds that reach it"
        return Rows(title, ["score", "spent", *(arm["name"] for arm in arms)], cells)


def _score(found: Mapping[str, Any], digits: int = 3) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    return f"{found['value']:.{digits}f}{interval}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "no common seed"
    if found["low"] is None:
        return f"{found['value']:+.3f}"
    mark = " *" if found["low"] > 0 or found["high"] < 0 else ""
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]{mark}"


def _reaching(found: Mapping[str, Any], num_seeds: int) -> str:
    count = f"n {found['num_seeds']}/{num_seeds}"
    if found["value"] is None:
        return f"{NOT_REACHED} ({count})"
    low, high = ("–" if found[end] is None else _amount(found[end]) for end in ("low", "high"))
    interval = f" [{low}, {high}]" if num_seeds > 1 else ""
    share = "" if found["share_of_first"] is None else f" ×{found['share_of_first']:.2f}"
    return f"{_amount(found['value'])}{interval}{share} ({count})"


def _amount(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def _setting(value: Any) -> str:
    text = "" if value is None else f"`{value!s:.80}`"
    return text.replace("|", "\\|").replace("\n", " ")
