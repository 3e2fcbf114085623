"""A gradient of any length -> a short vector with the same inner products, up to a known small error.

Each entry is added, with a sign, to one of `size` places; place and sign are a fixed function of seed and index
(count-sketch). Inner products and squared norms come out right on average over seeds; under one seed a squared norm is
off by √(2/size) of itself, 0.8% at the 2^15 places that a probe takes. Sketches under one seed add up as their vectors
do, so that means, variances and cosines of many vectors can be read from sketches alone.

Source: Charikar, Chen, Farach-Colton 2002, "Finding frequent items in data streams".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 2**22
"""Entries that are placed at once: places take eight bytes each."""


def flat(parts: Iterable[Tensor]) -> Tensor:
    """Return the parts behind each other, [D] float32, on the CPU."""
    return torch.cat([part.reshape(-1).float().cpu() for part in parts])


class Sketch:
    """Parts of a vector -> [size] float32 on the CPU; the parts must come in one order each time.

    >>> sketch = Sketch(4, seed=0)
    >>> one, other = torch.ones(3), torch.full((3,), 2.0)
    >>> bool(torch.equal(sketch([one]) + sketch([other]), sketch([one + other])))
    True
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self._seed = size, seed

    def __call__(self, parts: Iterable[Tensor]) -> Tensor:
        """Sketch one vector."""
        total, start = torch.zeros(0), 0
        for part in parts:
            for chunk in torch.split(part.detach().reshape(-1), CHUNK):
                if not len(total):
                    total = torch.zeros(self.size, device=chunk.device)
                place, sign = self._placed(start, len(chunk), chunk.device)
                total.index_add_(0, place, chunk.float() * sign)
                start += len(chunk)
        return total.cpu() if len(total) else torch.zeros(self.size)

    def _placed(self, start: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        index = torch.arange(start, start + count, dtype=torch.int64, device=device)
        bits = _mixed(index + _signed(self._seed * 0xD1342543DE82EF95 & (2**64 - 1)))
        return (bits & (2**62 - 1)) % self.size, 1.0 - 2.0 * (bits < 0)


def _mixed(index: Tensor) -> Tensor:
    """64 bits of each index that look random: splitmix64's, in wrapping arithmetic."""
    bits = index + _signed(0x9E3779B97F4A7C15)
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return bits ^ ((bits >> 31) & (2**33 - 1))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
