"""Resuming a rollout: whatever became of its files, nothing whole is lost, and what is not whole is moved aside."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import make_config
from treegrpo_cli.data.lock import output_lock
from treegrpo_cli.data.tasks import load_tasks, row_digest, task_of
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.rollout.journal import Journal
from treegrpo_cli.rollout.records import meta
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.origin import Origin
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.run.recover import recover
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.trees.tree_file import TreeRecord, TreeWriter, read_trees
from treegrpo_cli.types import Limits, Task

from tests.sample_trees import nodes_of

NAMES = pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
CONFIG = make_config({"seed": 3, "rollout": {"num_trees": 2, "max_turns": 7}, "data": {"train": "q.jsonl"}})
ROWS = [{"question": f"question {number}", "answer": "x"} for number in range(6)]
TASKS = [task_of(row) for row in ROWS]

Keys = set[tuple[str, int]]


def record(number: int, tree_id: int, text: str = "") -> TreeRecord:
    nodes = nodes_of([None, 0, 0], [None, 1.0, number / 7])
    nodes[1]["text"] = text or f"{number}-{tree_id} " * 40
    origin = meta(CONFIG) | {"number": number, "row_digest": row_digest(TASKS[number].columns)}
    return TreeRecord(prompt_id=f"{number:08d}", tree_id=tree_id, nodes=nodes, meta=origin)


def write(path: Path, text: str = "") -> Keys:
    with TreeWriter(path) as writer:
        for number in range(6):
            writer.write_group([record(number, tree_id, text) for tree_id in range(2)])
    return {(f"{number:08d}", tree_id) for number in range(6) for tree_id in range(2)}


def keys(path: Path) -> Keys:
    return {(tree.prompt_id, tree.tree_id) for tree in read_trees(path)} if path.stat().st_size else set()


def resume(path: Path, config: Config = CONFIG, tasks: list[Task] = TASKS) -> tuple[Keys, Keys, list[str]]:
    """Recover; the trees of the file, those of the journal, and what is said."""
    journal, stats = Journal(path, resume=True), RolloutStats()
    done, lines = recover(path, journal, Origin(config, tasks, path), 2, Limits(), stats)
    in_file = keys(path)
    assert done == {prompt_id for prompt_id, _ in in_file}
    assert stats.num_trees == len(in_file) == 2 * len(done)
    waiting = {(prompt_id, tree_id) for prompt_id, trees in journal.trees.items() for tree_id in trees}
    journal.close(complete=False)
    reread = Journal(path, resume=True)
    assert {(prompt_id, tree_id) for prompt_id, trees in reread.trees.items() for tree_id in trees} == waiting
    return in_file, waiting, lines


def aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*damaged*"))


@NAMES
def test_a_file_without_damage_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    assert resume(tmp_path / name) == (whole, set(), [])
    assert (tmp_path / name).read_bytes() == before
    assert not aside(tmp_path / name)


@NAMES
def test_trees_of_half_a_megabyte_are_kept(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, "".join(map(str, range(90_000))))
    assert resume(tmp_path / name) == (whole, set(), [])


@NAMES
@pytest.mark.parametrize("part", [0.0, 0.01, 0.2, 0.37, 0.5, 0.83, 0.999])
def test_a_flipped_byte_costs_no_tree_beside_its_own(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    whole = write(path)
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 0x80
    path.write_bytes(content)
    in_file, waiting, lines = resume(path)
    lost = whole - in_file - waiting
    assert len(lost) == (2 if name.endswith("zst") else 1)
    assert len({prompt_id for prompt_id, _ in lost}) == 1
    [damaged] = aside(path)
    assert damaged.read_bytes() in bytes(content)
    assert lines == [
        f"{path} was damaged: all {12 - len(lost)} whole trees are kept, "
        f"{damaged.stat().st_size} bytes moved to {damaged}"
    ]
    assert resume(path) == (in_file, waiting, [])


@NAMES
def test_a_kill_at_any_byte_of_a_write_can_be_gone_on_from(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path)
    content = path.read_bytes()
    for cut in sorted({*range(6), *range(9, len(content), 401), len(content) - 1}):
        path.write_bytes(content[:cut])
        in_file, waiting, _ = resume(path)
        whole = content[:cut].count(b"\n") if not name.endswith("zst") else 2 * content[1:cut].count(content[:4])
        assert whole <= len(in_file | waiting) <= whole + 2
        for file in tmp_path.iterdir():
            file.unlink()


@NAMES
def test_zeros_that_a_power_failure_left_are_moved_aside(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = write(path)
    with path.open("ab") as file:
        file.write(bytes(5000))
    assert resume(path)[:2] == (whole, set())
    assert aside(path)[0].read_bytes() == bytes(5000)


def test_a_tree_whose_sibling_is_damaged_waits_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    whole = write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"{" + lines[4], *lines[5:]]))
    in_file, waiting, _ = resume(path)
    assert waiting == {("00000002", 1)}
    assert whole - in_file == {("00000002", 0), ("00000002", 1)}
    assert aside(path)[0].read_bytes() == b"{" + lines[4]


def test_a_prompt_that_stands_twice_is_kept_once_and_the_other_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    whole = write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, *lines[2:4]]))
    assert resume(path)[:2] == (whole, set())
    assert aside(path)[0].read_bytes() == b"".join(lines[2:4])


def test_trees_that_stand_in_a_damaged_file_and_still_in_the_journal_are_not_grown_again(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.zst"
    whole = write(path)
    journal = Journal(path, resume=False)
    journal.start()
    for tree_id in range(2):
        journal.add(record(5, tree_id))
    journal.close(complete=False)
    path.write_bytes(path.read_bytes()[:-9])
    in_file, waiting, _ = resume(path)
    assert in_file | waiting == whole
    assert waiting == {("00000005", 0), ("00000005", 1)}


def test_lines_of_the_journal_that_cannot_be_read_are_moved_aside_and_the_rest_is_used(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [record(number, 0).to_json() + b"\n" for number in range(3)]
    journal = tmp_path / "t.jsonl.journal"
    journal.write_bytes(lines[0] + b"\x00" + lines[1] + lines[2] + b'{"in progress')
    journal_lines = resume_without_output(path)
    assert journal_lines == [
        f"{journal} was damaged: all 2 whole trees are kept, {len(lines[1]) + 1} bytes moved to {journal}.damaged-1"
    ]
    assert (tmp_path / "t.jsonl.journal.damaged-1").read_bytes() == b"\x00" + lines[1]
    assert journal.read_bytes() == lines[0] + lines[2]


def resume_without_output(path: Path) -> list[str]:
    journal = Journal(path, resume=True)
    done, lines = recover(path, journal, Origin(CONFIG, TASKS, path), 2, Limits(), RolloutStats())
    journal.close(complete=False)
    assert not done
    assert not path.exists()
    return lines


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", b"precious"),
        ("t.jsonl", b'{"a": 1}\n{"b": 2}\n'),
        ("t.jsonl", b'{"question": "q", "ans'),
        ("t.jsonl.zst", b"precious"),
        ("t.jsonl.zst", zstandard.ZstdCompressor().compress(b'{"a": 1}\n')),
    ],
)
def test_a_file_that_no_rollout_left_is_refused_and_untouched(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match="not a tree file that a rollout wrote"):
        resume(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == content


def rows_changed(number: int) -> list[Task]:
    return [task_of({**row, "answer": "y"} if place == number else row) for place, row in enumerate(ROWS)]


@NAMES
def test_rows_that_changed_under_kept_trees_are_refused_by_number(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    with pytest.raises(
        UserError, match=r"data\.train: row 5 of q\.jsonl differs from what it was when .*t\.jsonl.* was begun"
    ):
        resume(tmp_path / name, tasks=rows_changed(4))
    with pytest.raises(UserError, match=r"row 6 of q\.jsonl is missing"):
        resume(tmp_path / name, tasks=TASKS[:5])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_rows_that_were_added_and_those_behind_a_limit_are_no_change(tmp_path: Path) -> None:
    whole = write(tmp_path / "t.jsonl")
    assert resume(tmp_path / "t.jsonl", tasks=[*TASKS, task_of({"question": "new", "answer": "z"})])[0] == whole
    limited = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"limit": 2})})
    assert resume(tmp_path / "t.jsonl", config=limited, tasks=TASKS[:2])[0] == whole


def test_a_row_that_changed_under_a_tree_of_the_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl.journal").write_bytes(record(2, 0).to_json() + b"\n")
    with pytest.raises(UserError, match=r"row 3 of q\.jsonl differs"):
        Origin(CONFIG, rows_changed(2), tmp_path / "t.jsonl").check(record(2, 0))
    journal = Journal(tmp_path / "t.jsonl", resume=True)
    with pytest.raises(UserError, match=r"row 3 of q\.jsonl differs"):
        recover(
            tmp_path / "t.jsonl",
            journal,
            Origin(CONFIG, rows_changed(2), tmp_path / "t.jsonl"),
            2,
            Limits(),
            RolloutStats(),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed was 3 and is 4; use the same settings, or choose another --output"),
        ({"seed": 0}, "seed was 3 and is 0;"),
        ({"rollout": {"num_trees": 2}}, "rollout.max_turns was 7 and is 4;"),
        ({"advantage": {"estimator": "grpo", "scale": "none"}}, "advantage.estimator was 'tree-grpo' and is 'grpo', "),
        (
            {"rollout": {"num_trees": 3, "num_rounds": 2, "max_turns": 8, "temperature": 0.5}},
            "rollout.max_turns was 7 and is 8, rollout.num_rounds was 1 and is 2, "
            "rollout.num_trees was 2 and is 3, 1 more;",
        ),
    ],
)
def test_settings_that_differ_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {"seed": 3, "rollout": {"num_trees": 2, "max_turns": 7}, "data": {"train": "q.jsonl"}}
    with pytest.raises(UserError) as refused:
        Origin(make_config(given | changes), TASKS, tmp_path / "t.jsonl").check(record(0, 0))
    assert f"t.jsonl: holds trees grown with other settings: {message}" in str(refused.value)


@pytest.mark.parametrize("key", ["tool_timeout_s", "tool_retries", "max_concurrent_tools", "workers"])
def test_patience_may_change_while_a_file_grows(tmp_path: Path, key: str) -> None:
    given = CONFIG.model_dump(exclude_unset=True) | {"environment": {key: 7}, "limits": {"max_rows": 9}}
    Origin(make_config(given), TASKS, tmp_path / "t.jsonl").check(record(0, 0))


def questions(folder: Path) -> dict[str, Any]:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"data": {"train": str(path)}, "model": {"path": "nowhere"}}


def test_a_second_rollout_into_a_file_is_refused(tmp_path: Path) -> None:
    output, config = tmp_path / "t.jsonl", make_config(questions(tmp_path))
    with output_lock(output):
        for resumed in (False, True):
            with pytest.raises(FileError, match=r"t\.jsonl: is being written by another run, process \d+"):
                generate(config, output, Reporter(quiet=True), resume=resumed)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "is a folder"),
        ("..", "is a folder"),
        ("/", "is a folder"),
        ("", "is a folder"),
        ("x" * 250, "the file name is longer than 200 bytes"),
        ("x" * 5000, "name too long|more than 200 bytes"),
        ("nul\0", "NUL"),
        ("\udcff.jsonl", "not UTF-8"),
        ("gone/t.jsonl", "gone: no such folder"),
        ("/dev/null", "not a regular file"),
    ],
)
def test_an_output_that_cannot_be_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, message: str
) -> None:
    config = make_config(questions(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=message) as refused:
        generate(config, Path(output), Reporter(quiet=True))
    assert len(str(refused.value)) <= 500
    str(refused.value).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_finished_trees_wait_for_no_disk_in_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    syncing: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: syncing.append(threading.get_ident()))
    journal = Journal(tmp_path / "t.jsonl", resume=False)
    journal.start()
    syncing.clear()

    async def grow() -> None:
        for number in range(6):
            journal.add(record(number, 0))
            with open(journal.path, "rb") as file:
                assert file.read().count(b"\n") == number + 1  # a kill loses nothing of it
            await asyncio.sleep(0)

    asyncio.run(grow())
    assert threading.get_ident() not in syncing
    journal.close(complete=False)
    assert syncing


def test_a_journal_that_is_deleted_is_an_error_and_no_silent_loss(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "t.jsonl", resume=False)
    journal.start()
    journal.path.unlink()
    with pytest.raises(FileError, match=r"journal: was deleted or replaced"):
        journal.add(record(0, 0))
    journal.close(complete=False)


def test_the_digest_of_a_row_is_of_what_was_read(tmp_path: Path) -> None:
    tasks = load_tasks(questions(tmp_path)["data"]["train"])
    assert [row_digest(task.columns) for task in tasks] == [row_digest(row) for row in ROWS]
