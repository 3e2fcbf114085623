"""A rank's weights -> the engines, card to card, by vLLM's weight-transfer API.

Every rank holds a `Sender` and calls `send` at the same time: all of them gather, layer by layer, and the first one
sends. Nobody holds the whole model: one tensor is gathered at a time, and buffers of `TRANSFER_BYTES` are on their way.

    sender = Sender("nccl", rank, PolicySource(trainer.state_dict_for_sampler()), tensor_parallel)
    sender.send(engines, policy_version)         # their actors, `transfer_...` of which it calls

NCCL and IPC need cards and were never run here. The rest, which is ours, runs in a test against the real engine with a
backend of the test's own; what it calls of vLLM is held to the installed version's names and signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferUpdatePayload,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from treegrpo_cli.models.weights import Weights
from treegrpo_cli.samplers.footprint import TRANSFER_BYTES


class PolicySource(WeightSource):  # type: ignore[misc]
    """The policy's weights as vLLM's trainer side reads them: names, dtypes and shapes first, then one by one.

    All ranks iterate together: each tensor is gathered from them when its turn comes.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def metadata(self) -> list[ParamMeta]:
        """What iteration will yield."""
        weights = self._weights
        return [ParamMeta(name, weights.dtypes[name], tuple(shape)) for name, shape in weights.shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._weights)


class Engines:
    """vLLM's `VLLMWeightSyncClient` over Ray actors: each call goes to all engines at once.

    Every engine is told its own place among the receivers, behind the sender and the engines before it.
    """

    def __init__(self, actors: Sequence[Any], tensor_parallel: int) -> None:
        self._actors, self._tensor_parallel = actors, tensor_parallel
        self.policy_version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let the engines meet the sender."""
        infos = [init_info] * len(self._actors)
        if "rank_offset" in init_info:
            first, size = init_info["rank_offset"], self._tensor_parallel
            infos = [init_info | {"rank_offset": first + number * size} for number in range(len(self._actors))]
        _wait([actor.transfer_open.remote(info) for actor, info in zip(self._actors, infos, strict=True)])

    def start_weight_update(self) -> None:
        """Let the engines wait for weights; one that sleeps wakes for them."""
        _wait([actor.transfer_begin.remote() for actor in self._actors])

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Let the engines take what is sent meanwhile, or what this names."""
        _wait([actor.transfer_take.remote(update_info) for actor in self._actors])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Let the engines sample by the new weights, of version `policy_version`."""
        _wait([actor.transfer_end.remote(self.policy_version) for actor in self._actors])

    def leave(self) -> None:
        """Let the engines forget the sender."""
        _wait([actor.transfer_close.remote() for actor in self._actors])


class Sender:
    """One rank's end of the way; `backend`: one of `INFOS`."""

    def __init__(self, backend: str, rank: int, source: WeightSource, tensor_parallel: int) -> None:
        self._backend, self._rank, self._source = backend, rank, source
        self._tensor_parallel = tensor_parallel
        self._actors: list[Any] = []
        self._engines: Engines | None = None
        self._open: TrainerWeightTransferEngine[Any] | None = None

    def send(self, actors: Sequence[Any], address: tuple[str, int], policy_version: int) -> None:
        """Send all weights to these engines; all ranks call it with the same.

        `address`: of the first rank's machine, with a port that is free there, for engines to meet it where they are
        not those of the last time.
        """
        if self._open is None or list(actors) != self._actors:
            self._meet(list(actors), address)
        assert self._open is not None
        assert self._engines is not None
        self._engines.policy_version = policy_version
        self._open.send_weights()

    def close(self) -> None:
        """Leave the engines."""
        if self._open is not None:
            self._open.shutdown()
            self._open = None

    def _meet(self, actors: list[Any], address: tuple[str, int]) -> None:
        self.close()
        self._actors, self._engines = actors, Engines(actors, self._tensor_parallel)
        if self._rank == 0:
            self._engines.leave()  # whoever sent before, perhaps a rank that is gone
        info = INFOS[self._backend](self._rank, address, 1 + len(actors) * self._tensor_parallel)
        self._open = WeightTransferTrainerFactory.trainer_init(info, client=self._engines, source=self._source)


def nccl_info(rank: int, address: tuple[str, int], world_size: int) -> TrainerInitInfo:
    """What the trainer's side starts with where engines have cards of their own."""
    host, port = address
    return NCCLTrainerInitInfo(
        master_address=host,
        master_port=port,
        world_size=world_size,
        packed=True,
        packed_buffer_size_bytes=TRANSFER_BYTES,
        rank=rank,
    )


def ipc_info(rank: int, address: tuple[str, int], world_size: int) -> TrainerInitInfo:
    """What it starts with where each rank shares a card with an engine's worker: nobody has to be met."""
    return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=TRANSFER_BYTES, rank=rank)


INFOS: dict[str, Callable[[int, tuple[str, int], int], TrainerInitInfo]] = {"nccl": nccl_info, "ipc": ipc_info}
"""By the backend: a rank, the first rank's address, and how many the sender and all workers of all engines are."""


def _wait(calls: list[Any]) -> None:
    import ray

    ray.get(calls)
