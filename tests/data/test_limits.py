"""Small files that would fill memory or never end are refused in one line, and big honest ones are read."""

import dataclasses
import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from treegrpo_cli.config import LimitsConfig
from treegrpo_cli.config.files import make_config
from treegrpo_cli.data.json_lines import read_json_lines
from treegrpo_cli.data.json_values import JsonError, parse_json
from treegrpo_cli.data.lines import read_lines
from treegrpo_cli.data.tasks import load_tasks, row_digest
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.rollout.world import World
from treegrpo_cli.run.preflight import check, train_questions
from treegrpo_cli.trees.tree_file import read_trees
from treegrpo_cli.types import Limits

from tests.sample_trees import tree
from tests.tiny import make_tiny_tokenizer

ROW = {"question": "Capital of Peru?", "answer": "Lima"}


def refused(work: Callable[[], object], message: str) -> None:
    """`work` is refused in one bounded line that matches."""
    with pytest.raises(FileError, match=message) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(zstandard.ZstdCompressor().compress(content) if path.suffix == ".zst" else content)
    return path


def test_the_settings_are_the_limits() -> None:
    assert LimitsConfig().resolved == Limits()
    assert set(LimitsConfig.model_fields) == {field.name for field in dataclasses.fields(Limits)}
    assert LimitsConfig(max_lines=7).resolved == Limits(max_lines=7)


def test_runs_read_their_data_within_the_limits_of_their_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f"{json.dumps(ROW)}\n".encode() * 3)
    settings = {"data": {"train": str(path)}, "limits": {"max_rows": 2}}
    config = make_config(settings)
    with pytest.raises(UserError, match=r"limits\.max_rows = 2"):
        check(config, [train_questions(config)])


def test_a_corpus_is_read_within_the_limits_of_the_settings(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", b'{"title": "a", "text": "b"}\n' * 3)
    settings = {"environment": {"options": {"corpus": str(corpus)}}, "limits": {"max_lines": 2}}
    refused(lambda: World(make_config(settings), make_tiny_tokenizer()), r"corpus.jsonl:\d: more lines than")
    World(make_config(settings | {"limits": {"max_lines": 9}}), make_tiny_tokenizer())


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_a_tree_of_megabytes_is_read(tmp_path: Path, name: str) -> None:
    long = tree()
    long["nodes"][1]["token_ids"] = list(range(300_000))
    lines = b"".join(json.dumps(fields).encode() + b"\n" for fields in (tree("a"), long, tree("z")))
    read = list(read_trees(write(tmp_path / name, lines)))
    assert [record.prompt_id for record in read] == ["a", long["prompt_id"], "z"]
    assert read[1].nodes[1]["token_ids"][-1] == 299_999


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_line_numbers_count_blank_lines_wherever_chunks_end(tmp_path: Path, name: str) -> None:
    content, expected, number = b"", [], 1
    for blank in (0, 3, 300_000, 1, 0):
        content += b"\n" * blank + b' {"x": ' + b" " * (blank % 7) + b"1}\r\n"
        number += blank
        expected.append(number)
        number += 1
    content += b"  \n\t\n" + b'{"last": 1}'
    found = list(read_lines(write(tmp_path / name, content)))
    assert [line for line, _ in found] == [*expected, number + 2]
    assert found[1] == (5, b' {"x":    1}\r')
    assert found[-1][1] == b'{"last": 1}'


def test_newlines_without_end_take_neither_time_nor_memory(tmp_path: Path) -> None:
    packed = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(packed.compress(b"\n" * 2**20) for _ in range(150)) + packed.flush()
    path = tmp_path / "t.jsonl.zst"
    path.write_bytes(bomb)
    assert len(bomb) < 13_000
    tracemalloc.start()
    try:
        refused(lambda: list(read_trees(path)), r"zst:\d+: more lines than limits\.max_lines = 100000000")
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_file_bytes=5000), r"more bytes than limits\.max_file_bytes = 5000"),
        (Limits(max_line_bytes=500), r":3: longer than limits\.max_line_bytes = 500"),
        (Limits(max_lines=2), r"more lines than limits\.max_lines = 2"),
        (Limits(max_read_s=1e-9), r"limits\.max_read_s = 1e-09"),
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_each_limit_on_lines_is_named(tmp_path: Path, name: str, limits: Limits, message: str) -> None:
    path = write(tmp_path / name, b'{"a": 1}\n{"a": 2}\n{"a": "' + b"x" * 6000 + b'"}\n')
    assert len(list(read_json_lines(path))) == 3
    refused(lambda: list(read_json_lines(path, limits)), message)


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_objects_without_end_are_not_made(tmp_path: Path, name: str) -> None:
    nodes = b"{}," * (2**24 + 1)
    path = write(tmp_path / name, b'{"schema": "treegrpo.tree/1", "nodes": [' + nodes + b"{}]}\n")
    refused(lambda: list(read_trees(path)), r":1: more objects and lists than limits\.max_line_objects = 16777216")


def test_a_list_of_too_many_rows_or_bytes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([ROW] * 100).encode())
    assert len(load_tasks(str(path))) == 100
    refused(lambda: load_tasks(str(path), limits=Limits(max_line_objects=50)), r"limits\.max_line_objects = 50")
    refused(lambda: load_tasks(str(path), limits=Limits(max_data_bytes=500)), r"limits\.max_data_bytes = 500")
    refused(lambda: load_tasks(str(path), limits=Limits(max_rows=99)), r":100: more rows than limits\.max_rows = 99")
    assert len(load_tasks(str(path), limit=60, limits=Limits(max_rows=50))) == 60


def write_repeated(path: Path, text: str, num_rows: int) -> None:
    """Parquet of one long text in every row: a few kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"question": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 20_000


def test_parquet_of_too_many_rows_or_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_repeated(path, "why " * 1000, 5000)
    refused(lambda: load_tasks(str(path), limits=Limits(max_rows=99)), r"limits\.max_rows = 99")
    refused(lambda: load_tasks(str(path), limits=Limits(max_data_bytes=10**6)), r"limits\.max_data_bytes = 1000000")
    assert len(load_tasks(str(path))) == 5000


def test_a_long_text_that_parquet_packs_once_is_unpacked_for_few_rows_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_repeated(path, "x" * 2**25, 2000)
    refused(lambda: load_tasks(str(path), limits=Limits(max_data_bytes=2**27)), r"limits\.max_data_bytes")
    assert pa.total_allocated_bytes() < 2**30


def bad_parquet(path: Path, column: Any) -> str:
    pq.write_table(pa.table({"question": ["a", "b", "c"], "extra": column}), path)
    return str(path)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"ok", b"\xff\xfe", b"ok"]).view(pa.string()), r"parquet:2: cannot .*utf-8"),
        (pa.array([0, 1, 2**55], pa.int64()).view(pa.timestamp("ms")), r"parquet:3: cannot"),
        (pa.array([nested(300)] * 3), r"parquet: cannot read it as Parquet: .*nested"),
    ],
)
def test_parquet_that_python_cannot_hold_is_named_with_its_row(tmp_path: Path, column: Any, message: str) -> None:
    refused(lambda: load_tasks(bad_parquet(tmp_path / "a.parquet", column)), message)


def test_a_pipe_without_a_writer_is_waited_for_and_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    limits = Limits(max_wait_s=0.05)
    refused(lambda: load_tasks(str(tmp_path / "a.jsonl"), limits=limits), r"pipe .*limits\.max_wait_s = 0\.05")
    os.mkfifo(tmp_path / "a.parquet")
    refused(lambda: load_tasks(str(tmp_path / "a.parquet")), "not a regular file")


def test_a_pipe_with_a_writer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text(f"{json.dumps(ROW)}\n" * 3))
    writer.start()
    assert len(load_tasks(str(path))) == 3
    writer.join()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_zeros_without_end_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    refused(lambda: load_tasks(str(tmp_path / name)), r":1: not JSON Lines")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ""])
@pytest.mark.parametrize(("name", "message"), [("nul\0", "NUL|null|must end"), ("x" * 300, "name too long|Parquet")])
def test_a_path_that_no_file_can_have_is_named(tmp_path: Path, suffix: str, name: str, message: str) -> None:
    refused(lambda: load_tasks(f"{tmp_path}/{name}{suffix}"), f"(?i){message}")


@pytest.mark.parametrize(
    "text",
    [
        "18446744073709551615",
        "-9223372036854775808",
        '"184467440737095516160000"',
        "-0.00012345678901234567",
        "1e19",
        "12345678901234567890123.5",
        '"x -9999999999999999999999"',
    ],
)
def test_what_json_holds_exactly_is_read(text: str) -> None:
    assert parse_json(f'{{"a":{text}}}', Limits()) == json.loads(f'{{"a":{text}}}')
    assert parse_json(f'{{"a":[0,{text}]}}', Limits()) == json.loads(f'{{"a":[0,{text}]}}')


@pytest.mark.parametrize(
    "digits", ["18446744073709551616", "-9223372036854775809", "1" * 300, "-" + "9" * 25, "99999999999999999999"]
)
def test_an_integer_beyond_64_bits_is_refused_and_not_rounded(tmp_path: Path, digits: str) -> None:
    for text in (f'{{"a":{digits}}}', f'{{"a": [1, {digits}]}}'):
        with pytest.raises(JsonError, match="beyond 64 bits: write it as text"):
            parse_json(text, Limits())
    path = write(tmp_path / "a.jsonl", f'{{"question": "q", "answer": {digits}}}'.encode())
    refused(lambda: load_tasks(str(path)), ":1: the integer .* is beyond 64 bits")


def test_a_row_that_trees_could_not_keep_is_named_before_anything_runs(tmp_path: Path) -> None:
    deep = write(tmp_path / "a.jsonl", b'{"question": "q", "x": ' + b"[" * 300 + b"]" * 300 + b"}")
    refused(lambda: load_tasks(str(deep)), r"jsonl:1: cannot be written as JSON: Recursion")


def test_a_rows_digest_is_of_its_content_alone() -> None:
    assert row_digest(ROW) == row_digest(dict(reversed(ROW.items())))
    assert row_digest(ROW) != row_digest({**ROW, "answer": "Quito"})
    assert row_digest({"x": object()}) == row_digest({"x": object()})
