"""Nothing whole is lost to a damage elsewhere in the file."""

import os
from pathlib import Path

import pytest
import zstandard
from treegrpo_cli.data.salvage import find_lines, move_aside
from treegrpo_cli.data.syncer import Syncer
from treegrpo_cli.types import Limits

LINES = [b"line %d " % number + b"x" * (number * 37 % 500) for number in range(40)]


def frames(lines: list[bytes]) -> list[bytes]:
    pack = zstandard.ZstdCompressor(write_checksum=True).compress
    return [pack(b"".join(line + b"\n" for line in lines[first : first + 4])) for first in range(0, len(lines), 4)]


def found(path: Path, limits: Limits | None = None) -> list[bytes]:
    return [item.line for item in find_lines(path, limits or Limits()) if item.line is not None]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_a_file_without_damage_gives_all_its_lines_clean(tmp_path: Path, name: str) -> None:
    content = b"".join(frames(LINES)) if name.endswith("zst") else b"".join(line + b"\n\n" for line in LINES)
    (tmp_path / name).write_bytes(content)
    items = list(find_lines(tmp_path / name, Limits()))
    assert [item.line for item in items] == LINES
    assert all(item.is_clean for item in items)


@pytest.mark.parametrize("place", [0, 1, 6, 60, 200, 333])
def test_a_flipped_byte_costs_a_frame_and_no_more(tmp_path: Path, place: int) -> None:
    path, packed = tmp_path / "t.zst", frames(LINES)
    broken = bytearray(packed[3])
    broken[min(place, len(broken) - 5)] ^= 0x10
    path.write_bytes(b"".join([*packed[:3], bytes(broken), *packed[4:]]))
    assert found(path) == LINES[:12] + LINES[16:]
    before = sum(map(len, packed[:3]))
    damage = [(item.start, item.end) for item in find_lines(path, Limits()) if item.line is None]
    assert damage[0][0] == before
    assert damage[-1][1] == before + len(broken)


@pytest.mark.parametrize("cut", [1, 3, 17])
def test_a_half_written_frame_with_others_behind_it_is_passed_over(tmp_path: Path, cut: int) -> None:
    path, packed = tmp_path / "t.zst", frames(LINES)
    path.write_bytes(b"".join([*packed[:3], packed[3][:-cut], *packed[4:]]))
    assert set(LINES[:12] + LINES[16:]) <= set(found(path))
    path.write_bytes(b"".join(packed)[:-cut])
    assert set(LINES[:36]) <= set(found(path))
    assert not list(find_lines(path, Limits()))[-1].is_clean


def test_lines_that_go_on_in_the_next_frame_are_whole(tmp_path: Path) -> None:
    content, pack = b"".join(line + b"\n" for line in LINES), zstandard.ZstdCompressor().compress
    (tmp_path / "t.zst").write_bytes(pack(content[:1003]) + pack(content[1003:4007]) + pack(content[4007:]))
    assert found(tmp_path / "t.zst") == LINES


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_a_line_that_is_too_long_is_damage_and_the_next_ones_are_not(tmp_path: Path, name: str) -> None:
    parts = [b"a\n", b"y" * 5000 + b"\n", b"b\n"]
    pack = zstandard.ZstdCompressor().compress if name.endswith("zst") else bytes
    (tmp_path / name).write_bytes(b"".join(map(pack, parts)))
    assert found(tmp_path / name, Limits(max_line_bytes=100)) == [b"a", b"b"]


def test_a_last_line_without_its_end_is_given_and_not_clean(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"a\nb")
    assert [(item.line, item.is_clean) for item in find_lines(tmp_path / "t.jsonl", Limits())] == [
        (b"a", True),
        (b"b", False),
    ]


def test_damage_is_copied_to_a_new_file_each_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"0123456789")
    assert move_aside(path, []) is None
    assert move_aside(path, [(4, 6), (0, 2), (4, 6)]) == tmp_path / "t.jsonl.damaged-1"
    assert move_aside(path, [(9, 10)]) == tmp_path / "t.jsonl.damaged-2"
    assert (tmp_path / "t.jsonl.damaged-1").read_bytes() == b"0145"
    assert (tmp_path / "t.jsonl.damaged-2").read_bytes() == b"9"


def test_a_growing_file_is_synced_by_a_thread_and_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    with open(tmp_path / "t", "wb", buffering=0) as file:
        syncer = Syncer(file.fileno())
        for _ in range(1000):
            file.write(b"x")
            syncer.changed()
        syncer.close()
    assert sizes[-1] == 1000
    assert len(sizes) < 10


def test_a_sync_that_fails_is_raised_to_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with open(tmp_path / "t", "wb", buffering=0) as file:
        syncer = Syncer(file.fileno())
        with pytest.raises(OSError, match="No space left"):
            syncer.close()
