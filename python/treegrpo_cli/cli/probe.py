"""What was typed after `treegrpo compare ... --probe` -> a probe of the arms, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.cli.libraries import prepare_libraries
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.progress import Reporter

if TYPE_CHECKING:
    from treegrpo_cli.compare.arms import Arm
    from treegrpo_cli.compare.probe import Probe

FOLDER = "probe"
"""In the folder of a comparison, so that curves and probe of the same arms lie beside each other."""


def check_options(given: Mapping[str, object], *, probes: bool) -> None:
    """Raise UserError for an option of the other kind of comparison; `given` has those that were typed, by name."""
    for name, value in given.items():
        if value is None or value is False or value == "":
            continue
        if probes:
            raise UserError(f"{name}: not with --probe, which trains nothing; --prompts and --repeats say how much")
        raise UserError(f"{name}: only with --probe")


def run_probe(
    arms: Sequence[Arm],
    output: str,
    *,
    prompts: int | None,
    repeats: int | None,
    seed: int | None,
    against: str | None,
    chains: int | None,
    sketch: int | None,
    quiet: bool,
) -> None:
    """Probe the arms, print the tables and write the report."""
    prepare_libraries()
    from treegrpo_cli.compare import probe as probes
    from treegrpo_cli.compare.probe_arms import ProbeOptions
    from treegrpo_cli.compare.probe_report import NOTES, describe, tables, write_probe

    reporter, folder = Reporter(quiet=quiet), Path(output) / FOLDER
    if not arms:
        raise UserError("name the arms: one file of settings for each")
    if against == "first" and chains is not None:
        raise UserError("--reference-chains: not with --reference first, which rolls no chains of its own")
    plain = ProbeOptions()
    options = ProbeOptions(
        num_prompts=prompts or plain.num_prompts,
        num_repeats=plain.num_repeats if repeats is None else repeats,
        seed=plain.seed if seed is None else seed,
        against=against or plain.against,
        num_chains=plain.num_chains if chains is None else chains,
        places=sketch,
    )

    def show(probe: Probe) -> None:
        files = write_probe(probe, folder)
        for line in (describe(probe), *NOTES):
            reporter.say(line)
        for table in tables(probe):
            reporter.table(table)
        reporter.say(f"{', '.join(file.name for file in files)} are in {folder}")

    probes.run_probe(arms, options, folder, reporter, show)
