"""Who trains + who samples + on what -> the way that new weights take.

direct    one process: the engine reads the policy's own tensors
store     through Ray's object store, chunk by chunk
nccl      from the first rank's card to the engines' cards, by vLLM's weight-transfer API
ipc       on one card, from a rank's process to its engine's, by the same API
server    by the routes of somebody else's server
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from treegrpo_cli.config import Config

Way: TypeAlias = Literal["direct", "store", "nccl", "ipc", "server"]
Trainers: TypeAlias = Literal["local", "ranks"]
Engines: TypeAlias = Literal["local", "ray", "server"]
Cards: TypeAlias = Literal["cpu", "separate", "colocated"]

API: tuple[Way, ...] = ("nccl", "ipc")
"""The ways of vLLM's weight-transfer API, by the names of its backends."""


def choose_way(trainers: Trainers, engines: Engines, cards: Cards) -> Way:
    """Return the way of weights.

    A trainer in the driver sends through the object store, on GPUs too: its engines may come and go. So does a group of
    ranks whose engine is in the driver.
    """
    if engines == "server":
        return "server"
    if engines == "local":
        return "direct" if trainers == "local" else "store"
    if trainers == "local" or cards == "cpu":
        return "store"
    return "ipc" if cards == "colocated" else "nccl"


def way_of(config: Config, device: str, engine: str) -> Way:
    """Return the way of a run's weights. `device`: what engines and ranks compute on; `engine`: as in `sampler.engine`.

    An adapter that the engine takes unmerged is small: whatever this says, it goes as one object.
    """
    scale = config.scale
    engines: Engines = "server" if engine == "server" else "ray" if scale.engines else "local"
    if device != "cuda" or engine == "transformers":
        cards: Cards = "cpu"
    else:
        cards = scale.placement
    return choose_way("ranks" if scale.trainer_ranks else "local", engines, cards)
