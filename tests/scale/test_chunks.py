"""Chunks hold whole tensors of any kind, and a window holds a few of them at a time."""

import gc
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from treegrpo_cli.models.chunks import Chunk, chunks
from treegrpo_cli.scale.window import MissedError, Window


class Part:
    """Something whose life can be watched."""

    def __init__(self, number: int) -> None:
        self.number = number


class Parts:
    """Makes `total` parts, and knows how many are alive, and how many were at most."""

    def __init__(self, total: int) -> None:
        self.total, self.alive, self.most, self.made = total, 0, 0, 0

    def __iter__(self) -> Iterator[Part]:
        for number in range(self.total):
            part = Part(number)
            self.made += 1
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(part, self._end)
            yield part
            del part

    def _end(self) -> None:
        self.alive -= 1


def test_tensors_of_every_dtype_and_shape_come_back_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    given = {
        "bfloat16": torch.randn(3, 5, generator=generator).bfloat16(),
        "float32": torch.randn(2, 3, 4, generator=generator),
        "one number": torch.tensor(2.5, dtype=torch.bfloat16),
        "nothing": torch.empty(0, 4),
        "integers": torch.arange(7),
        "transposed": torch.randn(4, 6, generator=generator).t(),
        "trained": torch.nn.Parameter(torch.randn(4, generator=generator)),
    }
    back = dict(item for chunk in chunks(given.items(), 64) for item in chunk.items())
    assert list(back) == list(given)
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor.detach())


def test_a_chunk_shares_the_memory_of_what_lies_there_in_one_piece() -> None:
    tensor = torch.zeros(8, dtype=torch.bfloat16)
    chunk = Chunk.of([("weight", tensor)])
    tensor.fill_(3.0)
    assert torch.equal(dict(chunk.items())["weight"], tensor)
    assert chunk.num_bytes == 16


def test_bytes_that_may_not_be_written_to_are_read_without_a_warning() -> None:
    (part,) = Chunk.of([("weight", torch.arange(4.0))]).parts
    part.flags.writeable = False
    ((_, tensor),) = Chunk(("weight",), ("float32",), ((4,),), (part,)).items()
    assert np.shares_memory(tensor.numpy(), part)


def test_chunks_are_cut_between_tensors_and_a_large_one_is_alone() -> None:
    sizes = [10, 30, 20, 100, 5, 5]
    items = [(str(number), torch.zeros(size, dtype=torch.uint8)) for number, size in enumerate(sizes)]
    assert [chunk.names for chunk in chunks(items, 40)] == [("0", "1"), ("2",), ("3",), ("4", "5")]


def test_no_tensor_is_made_before_the_chunk_in_front_of_it_is_taken() -> None:
    made = []

    def items() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(6):
            made.append(number)
            yield str(number), torch.zeros(10)

    cut = chunks(items(), 80)
    next(cut)
    assert made == [0, 1, 2]  # the third one showed that the chunk was full


@pytest.mark.parametrize("num_readers", [1, 3])
def test_readers_side_by_side_read_everything_and_a_few_parts_are_alive(num_readers: int) -> None:
    parts = Parts(40)
    window = Window(iter(parts), 3)
    readers = [window.read() for _ in range(num_readers)]
    found: list[list[int]] = [[] for _ in readers]

    def read(place: int) -> None:
        for part in readers[place]:
            found[place].append(part.number)
            del part

    threads = [threading.Thread(target=read, args=(place,)) for place in range(num_readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [list(range(40))] * num_readers
    assert parts.made == 40
    assert parts.most <= 3 + 1  # the window, and a reader that takes one while the next is made
    readers.clear()
    gc.collect()
    assert parts.alive == 0


def test_the_fastest_reader_waits_for_the_slowest_until_that_one_stops() -> None:
    parts = Parts(10)
    window = Window(iter(parts), 2)
    slow, fast = window.read(), window.read()
    next(slow)
    next(fast)
    next(fast)
    reached: list[int] = []
    thread = threading.Thread(target=lambda: reached.extend(part.number for part in fast))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    assert parts.made == 2
    slow.close()  # type: ignore[attr-defined]
    thread.join(30)
    assert reached == list(range(2, 10))


def test_no_part_moves_while_another_is_looked_up() -> None:
    window = Window(iter(range(6)), 2)

    class Kept(deque[int]):
        def __getitem__(self, place: Any) -> Any:
            with ThreadPoolExecutor(1) as other:
                assert not other.submit(window._changed.acquire, False).result()
            return super().__getitem__(place)

    window._kept = Kept()
    assert list(window.read()) == list(range(6))


def test_who_comes_when_the_first_part_is_gone_needs_a_pass_of_its_own() -> None:
    window = Window(iter(range(5)), 2)
    reader = window.read()
    assert [next(reader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MissedError, match="3 parts were made, and 2 are kept"):
        window.read()


def test_what_making_a_part_raises_reaches_every_reader() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no room")

    window = Window(broken(), 2)
    first, second = window.read(), window.read()
    assert (next(first), next(second)) == (1, 1)
    for reader in (first, second):
        with pytest.raises(OSError, match="no room"):
            next(reader)
