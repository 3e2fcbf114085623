"""What actors of the tests are: classes that a process of Ray finds by their names."""

import os
from typing import Any

from treegrpo_cli.scale.placement import VISIBLE
from treegrpo_cli.scale.weights import Receiver


class Sums:
    """A sampler that knows the sums of its weights."""

    found: dict[str, float]
    policy_version = -1

    def update_weights(self, weights: Any, policy_version: int) -> None:
        self.found = {name: float(tensor.float().sum()) for name, tensor in weights}
        self.policy_version = policy_version


class Part(Receiver):
    """An actor that says which GPUs it sees."""

    def __init__(self) -> None:
        self.sampler = Sums()  # type: ignore[assignment]

    def visible(self) -> str | None:
        return os.environ.get(VISIBLE)

    def taken(self) -> tuple[int, dict[str, float]]:
        sampler: Any = self.sampler
        return sampler.policy_version, sampler.found
