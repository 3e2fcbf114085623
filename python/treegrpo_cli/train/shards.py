"""A tensor that ranks hold together -> what this rank holds of it, and where that lies in the whole.

A tensor that one process holds alone is all its own: each of these gives it back. Nothing of torch's distributed part
is imported for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """Gather it from all ranks, each of which must ask for it."""
    gathered: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return gathered


def own_part(tensor: Any) -> Tensor:
    """What this rank holds, in the memory of the tensor itself."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def place_of(tensor: Any) -> tuple[slice, ...]:
    """Where this rank's part lies in the whole: a slice a dimension; rows that are not there are an empty one."""
    if not is_sharded(tensor):
        return tuple(slice(0, size) for size in tensor.shape)
    [chunk] = tensor.__create_chunk_list__()
    return tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
