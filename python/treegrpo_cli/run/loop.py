"""Config -> a trained policy: the whole algorithm on one page.

Each step draws prompts, grows a few trees for each, rewards their leaves, turns the differences between
sibling subtrees into advantages, updates the policy, and hands the new weights to the engine.

Source: Tree-GRPO (arXiv 2509.21240), section 3.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import count

from treegrpo_cli._core import derive_seed
from treegrpo_cli.config import Config
from treegrpo_cli.rollout.forest import join, score
from treegrpo_cli.rollout.tree import Prompt
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.session import Session
from treegrpo_cli.run.tree_metrics import learned_prompts, tree_metrics
from treegrpo_cli.types import Task


def train(
    config: Config,
    reporter: Reporter,
    *,
    resume: bool = False,
    named: Collection[str] = (),
    parts: Parts | None = None,
) -> None:
    """Train the policy that `config` describes; all it leaves behind is in `config.output_dir`.

    `named` are the settings that a resumed run may change although they change the result; `parts`: who trains and who
    samples, by default this process. Raises UserError for what is wrong with settings, data, model or disk; Stopped
    where the user ended the run. Whatever ends it, a checkpoint of the last whole step is behind it.
    """
    with Session(config, reporter, resume=resume, named=named, parts=parts) as session:
        session.evaluate_if_due()  # before the first step
        while not session.is_done:
            take_step(session, config)


def take_step(session: Session, config: Config) -> None:
    """Grow trees, score them, learn from them, hand the new weights over; nothing of it is held behind its end."""
    session.clock.start()
    trees = session.grow(prompts_from(session.tasks, config, session.num_prompts))
    with session.clock.of("scoring"):
        forest = join(trees)
        scores = score(forest, trees, config.advantage)
        prompts = learned_prompts(forest, config.advantage.dead_prompts)
    metrics = session.update(forest, scores, prompts)
    session.send_weights()
    metrics |= tree_metrics(forest, scores, prompts)
    session.finish_step(trees, scores, prompts, metrics)


def prompts_from(tasks: Sequence[Task], config: Config, first: int) -> Iterator[Prompt]:
    """Yield prompts for ever, from this number on: whole passes over the data, each in an order of its own.

    Which row a number draws is pure in (seed, number), so a run goes on from the count of prompts behind it.
    """
    for number in count(first):
        epoch, place = divmod(number, len(tasks))
        row = epoch_order(len(tasks), config.seed, epoch)[place] if config.data.shuffle else place
        yield Prompt.numbered(number, tasks[row])


@lru_cache(maxsize=2)
def epoch_order(num_tasks: int, seed: int, epoch: int) -> Sequence[int]:
    """The order in which a pass over the data draws its rows."""
    order = list(range(num_tasks))
    random.Random(derive_seed([seed, epoch])).shuffle(order)  # noqa: S311 - no secret
    return order
