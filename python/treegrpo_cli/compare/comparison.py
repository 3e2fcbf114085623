"""Arms, seeds and a budget -> runs, and what they show: `results.json`, `report.md`, pictures and a table.

comparison.json   what was asked for, so that a report can be made again
results.json      all numbers
score-AXIS.png    learning curves, and as .svg
report.md         tables, what differs between the arms, and what a reader must know
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli.compare.arms import Arm
from treegrpo_cli.compare.launch import open_launcher
from treegrpo_cli.compare.plots import draw_curves
from treegrpo_cli.compare.report import Report
from treegrpo_cli.compare.results import Question, compare
from treegrpo_cli.compare.runs import Fleet, Run, is_finished, make_runs, run_name
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FailedRunError, FileError, UserError, nearest, said
from treegrpo_cli.plots.curves import AXES, choose_score, curve_of
from treegrpo_cli.run.evaluation import score_names
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.spending import Spent, read_metrics

BUDGET_KEYS = {"tokens": "budget.run_tokens", "tool_calls": "budget.run_tool_calls", "seconds": "budget.run_seconds"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. `budget` is one of `axis`; `score` "" and `targets` () leave the choice to the results.

    `num_jobs` is the most runs that ever went at once.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    axis: str
    budget: float
    score: str = ""
    targets: tuple[float, ...] = ()
    num_jobs: int = 1

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read what an earlier comparison wrote. Raises FileError where there is none."""
        file = folder / "comparison.json"
        try:
            saved = orjson.loads(file.read_bytes())
            lists = {name: tuple(value) for name, value in saved.items() if isinstance(value, list)}
            plan = cls(**{**saved, **lists})
        except OSError as error:
            raise FileError(folder, f"holds no comparison: comparison.json: {said(error)}") from None
        except (orjson.JSONDecodeError, TypeError, AttributeError) as error:
            raise FileError(file, f"is not what a comparison wrote: {said(error)}") from None
        if plan.axis not in AXES or not plan.arms or not plan.seeds:
            raise FileError(file, "is not what a comparison wrote: arms, seeds or axis are missing")
        return plan

    def write(self, folder: Path) -> None:
        """Write it for a later report. Raises FileError."""
        try:
            write_whole(folder / "comparison.json", orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise FileError(error.filename or folder, said(error)) from None


def run_comparison(arms: Sequence[Arm], plan: Plan, folder: Path, num_jobs: int | None, reporter: Reporter) -> None:
    """Train what is not trained yet, and report.

    Raises UserError before anything is started, Stopped where the user ended it, and FailedRunError, behind the report,
    where runs failed.
    """
    budget = int(plan.budget) if plan.axis != "seconds" else plan.budget
    runs = make_runs(arms, plan.seeds, folder.absolute(), {BUDGET_KEYS[plan.axis]: budget})
    check_score(runs[0].config, plan.score)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(folder, said(error)) from None
    with output_lock(folder):
        for run in runs:
            run.check_unchanged()
        if (folder / "comparison.json").is_file():
            plan = replace(plan, num_jobs=Plan.read(folder).num_jobs)
        plan.write(folder)
        plan, failed = train_all(runs, plan, num_jobs, reporter)
        if len(failed) < len(runs):
            report(folder, plan, reporter, failed)
    if failed:
        first = next(iter(failed.items()))
        raise FailedRunError(
            f"{len(failed)} of {len(runs)} runs failed ({', '.join(failed)}); {first[0]} {first[1]}; "
            "the same command tries them again"
        )


def train_all(runs: Sequence[Run], plan: Plan, num_jobs: int | None, reporter: Reporter) -> tuple[Plan, dict[str, str]]:
    """Run what is not finished, as many at once as there is room for.

    Returns the plan with how many that were, and why those that failed did.
    """
    waiting = [run for run in runs if not run.is_finished]
    if not waiting:
        return plan, {}
    launcher = open_launcher()
    fleet = Fleet(launcher, reporter)
    try:
        num_jobs, num_threads = _share_out(fleet, waiting, plan, num_jobs)
        if num_jobs > 1:
            reporter.say(f"{num_jobs} runs at once" + (f", {num_threads} threads each" if num_threads > 1 else ""))
        plan = replace(plan, num_jobs=max(num_jobs, plan.num_jobs))
        plan.write(runs[0].folder)
        fleet.sail(runs, num_jobs, num_threads, lambda run: _how_it_went(run, plan))
    finally:
        launcher.close()
    return plan, fleet.failed


def report(folder: Path, plan: Plan, reporter: Reporter, failed: Mapping[str, str] | None = None) -> None:
    """Write results and report of the runs that are finished, and print the tables.

    Raises FileError where an arm has none.
    """
    metrics, configs = _finished(folder, plan)
    score = choose_score([(folder / "runs" / run_name(*key), lines) for key, lines in metrics.items()], plan.score)
    try:
        curves = {
            arm: {seed: curve_of(lines, score) for (name, seed), lines in metrics.items() if name == arm}
            for arm in dict.fromkeys(name for name, _ in metrics)
        }
        results = compare(curves, Question(score, plan.axis, plan.budget, plan.targets))
    except ValueError as error:
        raise FileError(folder, str(error)) from None
    try:
        write_whole(folder / "results.json", orjson.dumps(results, option=orjson.OPT_INDENT_2))
        pictures = [file.name for file in draw_curves(results, folder) if file.suffix == ".png"]
        written = Report(results, _different(configs), _notes(plan, curves, results, failed or {}), pictures)
        write_whole(folder / "report.md", written.markdown().encode())
    except OSError as error:
        raise FileError(error.filename or folder, said(error)) from None
    for table in written.tables():
        reporter.table(table)
    for note in written.notes:
        reporter.result(note)
    reporter.say(f"report.md, pictures and results.json are in {folder}")


def check_score(config: Config, score: str) -> None:
    """Raise UserError where evaluations will not have this score, before anything is trained for it."""
    names = score_names(config.reward)
    if score and score not in names:
        raise UserError(f"--score {score!r:.60}: evaluations have no such score, {nearest(score, names)}")


def part_of(plan: Plan, arms: Sequence[str], seeds: Sequence[int]) -> Plan:
    """The same of some of its arms, in this order, and some of its seeds; () is all.

    Raises UserError for one that it does not have.
    """
    for name in arms:
        if name not in plan.arms:
            raise UserError(f"{name}: is no arm of the comparison, which has {', '.join(plan.arms)}")
    for seed in seeds:
        if seed not in plan.seeds:
            raise UserError(
                f"--seeds: {seed} is no seed of the comparison, which has {', '.join(map(str, plan.seeds))}"
            )
    return replace(plan, arms=tuple(arms) or plan.arms, seeds=tuple(seeds) or plan.seeds)


def _share_out(fleet: Fleet, waiting: Sequence[Run], plan: Plan, num_jobs: int | None) -> tuple[int, int]:
    """Return how many runs go at once, and on how many threads each; 0 = as a run alone decides.

    Where seconds are compared it is one, unless the user says otherwise.
    """
    if num_jobs == 1 or len(waiting) == 1 or (num_jobs is None and plan.axis == "seconds"):
        return 1, 0
    room = fleet.room(waiting[0])
    num_jobs = min(num_jobs or room.num_jobs(len(waiting)), len(waiting))
    shares = num_jobs > 1 and "OMP_NUM_THREADS" not in os.environ
    return num_jobs, max(1, room.cores // num_jobs) if shares else 0


def _how_it_went(run: Run, plan: Plan) -> str:
    metrics = read_metrics(run.path / "metrics.jsonl")
    spent = sum((Spent.on(line) for line in metrics), Spent())
    at = list(AXES).index(plan.axis)
    score: list[str] = []
    with suppress(UserError):  # a score that it does not have is said of all, with the report
        score = [f"{metrics[-1][f'eval/{choose_score([(run.path, metrics)], plan.score)}']:.3f}"]
    return " ".join([run.name, *score, f"after {spent.all[at]:,.0f} {AXES[plan.axis]}"])


def _finished(folder: Path, plan: Plan) -> tuple[dict[tuple[str, int], list[dict[str, Any]]], dict[str, Config]]:
    """(arm, seed) -> lines of metrics of each run that is finished, arm by arm, and the settings of each arm."""
    metrics, configs = {}, {}
    for arm in plan.arms:
        for seed in plan.seeds:
            path = folder / "runs" / run_name(arm, seed)
            if not (path / "config.toml").is_file():
                continue
            config, lines = load_config(path / "config.toml"), read_metrics(path / "metrics.jsonl")
            if is_finished(config, lines):
                metrics[arm, seed] = lines
                configs[arm] = config
        if arm not in configs:
            raise FileError(folder, f"has no finished run of {arm}, so there is nothing to compare it by")
    return metrics, configs


def _different(configs: Mapping[str, Config]) -> list[tuple[str, list[Any]]]:
    """(dotted key, value in each arm) of the settings that differ."""
    from treegrpo_cli.config.secrets import without_passwords
    from treegrpo_cli.config.values import flat

    tables = [flat(without_passwords(config.model_dump(mode="json"))) for config in configs.values()]
    keys = sorted(set().union(*tables) - {"seed", "output_dir"})
    values = [(key, [table.get(key) for table in tables]) for key in keys]
    return [(key, row) for key, row in values if any(value != row[0] for value in row)]


def _notes(plan: Plan, curves: Mapping[str, Any], results: dict[str, Any], failed: Mapping[str, str]) -> list[str]:
    """What a reader must know before the numbers."""
    notes = [f"{name} is left out: it {reason}" for name, reason in failed.items()]
    for arm, runs in curves.items():
        missing = [str(seed) for seed in plan.seeds if seed not in runs]
        if missing and not any(run_name(arm, seed) in failed for seed in plan.seeds):
            notes.append(f"{arm} has no finished run of seed {', '.join(missing)}")
    end = results["compared_up_to"]
    if plan.budget and end < plan.budget:
        short = [arm for arm, runs in curves.items() if any(run.end(plan.axis) < plan.budget for run in runs.values())]
        notes.append(
            f"compared up to {end:,.0f} {AXES[plan.axis]}, not {plan.budget:,.0f}: runs of {', '.join(short)} ended "
            "earlier, at train.num_steps; set it higher to compare over the whole budget"
        )
    if plan.num_jobs > 1:
        notes.append(f"seconds were measured with up to {plan.num_jobs} runs at once, which slow each other down")
    if len(plan.seeds) < 5:
        notes.append("intervals over fewer than five seeds are narrower than they should be")
    return notes
