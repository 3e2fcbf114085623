"""`treegrpo compare`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from treegrpo_cli.cli.commands.arguments import Quiet


class Reference(StrEnum):
    """What a probe's cosines are with."""

    CHAINS = "chains"
    FIRST = "first"


def compare(
    arms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARM KEY=VALUE",
            help="A file of settings for each arm; the others are compared with the first. Then single settings for "
            "all of them.",
            show_default=False,
        ),
    ] = None,
    common: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Settings for all arms; an arm's own file overrides them.", show_default=False
        ),
    ] = None,
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder for the runs and the report.")] = "runs/compare",
    seeds: Annotated[
        str, typer.Option(help="How many seeds, such as 5, or which, such as 3,7,11.  [default: 5]", show_default=False)
    ] = "",
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="End each run at this many generated tokens.", show_default=False)
    ] = None,
    budget_tool_calls: Annotated[
        int | None, typer.Option(min=1, help="End each run at this many tool calls.", show_default=False)
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="End each run after steps of this many seconds; one runs at a time.", show_default=False
        ),
    ] = None,
    score: Annotated[
        str, typer.Option(help="Compare this score of the evaluations.  [default: reward, else the only one]")
    ] = "",
    targets: Annotated[
        str,
        typer.Option(
            help="Tell what reaching these scores takes, such as 0.5,0.7.  [default: a half, three quarters and 0.9 of "
            "the best arm's gain, and the first arm's last score]"
        ),
    ] = "",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Runs at once.  [default: as cores and memory allow; one on a GPU]", show_default=False
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make the report again from the runs in --output.")
    ] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Train nothing: play the same prompts several times under each arm, with the policy of model.path, "
            "and say how much signal its gradient holds for what it takes.",
        ),
    ] = False,
    prompts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="--probe: play this many prompts, the first.  [default: train.prompts_per_step of the first arm]",
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="--probe: how often each arm plays them.  [default: 10]")
    ] = None,
    reference: Annotated[
        Reference | None,
        typer.Option(
            help="--probe: cosines are with the gradient of unbiased chains, or with the first arm's.  "
            "[default: chains]",
            show_default=False,
        ),
    ] = None,
    reference_chains: Annotated[
        int | None, typer.Option(min=1, help="--probe: unbiased chains a prompt and repeat.  [default: 12]")
    ] = None,
    sketch: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="--probe: keep gradients as so many numbers, 0 = all.  [default: 32768 where a model has more than "
            "131072 weights]",
        ),
    ] = None,
    probe_seed: Annotated[
        int | None, typer.Option(min=0, help="--probe: the seed of data and draws.  [default: 0]")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train arms on several seeds at equal budgets, and compare their learning curves; --probe: their gradients."""
    from treegrpo_cli.cli.compare import Asked, read_arms, run_compare
    from treegrpo_cli.cli.probe import check_options, run_probe

    budgets = {"tokens": budget_tokens, "tool_calls": budget_tool_calls, "seconds": budget_seconds}
    of_probe: dict[str, Any] = {
        "--prompts": prompts,
        "--repeats": repeats,
        "--reference": reference,
        "--reference-chains": reference_chains,
        "--sketch": sketch,
        "--probe-seed": probe_seed,
    }
    of_training: dict[str, Any] = {f"--budget-{axis.replace('_', '-')}": budget for axis, budget in budgets.items()}
    of_training |= {
        "--seeds": seeds,
        "--score": score,
        "--targets": targets,
        "--jobs": jobs,
        "--report-only": report_only,
    }
    check_options(of_training if probe else of_probe, probes=probe)
    asked = Asked(
        arms=arms or [],
        common=common,
        output=output,
        seeds=seeds,
        budgets={axis: budget for axis, budget in budgets.items() if budget is not None},
        score=score,
        targets=targets,
    )
    if probe:
        run_probe(
            read_arms(asked),
            output,
            prompts=prompts,
            repeats=repeats,
            seed=probe_seed,
            against=reference and reference.value,
            chains=reference_chains,
            sketch=sketch,
            quiet=quiet,
        )
    else:
        run_compare(asked, jobs=jobs, report_only=report_only, quiet=quiet)
