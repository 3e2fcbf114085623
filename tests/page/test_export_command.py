"""`inspect-tree --html` from the outside: what it refuses, what it leaves behind, and whose tokens it shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from treegrpo_cli.errors import FileError

from tests.command_line import run
from tests.page.hostile import page_of, write
from tests.page.reading import block
from tests.sample_trees import nodes_of, tree, vector_trees

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "trees.jsonl"
BYTE_LEVEL = """{"model": {"type": "BPE", "merges": [],
 "vocab": {"\\u0120the": 0, "\\u00e6": 1, "\\u00bc": 2, "\\u00a2": 3}},
 "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
 "added_tokens": [{"id": 4, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false,
 "rstrip": false, "normalized": false}]}"""
"""A blank and a word, the three bytes of a character apart, and an added token."""


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return write(tmp_path / "trees.jsonl", vector_trees())


def refusal(*arguments: str | Path) -> str:
    """The one line that the command says."""
    done = run("inspect-tree", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    return line.removeprefix("treegrpo: ")


@pytest.mark.parametrize(
    "other",
    [
        "--format json",
        "--format tree",
        "--format pairs",
        "--nested",
        "--summary",
        "--full",
        "--explain 1",
        "--width 80",
    ],
)
def test_a_page_and_another_way_of_showing_trees_are_refused_together(vectors: Path, other: str) -> None:
    name = other.split()[0]
    said = refusal(vectors, "--html", vectors.parent / "page.html", *other.split())
    assert said == f"--html cannot be combined with {name}: the page has it all"
    assert not (vectors.parent / "page.html").exists()


def test_a_page_is_written_whole_or_not_at_all(vectors: Path) -> None:
    folder = vectors.parent
    assert refusal(vectors, "--html", "-").startswith("--html -: give the name of a file")
    assert refusal(vectors, "--html", folder).startswith(f"{folder}: is a folder of something else")
    assert refusal(vectors, "--html", folder / "no" / "page.html") == f"{folder / 'no'}: no such folder"
    assert refusal(vectors, "--html", "/dev/full").startswith("/dev/full: is there and is no folder")
    (folder / "broken.jsonl").write_text("{}\n")
    (folder / "page.html").write_text("an older page")
    assert "broken.jsonl:1: " in refusal(folder / "broken.jsonl", "--html", folder / "page.html")
    assert (folder / "page.html").read_text() == "an older page"
    assert run("inspect-tree", vectors, "--html", folder / "page.html").returncode == 0
    assert (folder / "page.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in folder.iterdir()) == ["broken.jsonl", "page.html", "trees.jsonl"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_page_that_is_stopped_in_the_middle_leaves_the_old_one_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: BaseException
) -> None:
    path = page_of(tmp_path, [tree("old")])
    old = path.read_bytes()

    def stop(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises((KeyboardInterrupt, FileError)) as raised:
        page_of(tmp_path, [tree("new")])
    if isinstance(failure, OSError):
        assert str(raised.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_bytes() == old
    assert {entry.name for entry in tmp_path.iterdir()} == {"trees.jsonl", "page.html"}


def test_trees_come_from_standard_input_too(tmp_path: Path, vectors: Path) -> None:
    done = run("inspect-tree", "-", "--html", tmp_path / "page.html", stdin=vectors.read_bytes())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert block(tmp_path / "page.html", "index")["title"] == "standard input"


def test_a_tokenizer_without_a_page_is_refused(vectors: Path) -> None:
    assert refusal(vectors, "--tokenizer", vectors.parent).startswith("--tokenizer goes with --html")


def test_a_tokenizer_that_cannot_be_read_is_named(vectors: Path) -> None:
    folder, page = vectors.parent, vectors.parent / "page.html"
    assert refusal(vectors, "--html", page, "--tokenizer", folder).endswith("tokenizer.json: No such file or directory")
    (folder / "tokenizer.json").write_text("[]")
    assert "tokenizer.json: no tokenizer: " in refusal(vectors, "--html", page, "--tokenizer", folder)


def test_the_shipped_trees_are_shown_with_the_texts_of_their_tokens(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("inspect-tree", EXAMPLE, "--tokenizer", ROOT / "examples" / "geography", "--html", page)
    assert (done.returncode, done.stderr) == (0, "")
    [vocabulary] = block(page, "vocabularies")
    texts = dict(zip(vocabulary["ids"], vocabulary["texts"], strict=True))
    assert None not in texts.values()
    assert [texts[token] for token in (4, 372, 867, 849, 16, 5)] == [
        "<think>",
        "First",
        "the",
        "country",
        ".",
        "</think>",
    ]


def test_without_a_tokenizer_there_are_ids_alone(tmp_path: Path) -> None:
    assert run("inspect-tree", EXAMPLE, "--html", tmp_path / "page.html").returncode == 0
    assert block(tmp_path / "page.html", "vocabularies") == []
    assert set(block(tmp_path / "page.html", "index")["trees"]["vocabulary"]) == {-1}


def test_pieces_of_a_character_are_shown_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(BYTE_LEVEL)
    nodes = nodes_of([None, 0, 0], [None, 1.0, 0.0])
    nodes[1] |= {"token_ids": [0, 1, 2, 3, 4, 9], "sampled": [[0, 6]]}
    trees = write(tmp_path / "trees.jsonl", [tree("q", 0, nodes), tree("q", 1)])
    done = run("inspect-tree", trees, "--tokenizer", tmp_path, "--html", tmp_path / "page.html")
    assert (done.returncode, done.stderr) == (0, "")
    [vocabulary] = block(tmp_path / "page.html", "vocabularies")
    assert vocabulary["ids"] == [0, 1, 2, 3, 4, 9]
    assert vocabulary["texts"] == [" the", "\\xe6", "\\xbc", "\\xa2", "<|end|>", None]
    assert not vocabulary["spaced"]


def test_a_page_does_not_take_the_place_of_the_trees_that_it_shows(vectors: Path) -> None:
    source = vectors.rename(vectors.with_name("trees.html"))
    before = source.read_bytes()
    assert refusal(source, "--html", source).endswith(
        "trees.html: is the file that is read; give the page another name"
    )
    assert source.read_bytes() == before
