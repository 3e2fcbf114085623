"""A file is there whole or not at all, whoever else writes it."""

import os
from pathlib import Path

import pytest
from treegrpo_cli.data import whole_file
from treegrpo_cli.data.whole_file import write_whole


def test_one_that_writes_in_between_is_not_mixed_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "x", os.fsync

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(whole_file.os, "fsync", real)
        write_whole(path, b"short")
        assert path.read_bytes() == b"short"

    monkeypatch.setattr(whole_file.os, "fsync", meanwhile)
    write_whole(path, b"a longer one")
    assert path.read_bytes() == b"a longer one"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_one_that_cannot_be_finished_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    (tmp_path / "x").write_bytes(b"old")

    def fail(_: int) -> None:
        raise stop

    monkeypatch.setattr(whole_file.os, "fsync", fail)
    with pytest.raises(type(stop)):
        write_whole(tmp_path / "x", b"new")
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_link_in_the_folder_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "x").symlink_to("mine")
    write_whole(tmp_path / "x", b"new")
    assert ((tmp_path / "mine").read_bytes(), (tmp_path / "x").read_bytes()) == (b"mine", b"new")
