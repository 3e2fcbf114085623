"""A process among others that train one model -> what they add up, compare and agree on.

Every rank is a process that runs the same `Trainer` with the same forest and scores. What differs is the rank alone:
which micro-batches it computes, and which part of each weight it keeps.

    store = open_store("10.0.0.7")               # rank 0; store.port is the system's choice
    ranks = join(0, 2, store, "cpu")             # on the others: join(1, 2, ("10.0.0.7", port), "cpu")
    Trainer(config, say, tokenizer, ranks=ranks).update(forest, scores)
    leave()
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.device_mesh import DeviceMesh

TIMEOUT_S = 1800.0
"""How long a rank waits for the others in one exchange, before it gives them up."""

T = TypeVar("T")


class Ranks:
    """The ranks as one of them sees them; this class is a process alone, and imports nothing of torch.distributed.

    `rank` of `size` · `device`: where this rank computes, None where the settings say.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums over ranks, elementwise; the same bits on all of them."""
        return values

    def max(self, values: Tensor) -> Tensor:
        """Return the greatest over ranks, elementwise."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return the tensors of all ranks, stacked in their order."""
        return values[None]

    def agree(self, value: T) -> T:
        """Return rank 0's value: JSON, and small. A tuple comes back as a list."""
        return value

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the ranks of a machine do something one after the other."""
        yield


ALONE = Ranks()
"""One process, which trains by itself."""


class JoinedRanks(Ranks):
    """One rank of torch's process group; `mesh` is all of them, `turn` of `turns` the place on this machine."""

    def __init__(self, device: torch.device, turn: int, turns: int) -> None:
        from torch import distributed
        from torch.distributed.device_mesh import init_device_mesh

        self._distributed = distributed
        self.rank, self.size, self.device = distributed.get_rank(), distributed.get_world_size(), device
        self.mesh: DeviceMesh = init_device_mesh(device.type, (self.size,))
        self._turn = turn
        self._turns = int(self.max(torch.tensor([turns], device=device)))  # machines may have more ranks or fewer

    def gather(self, values: Tensor) -> Tensor:
        """See `Ranks`."""
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self.size)]
        self._distributed.all_gather(parts, values)
        return torch.stack(parts)

    def sum(self, values: Tensor) -> Tensor:
        """See `Ranks`."""
        return self.gather(values).sum(dim=0)

    def max(self, values: Tensor) -> Tensor:
        """See `Ranks`."""
        return self.gather(values).amax(dim=0)

    def agree(self, value: T) -> T:
        """See `Ranks`."""
        text = json.dumps(value).encode() if self.is_first else b""
        size = torch.tensor([len(text)], device=self.device)
        self._distributed.broadcast(size, src=0)
        told = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.is_first:
            told.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        self._distributed.broadcast(told, src=0)
        found: T = json.loads(bytes(told.tolist()))
        return found

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """See `Ranks`; a rank that raises lets the others go on."""
        for _ in range(self._turn):
            self._meet()
        try:
            yield
        finally:
            for _ in range(self._turns - self._turn):
                self._meet()

    def _meet(self) -> None:
        self.gather(torch.zeros(1, device=self.device)).tolist()  # on a card an exchange is only queued


def open_store(host: str = "127.0.0.1", timeout_s: float = TIMEOUT_S) -> TCPStore:
    """Open the place where ranks meet, at an address of rank 0's machine; its `port` is chosen by the system.

    At a loopback address no other machine reaches it.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    own: dict[str, Any] = {}
    port = 0
    if host.startswith("127."):
        listening = socket.create_server((host, 0))
        port = listening.getsockname()[1]
        own["master_listen_fd"] = listening.detach()
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timeout, **own)


def join(
    rank: int,
    size: int,
    store: TCPStore | tuple[str, int],
    device: torch.device | str = "cpu",
    *,
    turn: int | None = None,
    turns: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> JoinedRanks:
    """Join the ranks that meet at `store`, rank 0's own or its address, and wait until all of them have.

    `device` is this rank's, such as cuda:3. `turn` of `turns`: the rank's place on its machine, where there are
    several machines.
    """
    from torch import distributed

    device, timeout = torch.device(device), timedelta(seconds=timeout_s)
    if isinstance(store, tuple):
        store = distributed.TCPStore(*store, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return JoinedRanks(device, rank if turn is None else turn, size if turns is None else turns)


def leave() -> None:
    """Leave the ranks; without it a process may wait for others when it ends."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
