"""A trained model -> what an engine is handed: all weights, one tensor at a time, or adapters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Weights:
    """A whole `state_dict()` whose tensors are made one by one, while somebody reads them.

    `shapes` names every tensor, tied ones under each of their names, before any of them is made. A pass over
    `stream` yields just these; a tensor may share memory with the model it comes from. `dtypes` are known before, too,
    where the weights are a policy's.
    """

    def __init__(
        self,
        shapes: dict[str, torch.Size],
        stream: Callable[[], Iterator[tuple[str, torch.Tensor]]],
        dtypes: dict[str, torch.dtype] | None = None,
    ) -> None:
        self.shapes, self.dtypes, self._stream = shapes, dtypes or {}, stream

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._stream()

    @classmethod
    def of(cls, items: Iterable[tuple[str, torch.Tensor]]) -> Weights:
        """Return what is given where it is such a stream already, else one over the tensors that are listed."""
        if isinstance(items, Weights):
            return items
        listed = list(items)
        return cls({name: tensor.shape for name, tensor in listed}, lambda: iter(listed))


@dataclass(frozen=True, slots=True)
class Adapter:
    """Low-rank changes of linear layers: layer `name` adds `alpha / rank * (x @ A.T) @ B.T` to its output.

    `layers`: a module's name in the plain model -> A [rank, inputs] and B [outputs, rank].
    """

    rank: int
    alpha: float
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def scale(self) -> float:
        """What the product of the two counts."""
        return self.alpha / self.rank
