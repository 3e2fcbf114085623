"""The tree file: what is read, what is refused and how, and writing that loses nothing."""

import copy
import errno
import io
import json
import os
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.trees.checks import check_nodes, check_tree
from treegrpo_cli.trees.column_checks import are_plainly_valid
from treegrpo_cli.trees.scoring import score
from treegrpo_cli.trees.tree_file import TreeWriter, read_groups, read_trees, write_groups
from treegrpo_cli.trees.tree_record import TreeRecord

from tests.sample_trees import Fields, full_tree, nodes_of, tree, vector_trees, write_lines


def record_of(fields: Fields) -> TreeRecord:
    return TreeRecord.parse(json.dumps(fields).encode())


def changed(fields: Fields, node: int | None = None, **values: Any) -> Fields:
    """A deep copy with some fields set, on the tree or on one of its nodes; `...` removes the field."""
    fields = copy.deepcopy(fields)
    target = fields if node is None else fields["nodes"][node]
    for name, value in values.items():
        if value is ...:
            del target[name]
        else:
            target[name] = value
    return fields


def test_unknown_fields_stay_in_their_places_and_floats_stay_exact() -> None:
    fields = full_tree()
    written = record_of(fields).to_json()
    assert json.loads(written) == fields
    assert [list(node) for node in json.loads(written)["nodes"]] == [list(node) for node in fields["nodes"]]
    assert list(json.loads(written)) == list(fields)
    assert TreeRecord.parse(written).to_json() == written
    assert b'"zeta":-0.0' in written


def test_a_record_made_from_python_values_is_the_line_that_it_writes() -> None:
    nodes = nodes_of([None, 0], [None, 0.5])
    record = TreeRecord(prompt_id="q", tree_id=1, nodes=nodes, task={"question": "?"}, meta={"seed": 1})
    assert TreeRecord.parse(record.to_json()) == record
    assert (record.prompt_id, record.tree_id, record.nodes[1]["reward"]) == ("q", 1, 0.5)
    assert (record.task, record.meta, record.scoring) == ({"question": "?"}, {"seed": 1}, None)


def test_a_record_made_from_python_values_is_checked() -> None:
    with pytest.raises(UserError, match=r"node 1.*reward"):
        TreeRecord(prompt_id="q", tree_id=0, nodes=nodes_of([None, 0], [None, float("nan")]))


BAD_TREES: dict[str, tuple[Fields, str]] = {
    "another major version": (tree(schema="treegrpo.tree/2"), "schema"),
    "no schema": (changed(tree(), schema=...), "schema"),
    "prompt_id a number": (tree(prompt_id=5), "prompt_id"),
    "no prompt_id": (changed(tree(), prompt_id=...), "prompt_id"),
    "tree_id negative": (tree(tree_id=-1), "tree_id"),
    "tree_id true": (tree(tree_id=True), "tree_id"),
    "tree_id a float": (tree(tree_id=0.0), "tree_id"),
    "no nodes": (tree(nodes=[]), "nodes"),
    "nodes an object": (changed(tree(), nodes={}), "nodes"),
    "node a list": (tree(nodes=[[]]), "node 0"),
    "task a string": (tree(task="x"), "task"),
    "meta a list": (tree(meta=[]), "meta"),
    "ids out of place": (changed(tree(), 1, id=2), "node 1"),
    "id a float": (changed(tree(), 1, id=1.0), "node 1"),
    "id true": (changed(tree(), 1, id=True), "node 1"),
    "no id": (changed(tree(), 1, id=...), "node 1.*id"),
    "no parent": (changed(tree(), 1, parent=...), "node 1.*parent"),
    "a cycle": (changed(tree(), 1, parent=1), "node 1.*parent"),
    "a forward parent": (changed(tree(), 1, parent=2), "node 1.*parent"),
    "a negative parent": (changed(tree(), 1, parent=-1), "node 1.*parent"),
    "parent false": (changed(tree(), 1, parent=False), "node 1.*parent"),
    "two roots": (changed(tree(), 2, parent=None), "node 2.*root"),
    "the first node not the root": (changed(tree(), 0, parent=0), "node 0.*root"),
    "reward on an inner node": (
        tree(nodes=nodes_of([None, 0, 1], [None, 1.0, 1.0])),
        "node 1.*inner.*reward",
    ),
    "reward on the root": (changed(tree(), 0, reward=1.0), "node 0.*reward"),
    "reward on a lone root": (tree(nodes=nodes_of([None], [1.0])), "node 0.*reward"),
    "reward beside error": (changed(tree(), 1, status="error"), "node 1.*reward.*error"),
    "reward beside pruned": (changed(tree(), 1, status="pruned"), "node 1.*reward.*pruned"),
    "reward beside kept=false": (changed(tree(), 1, kept=False), "node 1.*reward.*kept"),
    "reward a string": (changed(tree(), 1, reward="1"), "node 1.*reward"),
    "reward true": (changed(tree(), 1, reward=True), "node 1.*reward"),
    "no reward on a leaf": (changed(tree(), 1, reward=...), "node 1.*reward"),
    "unknown status": (changed(tree(), 1, status="don"), "node 1.*status.*'done'"),
    "status a number": (changed(tree(), 1, status=1), "node 1.*status"),
    "a closed inner node": (changed(tree(), 0, status="done"), "node 0.*status.*children"),
    "kept a string": (changed(tree(), 1, kept="yes"), "node 1.*kept"),
    "text a number": (changed(tree(), 1, text=5), "node 1.*text"),
    "policy_version a float": (changed(tree(), 1, policy_version=1.5), "node 1.*policy_version"),
    "a round that is no integer": (changed(tree(), 1, round=0.5), "node 1.*round"),
    "a draw below 0": (changed(tree(), 1, draw=-1), "node 1: draw is -1"),
    "a round before its parent's": (
        changed(changed(tree(), 1, round=2, reward=None), 2, parent=1, round=1),
        "node 2 has round 1, but its parent 2",
    ),
    "policy_version negative": (changed(tree(), 1, policy_version=-1), "node 1.*policy_version"),
    "policy_version beyond 32 bits": (changed(tree(), 1, policy_version=2**32), "node 1.*policy_version"),
    "entropy a string": (changed(tree(), 1, entropy="low"), "node 1.*entropy"),
    "token ids a string": (changed(tree(), 1, token_ids="12"), "node 1.*token_ids"),
    "a negative token": (changed(tree(), 1, token_ids=[3, -1]), "node 1.*token_ids"),
    "a token beyond 32 bits": (changed(tree(), 1, token_ids=[2**32]), "node 1.*token_ids"),
    "a token beyond 64 bits": (changed(tree(), 1, token_ids=[2**70]), "beyond 64 bits"),
    "a token true": (changed(tree(), 1, token_ids=[True]), "node 1.*token_ids"),
    "a token a float": (changed(tree(), 1, token_ids=[1.0]), "node 1.*token_ids"),
    "a span beyond the tokens": (changed(tree(), 1, token_ids=[1], sampled=[[0, 2]]), "node 1.*span"),
    "a span without tokens": (changed(tree(), 1, sampled=[[0, 1]]), "node 1.*span"),
    "a span that goes back": (changed(tree(), 1, token_ids=[1, 2], sampled=[[1, 0]]), "node 1.*span"),
    "spans that overlap": (changed(tree(), 1, token_ids=[1, 2, 3], sampled=[[0, 2], [1, 3]]), "node 1.*span"),
    "a negative span": (changed(tree(), 1, token_ids=[1], sampled=[[-1, 1]]), "node 1.*span"),
    "a span of three": (changed(tree(), 1, token_ids=[1], sampled=[[0, 1, 1]]), "node 1.*sampled"),
    "spans a mask": (changed(tree(), 1, token_ids=[1], sampled=[True]), "node 1.*sampled"),
    "a span of floats": (changed(tree(), 1, token_ids=[1], sampled=[[0.0, 1.0]]), "node 1.*sampled"),
    "the prompt sampled": (changed(tree(), 0, token_ids=[1], sampled=[[0, 1]]), "node 0"),
    "too few logprobs": (
        changed(tree(), 1, token_ids=[1, 2], sampled=[[0, 2]], logprobs=[-1.0]),
        "node 1.*logprobs",
    ),
    "logprobs without tokens": (changed(tree(), 1, logprobs=[-1.0]), "node 1.*logprobs"),
    "a logprob null": (
        changed(tree(), 1, token_ids=[1], sampled=[[0, 1]], logprobs=[None]),
        "node 1.*logprobs",
    ),
    "a logprob true": (
        changed(tree(), 1, token_ids=[1], sampled=[[0, 1]], logprobs=[True]),
        "node 1.*logprobs",
    ),
    "a logprob that float32 cannot hold": (
        changed(tree(), 1, token_ids=[1], sampled=[[0, 1]], logprobs=[-1e300]),
        "node 1.*logprobs",
    ),
    "a policy_version beyond 32 bits": (changed(tree(), 1, policy_version=2**32), "node 1.*policy_version"),
    "a negative depth": (changed(tree(), 1, depth=-1), "node 1.*depth"),
    "more leaves than can be": (changed(tree(), 1, num_leaves=2**63), "node 1.*num_leaves"),
    "scoring a string": (tree(scoring="grpo"), "scoring"),
    "scoring without nodes' advantages": (
        tree(scoring={"estimator": "grpo", "options": {}}),
        "scoring.*node 0",
    ),
    "scoring without an estimator": (tree(scoring={"options": {}}), "estimator"),
}


@pytest.mark.parametrize("what", BAD_TREES)
def test_a_tree_that_breaks_the_format_is_refused_with_file_and_line(what: str, tmp_path: Path) -> None:
    fields, message = BAD_TREES[what]
    path = write_lines(tmp_path / "bad.jsonl", [tree("first"), fields])
    trees = read_trees(path)
    assert next(trees).prompt_id == "first"
    with pytest.raises(FileError, match=message) as refused:
        next(trees)
    assert str(refused.value).startswith(f"{path}:2: ")
    assert "\n" not in str(refused.value)


BAD_LINES = {
    "NaN": json.dumps(changed(tree(), 1, reward=float("nan"))).encode(),
    "an infinity by overflow": json.dumps(tree()).replace("1.0", "1e999").encode(),
    "Infinity": json.dumps(changed(tree(), 1, reward=float("inf"))).encode(),
    "half a line": json.dumps(tree()).encode()[:-20],
    "two values": b"{} {}",
    "a list": b"[]",
    "a word": b"null",
    "invalid UTF-8": b'{"schema": "\xff"}',
    "binary": bytes(range(256)) * 8,
    "lists without end": b"[" * 1_000_000,
    "objects without end": b'{"a":' * 300_000,
    "a lone surrogate": json.dumps(tree(prompt_id="\ud800")).encode(),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_line_that_is_no_json_object_is_refused_with_its_number(what: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(tree("first")).encode() + b"\n\n" + BAD_LINES[what])
    trees = read_trees(path)
    next(trees)
    with pytest.raises(FileError) as refused:
        next(trees)
    assert str(refused.value).startswith(f"{path}:3: ")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(str(path)) + 200


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that Python held while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_big_binary_file_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with open(path, "wb") as file:
        file.truncate(2**28)  # sparse: zeros without end

    def read() -> None:
        with pytest.raises(FileError, match=":1: "):
            next(read_trees(path))

    assert peak_bytes(read) < 2**23


def test_an_empty_file_holds_no_trees(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n  \n")
    with pytest.raises(FileError, match="no trees"):
        list(read_trees(tmp_path / "empty.jsonl"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing\.jsonl: No such file"):
        list(read_trees(tmp_path / "missing.jsonl"))
    with pytest.raises(FileError, match=f"{tmp_path}: Is a directory"):
        list(read_trees(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "closed.jsonl", [tree()])
    path.chmod(0)
    with pytest.raises(FileError, match=r"closed\.jsonl: Permission denied"):
        list(read_trees(path))


def test_a_prompt_that_returns_after_another_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [tree("a"), tree("b"), tree("a", 1)])
    with pytest.raises(FileError, match=r":3: prompt_id 'a' returns"):
        list(read_trees(path))


def test_a_tree_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [tree("a", 0), tree("a", 1), tree("a", 0)])
    with pytest.raises(FileError, match=r":3: a second tree 0"):
        list(read_trees(path))


def test_a_minor_version_and_null_for_absent_fields_are_read() -> None:
    fields = changed(tree(schema="treegrpo.tree/1.4"), 1, status=None, token_ids=None, text=None, kept=None)
    assert json.loads(record_of(fields).to_json()) == fields


def test_a_last_line_without_its_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(tree("a")) + "\r\n" + json.dumps(tree("b")))
    assert [record.prompt_id for record in read_trees(path)] == ["a", "b"]


def test_foreign_fields_that_nest_too_deep_to_write_are_the_users_mistake() -> None:
    line = json.dumps(tree())[:-1] + ',"deep":' + "[" * 400 + "]" * 400 + "}"
    with pytest.raises(UserError, match="cannot be written"):
        TreeRecord.parse(line.encode()).to_json()


def groups_of(num_groups: int) -> list[list[TreeRecord]]:
    return [[record_of(tree(f"p{number}", tree_id)) for tree_id in range(2)] for number in range(num_groups)]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_groups_are_read_as_they_were_written_also_behind_an_append(name: str, tmp_path: Path) -> None:
    groups = groups_of(5)
    with TreeWriter(tmp_path / name) as writer:
        for group in groups[:3]:
            writer.write_group(group)
    with TreeWriter(tmp_path / name, append=True) as writer:
        for group in groups[3:]:
            writer.write_group(group)
    assert list(read_groups(tmp_path / name)) == groups
    assert [record for group in groups for record in group] == list(read_trees(tmp_path / name))


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_a_file_of_groups_that_are_made_one_by_one_is_the_one_that_a_writer_writes(name: str, tmp_path: Path) -> None:
    groups = groups_of(5)
    with TreeWriter(tmp_path / f"by-one-{name}") as writer:
        for group in groups:
            writer.write_group(group)
    write_groups(tmp_path / name, (iter(group) for group in groups))
    assert (tmp_path / name).read_bytes() == (tmp_path / f"by-one-{name}").read_bytes()
    write_groups(tmp_path / name, [])
    assert (tmp_path / name).read_bytes() == b""


def test_what_ends_the_making_or_the_writing_of_groups_leaves_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[list[TreeRecord]]:
        yield from groups_of(2)
        raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        write_groups(tmp_path / "t.jsonl.zst", broken())
    assert list(read_groups(tmp_path / "t.jsonl.zst")) == groups_of(2)

    def fail(self: TreeWriter, group: Any) -> None:
        raise FileError(self.path, "No space left on device")

    monkeypatch.setattr(TreeWriter, "write_group", fail)
    made = iter(groups_of(50))
    with pytest.raises(FileError, match=r"t\.jsonl: No space left"):
        write_groups(tmp_path / "t.jsonl", made)
    assert len(list(made)) > 40, "no more groups are made for a file that takes none"


def test_each_group_is_readable_when_write_group_returns_and_on_disk_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, groups, synced = tmp_path / "t.jsonl.zst", groups_of(2), [0]
    main, seen = threading.get_ident(), []

    def fsync(file: int) -> None:
        seen.append(threading.get_ident())
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with TreeWriter(path) as writer:
        for number, group in enumerate(groups, start=1):
            writer.write_group(group)
            assert list(read_groups(path)) == groups[:number]
        assert main not in seen
        writer.sync()
        assert synced[-1] == path.stat().st_size
        writer.write_group(groups_of(3)[2])
    assert synced[-1] == path.stat().st_size


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_deleted_or_replaced_while_it_is_written_is_an_error(tmp_path: Path, replaced: bool) -> None:
    path, groups = tmp_path / "t.jsonl", groups_of(2)

    def lose() -> None:
        path.unlink()
        if replaced:
            path.write_text("another")

    for finish in (TreeWriter.close, lambda writer: writer.write_group(groups[1])):
        with suppress(FileError), TreeWriter(path) as writer:
            writer.write_group(groups[0])
            lose()
            with pytest.raises(FileError, match=r"t\.jsonl: was deleted or replaced while it was written"):
                finish(writer)
            raise FileError(path, "seen")
        path.unlink(missing_ok=True)


def test_one_frame_that_holds_many_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.zst"
    lines = "".join(json.dumps(tree(f"p{number}")) + "\n" for number in range(3000)).encode()
    path.write_bytes(
        zstandard.ZstdCompressor().compress(lines[:999]) + zstandard.ZstdCompressor().compress(lines[999:])
    )
    assert [record.prompt_id for record in read_trees(path)] == [f"p{number}" for number in range(3000)]


def test_a_compressed_file_cut_within_a_frame_gives_its_whole_lines_and_then_names_the_place(
    tmp_path: Path,
) -> None:
    path, groups = tmp_path / "t.jsonl.zst", groups_of(3)
    with TreeWriter(path) as writer:
        for group in groups:
            writer.write_group(group)
    path.write_bytes(path.read_bytes()[:-5])
    trees = read_trees(path)
    assert [next(trees) for _ in range(4)] == [record for group in groups[:2] for record in group]
    with pytest.raises(FileError, match=r"t\.jsonl\.zst:\d+: .*half-written"):
        list(trees)


def test_damaged_and_plain_data_under_a_compressed_name_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl.zst", [tree()])
    with pytest.raises(FileError, match=r":1: .*zstd"):
        list(read_trees(path))


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(tree("a")).encode())))
    assert [record.prompt_id for record in read_trees("-")] == ["a"]


def test_reading_holds_a_group_and_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    line = json.dumps(changed(tree(), 1, text="x" * 20_000))
    with open(path, "w") as file:
        for number in range(1000):
            file.write(line.replace('"q"', f'"{number}"') + "\n")
    num_groups = 0

    def read() -> None:
        nonlocal num_groups
        num_groups = sum(1 for _ in read_groups(path))

    assert peak_bytes(read) < path.stat().st_size / 5
    assert num_groups == 1000


class FullDisk(io.FileIO):
    """A file whose disk is full after `room` bytes."""

    room = 0

    def write(self, data: Any, /) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(memoryview(data)[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_a_full_disk_is_named_and_loses_nothing_that_was_written(name: str, tmp_path: Path) -> None:
    path, groups = tmp_path / name, groups_of(2)
    with TreeWriter(path) as writer:
        writer.write_group(groups[0])
        writer._file.close()
        writer._file = FullDisk(path, "ab")
        writer._file.room = 10
        with pytest.raises(FileError, match=f"{name}: No space left"):
            writer.write_group(groups[1])
    assert list(read_groups(path)) == groups[:1]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"t\.jsonl: No such file"):
        TreeWriter(tmp_path / "missing" / "t.jsonl")


JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    found, waiting = [], [value]
    while waiting:
        container = waiting.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, inside in list(items):
            found.append((container, key))
            if isinstance(inside, dict | list):
                waiting.append(inside)
    return found


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), value=JSON_VALUES, remove=st.booleans())
def test_a_line_with_any_value_changed_is_read_or_refused_as_the_users_mistake(
    seed: int, value: Any, remove: bool
) -> None:
    fields = full_tree()
    container, key = random.Random(seed).choice(places(fields))
    if remove:
        del container[key]
    else:
        container[key] = value
    with suppress(UserError):
        record = record_of(fields)
        assert TreeRecord.parse(record.to_json()) == record


@pytest.mark.parametrize("what", BAD_TREES)
def test_the_quick_check_of_columns_accepts_no_tree_that_breaks_the_format(what: str) -> None:
    fields, _ = BAD_TREES[what]
    if isinstance(fields.get("nodes"), list):
        with suppress(UserError):  # what is wrong beside the nodes is nobody's business here
            check_tree(fields | {"nodes": tree()["nodes"], "scoring": None})
            assert not are_plainly_valid(fields["nodes"], scored=fields.get("scoring") is not None)


def test_ordinary_trees_pass_the_quick_check_of_columns() -> None:
    [scored] = score([record_of(full_tree())], "grpo")
    for fields in (full_tree(), tree(), *vector_trees()):
        assert are_plainly_valid(fields["nodes"], scored=False)
    assert are_plainly_valid(scored.nodes, scored=True)
    assert not are_plainly_valid(tree()["nodes"], scored=True)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), value=JSON_VALUES, remove=st.booleans())
def test_what_passes_the_quick_check_passes_node_by_node(seed: int, value: Any, remove: bool) -> None:
    nodes = full_tree()["nodes"]
    container, key = random.Random(seed).choice(places(nodes))
    if remove:
        del container[key]
    else:
        container[key] = value
    if are_plainly_valid(nodes, scored=False):
        check_nodes(nodes)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), num_changes=st.integers(1, 4))
def test_a_line_with_any_bytes_changed_is_read_or_refused_as_the_users_mistake(seed: int, num_changes: int) -> None:
    draw, line = random.Random(seed), bytearray(json.dumps(full_tree()).encode())
    for _ in range(num_changes):
        line[draw.randrange(len(line))] = draw.choice(b'0123456789-+eE.{}[]",:nulltrue\\\x00\xff')
    with suppress(UserError):
        record = TreeRecord.parse(bytes(line))
        assert TreeRecord.parse(record.to_json()) == record
