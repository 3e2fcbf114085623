"""What tests do to ranks, and what ranks send."""

import os
import signal
from collections.abc import Callable
from typing import Any

import ray
import torch
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.scale.trainer import RankGroup


class TakesWeights:
    """A sampler that keeps what it is sent."""

    takes_adapter = False

    def update_weights(self, weights: Weights, policy_version: int) -> None:
        self.version, self.weights = policy_version, {name: tensor.clone() for name, tensor in weights}
        assert {name: tensor.shape for name, tensor in self.weights.items()} == weights.shapes


def sent(trainer: Any) -> tuple[int, dict[str, torch.Tensor]]:
    sampler = TakesWeights()
    trainer.send_weights(sampler)
    return sampler.version, sampler.weights


def on_rank(group: RankGroup, rank: int, work: Callable[[Any], Any]) -> Any:
    """Do something inside a rank's process; `work` takes its trainer."""
    assert group._actors is not None
    actor = group._actors._actors[rank]
    return ray.get(actor.__ray_call__.remote(lambda self: work(self._trainer)))


def die_at_the_next_optimizer_step(trainer: Any) -> None:
    trainer.optimizer.register_step_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
