"""Named tensors -> chunks of about 64 MiB, which other processes read without a copy -> the tensors.

There is no Ray in here. A chunk holds the bytes of whole tensors, of any dtype; those that lie in this process's memory
already are looked at, not copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

CHUNK_BYTES = 64 << 20

Items: TypeAlias = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tensors: names, dtypes as torch calls them, shapes, and their bytes, u8, each tensor's in C order."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    parts: tuple[NDArray[np.uint8], ...]

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        return sum(part.nbytes for part in self.parts)

    @classmethod
    def of(cls, items: Items) -> Chunk:
        """Take these tensors, whose memory it shares where that is this process's."""
        listed = list(items)
        return cls(
            names=tuple(name for name, _ in listed),
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in listed),
            shapes=tuple(tuple(tensor.shape) for _, tensor in listed),
            parts=tuple(_bytes_of(tensor) for _, tensor in listed),
        )

    def items(self) -> list[tuple[str, torch.Tensor]]:
        """Its tensors, which share its memory: they are read, and never written to."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of memory that it should not write to
            described = zip(self.names, self.dtypes, self.shapes, self.parts, strict=True)
            return [(name, _tensor_of(part, dtype, shape)) for name, dtype, shape, part in described]


def chunks(items: Items, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut whole tensors into chunks, in their order; a tensor that is larger than a chunk is one alone.

    No tensor is asked for before the chunk of those before it has been taken.
    """
    held: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in items:
        if held and size + tensor.nbytes > chunk_bytes:
            yield Chunk.of(held)
            held, size = [], 0
        held.append((name, tensor))
        size += tensor.nbytes
        del tensor  # or it would be held while the next one is made
    if held:
        yield Chunk.of(held)


def _tensor_of(part: NDArray[np.uint8], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, name)
    return torch.from_numpy(part).view(dtype).reshape(shape) if part.size else torch.empty(shape, dtype=dtype)


def _bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    viewed: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return viewed
