"""MODEL or RUN + settings -> what `treegrpo eval` measures, and how it says it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from treegrpo_cli.cli.libraries import prepare_libraries
from treegrpo_cli.cli.parts import parts_of
from treegrpo_cli.cli.settings import quoted
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config
from treegrpo_cli.errors import FailedRunError, UserError
from treegrpo_cli.run.directory import checkpoint_of
from treegrpo_cli.run.progress import Reporter

if TYPE_CHECKING:
    from treegrpo_cli.run.evaluation import Evaluation
    from treegrpo_cli.run.intervals import Mean
    from treegrpo_cli.run.preflight import Questions

SETTINGS_FILES = (".toml", ".yaml", ".yml")


class Sampling(NamedTuple):
    """How a question is asked."""

    num_samples: int
    greedy: bool


def read_target(
    target: str,
    settings: Sequence[str],
    *,
    step: int | None = None,
    data: str | None = None,
    reward: Sequence[str] | None = None,
    temperature: float | None = None,
) -> Config:
    """Return the settings of an evaluation: those of a RUN with a checkpoint of its, or `[CONFIG]` with a MODEL.

    A settings file in place of MODEL brings its own `model.path`. Flags win over KEY=VALUE, and those over the rest.
    """
    is_run = (Path(target) / "config.toml").is_file()
    is_settings = target.endswith(SETTINGS_FILES) and Path(target).is_file()
    files = [target] * is_settings + [text for text in settings if "=" not in text]
    if len(files) > 1 or (is_run and files):
        whose = "a run has its own settings" if is_run else "only one settings file can be given"
        raise UserError(f"{files[-1]}: {whose}; give changes as KEY=VALUE")
    if step is not None and not is_run:
        raise UserError(f"--step: {target} is not a run (a folder with config.toml and checkpoints)")
    overrides = [text for text in settings if "=" in text]
    if data is not None:
        overrides.append(f"data.eval={quoted(data)}")
    if reward:
        overrides.append(f"reward.functions=[{', '.join(map(quoted, reward))}]")
    if temperature is not None:
        overrides.append(f"rollout.temperature={temperature}")
    if is_run:
        return _read_run(Path(target), overrides, step)
    model = [] if is_settings else [f"model.path={quoted(target)}"]
    return load_config(Path(files[0]) if files else None, [*model, *overrides])


def _read_run(run: Path, overrides: list[str], step: int | None) -> Config:
    if step == 0:
        return load_config(run / "config.toml", overrides)
    checkpoint = checkpoint_of(run, step)
    return load_config(run / "config.toml", [f"model.path={quoted(str(checkpoint))}", *overrides])


def check_evaluation(config: Config, output: Path | None) -> None:
    """Find what is wrong before an engine starts. Raises Problems."""
    prepare_libraries()
    from treegrpo_cli.run.evaluate import check_new_output
    from treegrpo_cli.run.preflight import check

    check(config, [_questions(config)], checks=[partial(check_new_output, output)])


def run_evaluation(
    config: Config, sampling: Sampling, threshold: float, output: Path | None, *, as_json: bool, quiet: bool
) -> None:
    """Ask the questions of `data.eval`, of `data.train` where there are none, and print what came out.

    Raises FailedRunError behind that where nothing was scored.
    """
    prepare_libraries()
    from treegrpo_cli.run.evaluate import evaluate_policy

    reporter, asked = Reporter(quiet=quiet), _questions(config)
    with parts_of(config) as parts:
        evaluation = evaluate_policy(
            config,
            asked,
            reporter,
            num_samples=sampling.num_samples,
            greedy=sampling.greedy,
            output=output,
            parts=parts,
        )
    if as_json:
        report = report_of(evaluation, threshold)
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_APPEND_NEWLINE).decode())
    else:
        how = "greedy" if sampling.greedy else f"at temperature {config.rollout.temperature:g}"
        for line in lines_of(evaluation, threshold, f"of {asked.source}, {how}"):
            reporter.result(line)
    if output is not None:
        reporter.say(f"rollouts are in {output}")
    if not evaluation.reward().num_values:
        raise FailedRunError("no sample has a reward")


def _questions(config: Config) -> Questions:
    from treegrpo_cli.run.preflight import eval_questions, train_questions

    asked = eval_questions(config, config.reward)
    return asked if asked.source or not config.data.train else train_questions(config)


def report_of(evaluation: Evaluation, threshold: float) -> dict[str, Any]:
    """Return what was measured, as JSON has it."""
    from treegrpo_cli.run.evaluation import ks

    voted = evaluation.voted()
    return {
        "num_questions": len(evaluation.questions),
        "num_samples": evaluation.num_samples,
        "rewards": {name: mean._asdict() for name, mean in evaluation.means().items()},
        "pass": {str(k): evaluation.pass_at(k, threshold)._asdict() for k in ks(evaluation.num_samples)},
        "threshold": threshold,
        "voted": None if voted is None else voted._asdict(),
        "num_unscored": evaluation.num_unscored,
        "failures": dict(Counter(failure.kind for failure in evaluation.failures)),
    }


def lines_of(evaluation: Evaluation, threshold: float, how: str) -> Iterator[str]:
    """Yield what was measured, a line each."""
    from treegrpo_cli.run.evaluation import ks

    n = evaluation.num_samples
    samples = "1 sample" if n == 1 else f"{n} samples"
    yield _line("questions", f"{len(evaluation.questions)} {how}, {samples} each")
    for name, mean in evaluation.means().items():
        yield _line(name, mean)
    if n > 1:
        for k in ks(n):
            yield _line(f"pass@{k}", evaluation.pass_at(k, threshold))
        voted = evaluation.voted()
        if voted is not None:
            yield _line(f"voted of {n}", voted)
    if evaluation.num_unscored:
        yield _line("unscored", f"{evaluation.num_unscored} of {n * len(evaluation.questions)} samples")
    for kind, count in Counter(failure.kind for failure in evaluation.failures).items():
        first = next(failure for failure in evaluation.failures if failure.kind == kind)
        yield _line(f"failed: {kind}", f"{count}, prompt {first.prompt_id} first: {first.reason}")


def _line(name: str, value: Mean | str) -> str:
    return f"{name:<18} {value}"
