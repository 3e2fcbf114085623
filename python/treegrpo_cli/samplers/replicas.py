"""What a routed sampler asks of each engine behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from treegrpo_cli.errors import UserError

if TYPE_CHECKING:
    from treegrpo_cli.samplers.base import EngineCounts
    from treegrpo_cli.types import Completion, SamplingParams, TokenIds


class ReplicaGoneError(RuntimeError):
    """A replica is dead or cannot be reached: its requests are sampled again by another one. Says why in one line."""


class NoReplicaError(UserError):
    """No replica is left that could sample, and none came back in time."""


class Update(Protocol):
    """New weights, or a new adapter, on their way to the replicas; what they are is between publisher and replica."""

    @property
    def policy_version(self) -> int:
        """The version of what a replica samples with behind it."""
        ...

    @property
    def lasts(self) -> bool:
        """Whether it can be taken at any time until the next one; else a replica that returns waits for the next."""
        ...


class Replica(Protocol):
    """One engine of several. All but `sample` may block, and are called from threads: one call at a time each.

    Each raises ReplicaGoneError where the engine is dead or cannot be reached; any other error is the request's own,
    or our bug.
    """

    name: str

    @property
    def max_model_len(self) -> int:
        """As of `Sampler`."""
        ...

    @property
    def keeps_prefixes(self) -> bool:
        """Whether what it has read of a prompt is cached."""
        ...

    @property
    def takes_adapter(self) -> bool:
        """As of `Sampler`."""
        ...

    async def sample(self, context: TokenIds, params: SamplingParams, seed: int) -> Completion:
        """As `Sampler.sample`; the completion's `policy_version` is the engine's word when sampling began."""
        ...

    def take(self, update: Any) -> None:
        """Compute with what this `Update` brings from now on, and forget cached prefixes.

        Called of all live replicas at the same time.
        """
        ...

    def revive(self) -> int | None:
        """Block until it can be asked again, and return the policy version that it has, None where that is unknown.

        Raises ReplicaGoneError where it is given up for good, or closed meanwhile.
        """
        ...

    def sleep(self) -> None:
        """As `Sampler.sleep`."""
        ...

    def take_counts(self) -> EngineCounts:
        """As `Sampler.take_counts`."""
        ...

    def close(self) -> None:
        """End it; a `revive` that waits in another thread raises. Never raises itself; twice is fine."""
        ...
