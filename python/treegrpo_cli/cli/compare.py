"""What was typed after `treegrpo compare` -> a comparison, or its report alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from treegrpo_cli.cli.libraries import prepare_libraries
from treegrpo_cli.compare.arms import Arm, load_arms, parse_seeds
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.progress import Reporter

NUM_SEEDS = "5"
BUDGET_OPTIONS = "--budget-tokens, --budget-tool-calls and --budget-seconds"


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments as they were typed, "" where nothing was; `budgets` by axis, those that were given."""

    arms: Sequence[str]
    common: str | None
    output: str
    seeds: str
    budgets: Mapping[str, float]
    score: str
    targets: str


def run_compare(asked: Asked, *, jobs: int | None, report_only: bool, quiet: bool) -> None:
    """Train and report, or report alone."""
    arms, reporter, folder = read_arms(asked), Reporter(quiet=quiet), Path(asked.output)
    if report_only and jobs is not None:
        raise UserError("--jobs: not with --report-only, which runs nothing")
    if len(asked.budgets) > 1 or not (asked.budgets or report_only):
        raise UserError(f"give one budget, of {BUDGET_OPTIONS}")
    targets = parse_targets(asked.targets)
    check_packages()
    from treegrpo_cli.compare.comparison import Plan, part_of, report, run_comparison

    if report_only:
        seeds = parse_seeds(asked.seeds) if asked.seeds else []
        plan = part_of(Plan.read(folder), [arm.name for arm in arms], seeds)
        for axis, budget in asked.budgets.items():
            plan = replace(plan, axis=axis, budget=budget)
        report(folder, replace(plan, score=asked.score or plan.score, targets=targets or plan.targets), reporter)
        return
    if not arms:
        raise UserError("name the arms: one file of settings for each")
    prepare_libraries()
    [(axis, budget)] = asked.budgets.items()
    names = tuple(arm.name for arm in arms)
    plan = Plan(names, tuple(parse_seeds(asked.seeds or NUM_SEEDS)), axis, budget, asked.score, targets)
    run_comparison(arms, plan, folder, jobs, reporter)


def read_arms(asked: Asked) -> list[Arm]:
    """Read the files of the arms; what has an equals sign, and is no file, is a setting of all."""
    overrides = [text for text in asked.arms if "=" in text and not os.path.isfile(text)]
    files = [Path(text) for text in asked.arms if text not in overrides]
    return load_arms(files, Path(asked.common) if asked.common else None, overrides)


def parse_targets(text: str) -> tuple[float, ...]:
    """Read scores such as `0.5,0.7`, in rising order; nothing is none."""
    try:
        targets = sorted({float(part) for part in text.split(",")}) if text else []
    except ValueError:
        targets = [math.nan]
    if not all(map(math.isfinite, targets)):
        raise UserError(f"--targets {text!r:.60}: expected scores, as 0.5,0.7")
    return tuple(targets)


def check_packages() -> None:
    """Raise UserError where statistics and pictures are not installed."""
    if not all(map(find_spec, ("scipy", "matplotlib"))):
        raise UserError("this command needs scipy and matplotlib: pip install 'treegrpo[compare]'")
