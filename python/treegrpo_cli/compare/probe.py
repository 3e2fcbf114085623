"""Arms + prompts -> which of them learns most from a token, at a fixed policy: what `compare --probe` does.

Every repeat plays the same prompts under each arm as a training step would, with draws of its own, and keeps what each
prompt adds to the gradient. Arms take turns within a repeat, in an order that goes round: what the machine does
meanwhile hits all alike. A repeat that is done is never computed again; a probe that is stopped says what it has seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.compare.arms import Arm
from treegrpo_cli.compare.probe_arms import REFERENCE, ProbeOptions, check_options, probed_configs
from treegrpo_cli.compare.probe_bench import Bench
from treegrpo_cli.compare.probe_statistics import ArmFigures, compare
from treegrpo_cli.compare.probe_store import ProbeStore
from treegrpo_cli.compare.probe_table import ProbeTable
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.errors import FileError, Stopped, said
from treegrpo_cli.run.stopping import StopRequest
from treegrpo_cli.train.sketch import Sketch, flat

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.run.progress import Reporter

SKETCHED = 2**15
"""Places that a larger model's gradients are added up in."""

MAX_EXACT = 2**17
"""Entries of a gradient that is kept as it is."""

MIN_REPEATS = 2
"""Of which there are pairs."""

MIN_PROMPTS = 10
"""Prompts that an interval over them should have."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found: figures by arm, the first one's relative to itself; of so many repeats that all have done."""

    figures: dict[str, ArmFigures]
    num_prompts: int
    num_repeats: int
    against: str


def run_probe(
    arms: Sequence[Arm], options: ProbeOptions, output: Path, reporter: Reporter, show: Callable[[Probe], None]
) -> None:
    """Roll what is missing of the repeats in `output`, and `show` the figures of all.

    Raises UserError for what is wrong with arms, options or folder; Stopped where the user ended it: what is done is
    kept, and shown where it is two repeats or more of every arm.
    """
    check_options(options, output)
    configs = probed_configs(arms, options)
    num_prompts = options.num_prompts or configs[arms[0].name].train.prompts_per_step
    if num_prompts < MIN_PROMPTS:
        reporter.warn(f"{num_prompts} prompts: intervals are over prompts, and are too narrow below {MIN_PROMPTS}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(output, said(error)) from None
    asked = {"seed": options.seed, "num_prompts": num_prompts, "places": options.places}
    with output_lock(output):
        store = ProbeStore(output, configs, asked)
        plan = [turn for turn in turns(list(configs), options.num_repeats) if not store.is_done(*turn)]
        try:
            if plan:
                _roll(plan, configs, store, num_prompts, options, reporter)
        except Stopped:
            if (done := store.num_done(configs, options.num_repeats)) >= MIN_REPEATS:
                show(read_probe(store, list(configs), num_prompts, done, options.seed))
            raise
        show(read_probe(store, list(configs), num_prompts, options.num_repeats, options.seed))


def turns(arms: Sequence[str], num_repeats: int) -> Iterator[tuple[str, int]]:
    """Yield (arm, repeat) in the order in which they are rolled: each repeat begins with another arm.

    >>> list(turns(["a", "b"], 2))
    [('a', 0), ('b', 0), ('b', 1), ('a', 1)]
    """
    for repeat in range(num_repeats):
        first = repeat % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            yield arm, repeat


def _roll(
    plan: Sequence[tuple[str, int]],
    configs: Mapping[str, Config],
    store: ProbeStore,
    num_prompts: int,
    options: ProbeOptions,
    reporter: Reporter,
) -> None:
    """Roll these turns, one after another, and keep each."""
    with ExitStack() as stack:
        runner, stop = stack.enter_context(asyncio.Runner()), stack.enter_context(StopRequest())
        bench = Bench(stack, configs, store.folder / "engine.log", reporter, runner, stop)
        places = options.places
        if places is None:
            places = 0 if bench.num_parameters <= MAX_EXACT else SKETCHED
        reduce = Sketch(places, options.seed) if places else flat
        total = len(configs) * options.num_repeats
        bar = stack.enter_context(reporter.bar("probing", total, done=total - len(plan)))
        try:
            for arm, repeat in plan:
                stop.check()
                result = bench.roll(arm, repeat, num_prompts, reduce)
                store.add(arm, repeat, result)
                bar.advance(note=f"{arm}: {sum(row.tokens for row in result.rows):,} tokens")
        except Stopped as stopped:
            stopped.hint = "stopped; the same command goes on from here"
            raise


def read_probe(store: ProbeStore, names: Sequence[str], num_prompts: int, num_repeats: int, seed: int) -> Probe:
    """Return the figures of the first repeats, which every arm of `names` has done, the reference among them."""
    against = REFERENCE if REFERENCE in names else names[0]
    table = ProbeTable(store, names, num_repeats)
    played = [name for name in names if name != REFERENCE]
    found = compare([table.rolled(name, against, num_prompts) for name in played], seed=seed)
    return Probe(dict(zip(played, found, strict=True)), num_prompts, num_repeats, against)
