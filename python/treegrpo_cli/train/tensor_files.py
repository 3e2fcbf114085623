"""Named tensors, gathered one by one -> safetensors files that all ranks write side by side.

    NAME.tensors                      where one file is enough
    NAME-00001-of-00003.tensors …     else: each tensor whole, in one of them

File k is written by rank k mod n. No rank holds more on the host than one file, of at most 1 GiB or of one tensor,
and each reads its own rows only, on whatever number of ranks: a tensor is stored whole, so what wrote it leaves no
trace. torch's own distributed checkpoints store each rank's part: their layout is in a pickle (`.metadata`), or, with
its storage in safetensors, in files that transformers reads only after all is written a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

from treegrpo_cli.train.checkpoint_folders import sync

if TYPE_CHECKING:
    from torch import Tensor

    from treegrpo_cli.train.ranks import Ranks

MAX_FILE_BYTES = 1 << 30


def write_files(
    folder: Path,
    name: str,
    num_bytes: Mapping[str, int],
    tensors: Iterable[tuple[str, Tensor]],
    ranks: Ranks,
) -> dict[str, str]:
    """Write `tensors`, which come in the order of `num_bytes`, to files called after `name`; return each one's file.

    Every rank reads `tensors` to its end, which may gather them, whatever fails. Raises OSError or SafetensorError on
    a rank whose disk does not take its part.
    """
    files = deal(num_bytes, min(MAX_FILE_BYTES, -(-sum(num_bytes.values()) // ranks.size)))
    stream, failure = iter(tensors), None
    where: dict[str, str] = {}
    for number, names in enumerate(files):
        file = file_name(name, number, len(files))
        where |= dict.fromkeys(names, file)
        is_own = number % ranks.size == ranks.rank and failure is None
        held = {}
        for expected in names:
            found, tensor = next(stream)
            assert found == expected, f"{found} comes where {expected} was announced"
            if is_own:
                held[found] = tensor.detach().contiguous().cpu()
        if is_own:
            failure = _write(held, folder / file)
    if failure is not None:
        raise failure
    return where


def deal(num_bytes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Put names into files, in their order, each of at most `limit` bytes or of one tensor.

    >>> deal({"a": 3, "b": 4, "c": 9, "d": 1}, 8)
    [['a', 'b'], ['c'], ['d']]
    """
    files: list[list[str]] = []
    room = 0
    for name, size in num_bytes.items():
        if not files or size > room:
            files.append([])
            room = limit
        files[-1].append(name)
        room -= size
    return files or [[]]


def file_name(name: str, number: int, total: int) -> str:
    """Return the name of one of `total` files, counted from 0.

    >>> file_name("model.safetensors", 0, 1), file_name("model.safetensors", 0, 2)
    ('model.safetensors', 'model-00001-of-00002.safetensors')
    """
    stem, ending = name.rsplit(".", 1)
    return name if total == 1 else f"{stem}-{number + 1:05d}-of-{total:05d}.{ending}"


def files_of(folder: Path, name: str) -> Sequence[Path]:
    """Return the files that `write_files` wrote to a folder; `name` itself where there is none."""
    stem, ending = name.rsplit(".", 1)
    return sorted(folder.glob(f"{stem}-?????-of-?????.{ending}")) or [folder / name]


def _write(tensors: dict[str, Tensor], path: Path) -> OSError | SafetensorError | None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})  # the format that transformers asks for
        sync(path)
    except (OSError, SafetensorError) as error:
        return error
    return None
