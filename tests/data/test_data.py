"""Rows in every dialect of columns, and what is said of broken ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from treegrpo_cli.data.tasks import load_tasks
from treegrpo_cli.errors import FileError, UserError

PLAIN = {"question": "Capital of Peru?", "answer": "Lima", "hops": 1}
VERL = {
    "data_source": "hotpotqa",
    "prompt": [{"role": "user", "content": "Think, then answer: capital of Peru?"}],
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Lima", "City of Kings"]}},
    "extra_info": {"index": 7, "split": "train"},
}


def write_lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_plain_row_gives_question_answer_and_all_its_columns(tmp_path: Path) -> None:
    (task,) = load_tasks(write_lines(tmp_path / "a.jsonl", PLAIN))
    assert (task.question, task.ground_truth, task.messages) == ("Capital of Peru?", "Lima", None)
    assert task.columns == PLAIN


def test_a_verl_row_keeps_its_messages_and_takes_the_ground_truth_of_its_reward_model(tmp_path: Path) -> None:
    (task,) = load_tasks(write_lines(tmp_path / "a.jsonl", VERL))
    assert task.messages == tuple(VERL["prompt"])
    assert task.ground_truth == {"target": ["Lima", "City of Kings"]}
    assert (task.data_source, task.columns["extra_info"]["index"]) == ("hotpotqa", 7)
    assert task.question == "Think, then answer: capital of Peru?"


def test_a_trl_prompt_is_text_or_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    text, chat = load_tasks(
        write_lines(tmp_path / "a.jsonl", {"prompt": "Hello?", "solution": "x"}, {"prompt": messages, "answer": 4})
    )
    assert (text.question, text.messages, text.ground_truth) == ("Hello?", None, "x")
    assert (chat.question, chat.messages, chat.ground_truth) == ("Hi?", tuple(messages), 4)


def test_golden_answers_are_found(tmp_path: Path) -> None:
    row = {"id": "1", "question": "q?", "golden_answers": ["a", "b"]}
    assert load_tasks(write_lines(tmp_path / "a.jsonl", row))[0].ground_truth == ["a", "b"]


def test_text_parts_of_a_message_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "am I?"}]
    path = write_lines(tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": parts}]})
    assert load_tasks(path)[0].question == "Who am I?"


@pytest.mark.parametrize("as_lines", [True, False])
def test_json_is_a_list_or_lines(tmp_path: Path, as_lines: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(PLAIN) + "\n" + json.dumps(VERL) if as_lines else json.dumps([PLAIN, VERL], indent=1))
    assert [task.data_source for task in load_tasks(str(path))] == ["", "hotpotqa"]


def test_parquet_gives_the_tasks_that_the_same_json_lines_give(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [VERL, {**VERL, "data_source": "nq"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load_tasks(str(tmp_path / "a.parquet")) == load_tasks(write_lines(tmp_path / "a.jsonl", *rows))


def test_a_saved_dataset_and_its_splits_are_read_without_network(tmp_path: Path) -> None:
    import datasets

    train, test = (
        datasets.Dataset.from_list([PLAIN]),
        datasets.Dataset.from_list([{**PLAIN, "answer": "Quito"}]),
    )
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "both"))
    assert load_tasks(str(tmp_path / "both"), split="test")[0].ground_truth == "Quito"
    train.save_to_disk(str(tmp_path / "one"))
    assert load_tasks(str(tmp_path / "one"))[0].columns == PLAIN


def test_a_directory_of_files_loads_as_a_dataset_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    write_lines(folder / "train.jsonl", PLAIN, PLAIN)
    assert len(load_tasks(str(folder))) == 2


def test_a_dataset_that_does_not_exist_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot load dataset 'nobody/nothing-\?'.*split 'train'"):
        load_tasks("nobody/nothing-?")


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(PLAIN)}\n{json.dumps(PLAIN)}\nhalf a li")
    assert len(load_tasks(str(path), limit=2)) == 2
    with pytest.raises(FileError, match=r"a\.jsonl:3: not JSON"):
        load_tasks(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a", "answer": "b"}\n{"question": "c", "ans', r":2: not JSON"),
        (b"[1, 2]\n", r":1: must be a JSON object"),
        (b"\x00\xff\xfe binary", r":1: not JSON"),
        (b'{"q": "a"}\n', r":1: no column `prompt` or `question`; columns: q"),
        (b'{"question": ""}\n', r":1: the question must be a text"),
        (b'{"question": 4}\n', r":1: the question must be a text"),
        (b'{"prompt": []}\n', r":1: `prompt` must be a text or a list of messages"),
        (b'{"prompt": [{"content": "x"}]}\n', r":1: a message of `prompt` needs `role`"),
        (b'{"prompt": [{"role": "user", "content": 3}]}\n', r":1: the `content` of a message"),
        (b'{"prompt": [{"role": "system", "content": "x"}]}\n', r":1: `prompt` has no message of the user"),
        (b'{"question": ' + b"[" * 100_000, r":1: not JSON"),
        (b"\n\n", r"holds no rows"),
        (b"", r"holds no rows"),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as error:
        load_tasks(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_answer_is_found_before_anything_runs(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", PLAIN, {"question": "and?"})
    assert load_tasks(path)[1].ground_truth is None
    with pytest.raises(FileError, match=r"a\.jsonl:2: no answer; one of these columns"):
        load_tasks(path, require_answer=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.jsonl", "No such file"),
        ("gone.json", "No such file"),
        ("gone.parquet", "cannot read it as Parquet"),
        ("", "must end in"),
    ],
)
def test_a_missing_file_is_named(name: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        load_tasks(name)


def test_a_file_that_is_no_parquet_and_one_of_another_kind_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(FileError, match="cannot read it as Parquet"):
        load_tasks(str(tmp_path / "a.parquet"))
    (tmp_path / "a.csv").write_text("question,answer")
    with pytest.raises(FileError, match=r"a\.csv: must end in"):
        load_tasks(str(tmp_path / "a.csv"))
    (tmp_path / "a.json").write_text("[{]")
    with pytest.raises(FileError, match=r"a\.json:1: not JSON"):
        load_tasks(str(tmp_path / "a.json"))


def test_json_lines_need_neither_datasets_nor_pyarrow(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", PLAIN)
    code = (
        "import sys; from treegrpo_cli.data.tasks import load_tasks; load_tasks(sys.argv[1]); "
        "print([m for m in ('datasets', 'pyarrow', 'pandas', 'torch') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
