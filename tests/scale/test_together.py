"""Ranks and engines in one run under Ray: what one process would have done, whatever dies in the middle."""

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from treegrpo_cli import read_trees
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers.routing import RoutedSampler
from treegrpo_cli.scale.parts import RayParts
from treegrpo_cli.scale.trainer import RankGroup

from tests.families import relative
from tests.runs import small_run
from tests.scale.engine_runs import check_same_metrics, kill_after, lines_of, until
from tests.scale.rank_runs import die_at_the_next_optimizer_step, on_rank, sent
from tests.tiny import make_tiny_model

STEPS = 3


class Seen:
    """The parts of a run that a test sees: `before(step)` comes in front of each update. Its engines stay open.

    `weights` are those behind the last step.
    """

    def __init__(self, parts: Parts, before: Callable[["Seen", int], None], engines: RoutedSampler | None) -> None:
        self._parts, self._before = parts, before
        self.trainer: Any = None
        self.sampler: Any = engines
        self.weights: dict[str, torch.Tensor] = {}
        self.undo: Callable[[], None] = lambda: None

    def open_trainer(self, *args: Any) -> Any:
        self.trainer = trainer = self._parts.open_trainer(*args)
        update = trainer.update

        def watched(*step: Any) -> Any:
            self._before(self, trainer.step + 1)
            metrics = update(*step)
            if trainer.step == STEPS:
                _, self.weights = sent(trainer)
            return metrics

        trainer.update = watched  # type: ignore[method-assign]
        return trainer

    def open_sampler(self, *args: Any) -> Any:
        if self.sampler is None:
            self.sampler = self._parts.open_sampler(*args)
            self.sampler.close = lambda: None
        return self.sampler

    def close(self) -> None:
        del self.sampler.close
        self.sampler.close()


def leave_alone(run: Seen, step: int) -> None:
    """Nothing happens."""


def disturb(run: Seen, step: int) -> None:
    """Let an engine die early in the rollout of step 2, and a rank in the middle of the update of step 3."""
    engines: RoutedSampler = run.sampler
    ranks: RankGroup = run.trainer
    if step == 1:
        run.undo = kill_after(engines, 5, place=0)
    if step == 2:
        run.undo()
        until(lambda: len(engines.live) == 2)
    if step == 3:
        on_rank(ranks, 1, die_at_the_next_optimizer_step)


def nodes_of(folder: Path) -> list[dict[str, Any]]:
    """All nodes of all trees, but for what other batches round."""
    rounded = ("logprobs", "entropies", "advantage", "value")
    return [
        {name: value for name, value in node.items() if name not in rounded}
        for step in range(1, STEPS + 1)
        for tree in read_trees(folder / "run" / "trees" / f"step-{step:05d}.jsonl.zst")
        for node in tree.nodes
    ]


def lines(said: str) -> list[str]:
    """What a terminal shows, but for how far the run is and how long it will take."""
    return [line for line in said.splitlines() if not re.match(r"(training|evaluating) \d+/", line)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_on_ranks_and_engines_is_that_of_one_process_also_where_an_engine_and_a_rank_are_killed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And steps that overlap go over the same engines."""
    model = make_tiny_model(tmp_path, hidden=32, max_model_len=512)
    runs: dict[str, Seen] = {}
    results, said = {}, {}

    def run(name: str, parts: Parts, before: Any, shared: Any = None, steps: int = STEPS, **scale: int) -> None:
        (tmp_path / name).mkdir()
        changes: dict[str, Any] = {"train": {"num_steps": steps, "save_steps": 2, "eval_steps": 100}, "scale": scale}
        settings = make_config(small_run(tmp_path / name, model, **changes))
        runs[name] = Seen(parts, before, shared)
        capfd.readouterr()
        train(settings, Reporter(), parts=runs[name])  # type: ignore[arg-type]
        results[name], said[name] = map(lines, capfd.readouterr())

    run("alone", Parts(), leave_alone)
    with RayParts() as parts, closing(runs["alone"]):
        run("together", parts, disturb, trainer_ranks=2, engines=2)
        with closing(runs["together"]):
            engines = runs["together"].sampler
            run("overlapping", parts, leave_alone, engines, 2, trainer_ranks=1, engines=2, max_staleness=1)

    assert nodes_of(tmp_path / "together") == nodes_of(tmp_path / "alone")
    check_same_metrics(lines_of(tmp_path / "together" / "run"), lines_of(tmp_path / "alone" / "run"))
    weights = runs["together"].weights
    assert weights.keys() == runs["alone"].weights.keys()
    for name, weight in runs["alone"].weights.items():
        assert relative(weights[name], weight) <= 1e-5, name

    assert results["together"] == results["alone"]
    rollouts, path, doubt = said["alone"]
    assert rollouts == "rollouts run on transformers"
    assert said["together"] == [
        "starting 2 trainer ranks ...",
        "starting 2 engines ...",
        "rollouts run on 2 engines (transformers)",
        path,
        "engine 0 is gone (its process died): its turns are sampled again elsewhere",
        "engine 0 is started again (1 of at most 5 times)",
        "engine 0 is back",
        doubt,
        "warning: trainer rank 1 has died: all trainer ranks start again from checkpoint-2",
        ANY,  # the ranks that were started say what they train on
    ]

    ages = [line["staleness/max"] for line in lines_of(tmp_path / "overlapping" / "run") if "staleness/max" in line]
    assert len(ages) == 2
    assert set(ages) <= {0, 1}
    assert said["overlapping"][:2] == ["starting 1 trainer rank ...", "rollouts run on 2 engines (transformers)"]
    assert not any("warning: trainer" in line or "gone" in line for line in said["overlapping"])
