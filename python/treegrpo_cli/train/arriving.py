"""Adapters that are merged into bfloat16 weights -> the share of what they learn that is left by the rounding.

A weight of bfloat16 takes on a change only from half its spacing on, 2^-9 of the weight. Measured for a layer of
2048 inputs with weights of deviation 0.02, adapters of rank 64 and alpha 32, all entries moved by the rate at each
step in one direction, which is more than an optimizer does: 0.2% of the change arrives after one step of 1e-6, 14%
after 100; 1.5% and 89% at 1e-5; 15% and all at 1e-4. An adapter beside the weights arrives whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.schedule import learning_rate, num_optimizer_steps
from treegrpo_cli.train.shards import whole

LEAST_SHARE = 0.5
NUM_LAYERS, NUM_ROWS = 4, 512
"""What is measured of a model: rows of a few layers."""


def check_merged(policy: Policy, config: Config) -> None:
    """Raise UserError where less than half of what a run can move its adapters by arrives in an engine of bfloat16.

    At most, a step moves each number of an adapter by its learning rate.
    """
    adapter = policy.adapter()
    if adapter is None or policy.dtype == torch.float32:
        return
    steps = num_optimizer_steps(config)
    reach = sum(learning_rate(config, index) for index in range(steps))
    share = best_share(policy, reach)
    if share < LEAST_SHARE:
        raise UserError(
            "sampler.lora: adapters are merged into bfloat16 weights, and at optimizer.learning_rate = "
            f"{config.optimizer.learning_rate:g} rounding keeps at most {share:.0%} of what {steps} steps can change; "
            'set sampler.lora = "adapter" if the engine can, model.dtype = "float32", or a higher rate'
        )


@torch.no_grad()
def best_share(policy: Policy, reach: float) -> float:
    """Return what arrives of adapters whose second factor has moved by `reach` everywhere, in random directions.

    0 where that is too little to be a number.
    """
    adapter = policy.adapter()
    assert adapter is not None
    generator = torch.Generator().manual_seed(0)
    names = list(adapter.layers)
    kept = changed = 0.0
    for name in names[:: max(1, len(names) // NUM_LAYERS)]:
        down, up = adapter.layers[name]
        weight = whole(policy.model.get_submodule(name).get_base_layer().weight)
        signs = torch.randint(0, 2, up[:NUM_ROWS].shape, generator=generator).to(up) * 2 - 1
        delta = adapter.scale * (up[:NUM_ROWS] + reach * signs) @ down
        rows = weight if weight.shape[0] == up.shape[0] else weight.T  # GPT-2 stores inputs first
        moved, wanted = arriving(rows[:NUM_ROWS], delta)
        kept, changed = kept + moved, changed + wanted
    return kept / changed if changed else 0.0


def arriving(weight: Tensor, delta: Tensor) -> tuple[float, float]:
    """Return how far a rounded weight moves along `delta`, and how far it should: both times the length of `delta`."""
    before = weight.to(torch.bfloat16)
    moved = (weight.float() + delta).to(torch.bfloat16).float() - before.float()
    return float((moved * delta).sum()), float((delta * delta).sum())
