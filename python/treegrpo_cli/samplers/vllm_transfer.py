"""vLLM's weight-transfer API -> new weights for an engine from a trainer in another process, card to card.

    engine started with weight_transfer_config = {"backend": "nccl"}        ("ipc": trainer and engine share a card)
    open(info)                 once, and whenever who takes part has changed
    begin() · take(info) ... · end(policy_version)          an update; `info` is what the trainer's side sends along

The trainer's side, `scale.transfer`, calls these on all engines at once. An engine that sleeps wakes for its weights in
`begin` and for its cache in `end`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any


def transfer_settings(backend: str) -> dict[str, Any]:
    """Return the engine's settings for a backend of the API; none where it is empty."""
    from vllm.config import WeightTransferConfig

    return {"weight_transfer_config": WeightTransferConfig(backend=backend)} if backend else {}


class WeightTransfer:
    """An engine's end. `waking` wakes it for the time of an update, `commit` makes the new version the one it has."""

    def __init__(
        self, engine: Any, waking: Callable[[], AbstractContextManager[None]], commit: Callable[[int], None]
    ) -> None:
        self._engine, self._waking, self._commit = engine, waking, commit
        self._update = ExitStack()

    def open(self, info: dict[str, Any]) -> None:
        """Meet the trainer."""
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": info})

    def close(self) -> None:
        """Leave the trainer, so that another one can be met."""
        self._engine.collective_rpc("shutdown_weight_transfer_engine")

    def begin(self) -> None:
        """Wait for weights."""
        self._update.enter_context(self._waking())
        self._engine.collective_rpc("start_weight_update")

    def take(self, info: dict[str, Any]) -> None:
        """Take what comes now: with NCCL all weights, with IPC a buffer of them."""
        self._engine.collective_rpc("update_weights", kwargs={"update_info": info})

    def end(self, policy_version: int) -> None:
        """Compute with the new weights."""
        self._engine.collective_rpc("finish_weight_update")
        self._commit(policy_version)
        self._update.close()
