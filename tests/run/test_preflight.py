"""What is wrong is found before an engine starts: all of it, a line each."""

import asyncio
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tomli_w
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import Problems, UserError
from treegrpo_cli.run import preflight
from treegrpo_cli.run.evaluate import evaluate_policy
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.preflight import prepare, train_questions, training_questions
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers import check_sleep
from treegrpo_cli.samplers.vllm_engine import start_engine

from tests.command_line import run
from tests.runs import small_run

UNCHECKED = """
class Down:
    tools = ()
    def reset(self, task):
        return None, [{"role": "user", "content": task.question}]
    def step(self, state, action):
        raise NotImplementedError
    def check(self):
        raise ConnectionError("nobody is there")
"""


def lines_of(settings: dict[str, Any], loggers: tuple[str, ...] = ()) -> list[str]:
    config = make_config(settings)
    with pytest.raises(Problems) as problems:
        prepare(config, training_questions(config), loggers)
    return list(problems.value.lines)


def test_what_is_right_comes_back_ready_to_be_played_with(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = make_config(small_run(tmp_path, tiny_model_dir))
    prepared = prepare(config, training_questions(config))
    assert {key: len(tasks) for key, tasks in prepared.tasks.items()} == {"data.train": 3, "data.eval": 3}
    assert prepared.world.dialect.stop
    asyncio.run(prepared.world.close())


def test_every_problem_has_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "reward.py").write_text("def needs_hop(completions, hop): ...")
    settings = small_run(
        tmp_path,
        tmp_path / "nothing",
        data={"eval": str(tmp_path / "missing.jsonl")},
        environment={"options": {"corpus": str(tmp_path / "no-corpus.jsonl")}},
        reward={"functions": [f"{tmp_path / 'reward.py'}:needs_hop"], "eval_function": "exact_mach"},
    )
    lines = lines_of(settings, ("wandb",))
    expected = ("needs 'hop'", "'exact_mach'; did you mean", "missing.jsonl", "wandb is not installed")
    expected += ("model.path: no such directory", "no-corpus.jsonl")
    for text in expected:
        assert sum(text in line for line in lines) == 1, (text, lines)
    assert len(lines) == len(expected)


def test_an_engine_that_cannot_sleep_is_found_before_it_starts(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = small_run(tmp_path, tiny_model_dir, sampler={"sleep": True})
    assert lines_of(settings) == ["sampler.sleep: only vLLM gives memory back; set sampler.sleep = false"]
    with pytest.raises(UserError, match=r"^sampler\.sleep: an engine on a CPU has no memory to give back"):
        check_sleep(make_config(settings).sampler, "vllm", "cpu")
    check_sleep(make_config(settings).sampler, "vllm", "cuda")


def test_a_broken_model_folder_is_found_without_loading_weights(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 100)
    [line] = lines_of(small_run(tmp_path, tmp_path / "model"))
    assert line.startswith("model.path: cannot load a model from")


def test_a_template_that_cannot_show_tools_is_found(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    [line] = lines_of(small_run(tmp_path, tmp_path / "model", environment={"dialect": "chat"}))
    assert line.startswith("chat template: does not show tools")


def test_a_template_of_the_settings_takes_the_place_of_the_models(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = small_run(tmp_path, tiny_model_dir, environment={"dialect": "chat"})
    settings["model"] |= {"chat_template": "{{ messages[0].content }}"}
    [line] = lines_of(settings)
    assert line.startswith("chat template: does not show tools")
    settings["model"] |= {"chat_template": str(tmp_path / "gone.jinja")}
    [line] = lines_of(settings)
    assert line.startswith("model.chat_template: ")


CLOSING = (
    UNCHECKED.replace('raise ConnectionError("nobody is there")', "pass")
    + """
    def close(self):
        with open("CLOSED", "a") as file:
            file.write("closed ")
"""
)


@pytest.mark.parametrize("start", ["train", "generate", "evaluate"])
def test_a_world_is_closed_once_where_the_engine_does_not_start(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    def engine(*_: Any, **__: Any) -> Any:
        raise UserError("no engine today")

    monkeypatch.setattr("treegrpo_cli.run.parts.open_sampler", engine)
    (tmp_path / "world.py").write_text(CLOSING.replace("CLOSED", str(tmp_path / "closed")))
    settings = small_run(tmp_path, tiny_model_dir)
    config = make_config(settings | {"environment": {"name": f"{tmp_path / 'world.py'}:Down"}})
    quiet = Reporter(quiet=True)
    run_it = {
        "train": lambda: train(config, quiet),
        "generate": lambda: generate(config, tmp_path / "t.jsonl", quiet),
        "evaluate": lambda: evaluate_policy(config, train_questions(config), quiet),
    }
    with pytest.raises(UserError, match="no engine today"):
        run_it[start]()
    assert (tmp_path / "closed").read_text() == "closed "


def test_an_environment_is_asked_within_its_time_where_there_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\n" + UNCHECKED.replace("raise ConnectionError", "time.sleep(60) #"))
    environment = {"name": f"{tmp_path / 'slow.py'}:Down", "check_timeout_s": 0.1}
    model, slow = lines_of(small_run(tmp_path, tmp_path / "nothing") | {"environment": environment})
    assert "no such directory" in model
    assert "no answer within 0.1 s" in slow


def test_an_environment_that_says_it_cannot_work_is_heard(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "down.py").write_text(UNCHECKED)
    environment = {"name": f"{tmp_path / 'down.py'}:Down", "options": {}}
    config = make_config(small_run(tmp_path, tiny_model_dir) | {"environment": environment})
    with pytest.raises(Problems, match="nobody is there") as problems:
        prepare(config, [train_questions(config)])
    assert any("down.py" in line for line in problems.value.trace)


@pytest.mark.parametrize("start", ["train", "generate"])
def test_nothing_starts_behind_a_problem(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    def engine(*_: Any, **__: Any) -> Any:
        raise AssertionError("the engine was started")

    monkeypatch.setattr("treegrpo_cli.run.parts.open_sampler", engine)
    config = make_config(small_run(tmp_path, tiny_model_dir, data={"train": "missing.jsonl"}))
    quiet = Reporter(quiet=True)
    run_it = {"train": lambda: train(config, quiet), "generate": lambda: generate(config, tmp_path / "t.jsonl", quiet)}
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        run_it[start]()


def settings_file(folder: Path, settings: dict[str, Any]) -> str:
    (folder / "c.toml").write_text(tomli_w.dumps(settings))
    return str(folder / "c.toml")


def test_a_dry_run_names_an_output_that_is_taken(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = settings_file(tmp_path, small_run(tmp_path, tiny_model_dir))
    (tmp_path / "taken.jsonl").write_text("precious")
    for command in (["rollout", file], ["eval", file]):
        done = run(*command, "--output", tmp_path / "taken.jsonl", "--dry-run")
        assert done.returncode == 2
        assert "taken.jsonl: exists; " in done.stderr
    assert (tmp_path / "taken.jsonl").read_text() == "precious"


def test_an_engine_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> Any:
        raise ValueError("No memory\nfor the cache blocks")

    package, engine = ModuleType("vllm"), ModuleType("vllm.v1.engine.llm_engine")
    monkeypatch.setattr(package, "EngineArgs", dict, raising=False)
    monkeypatch.setattr(engine, "LLMEngine", SimpleNamespace(from_engine_args=fail), raising=False)
    for module in (package, ModuleType("vllm.v1"), ModuleType("vllm.v1.engine"), engine):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    log = tmp_path / "engine.log"
    with pytest.raises(UserError) as error:
        start_engine(log, "cpu", model="m")
    assert str(error.value) == f"vLLM does not start: ValueError: No memory for the cache blocks; its log is {log}"
    with pytest.raises(UserError, match=r"cache blocks$"):
        start_engine(None, "cpu", model="m")


@pytest.mark.parametrize("command", ["train", "rollout"])
def test_a_dry_run_prints_the_settings_and_nothing_else(tiny_model_dir: Path, tmp_path: Path, command: str) -> None:
    file = settings_file(tmp_path, small_run(tmp_path, tiny_model_dir))
    done = run(command, file, "seed=7", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("seed = 7\n")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_wrong_settings_is_a_line_for_each_and_exit_code_2(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = small_run(tmp_path, tiny_model_dir, reward={"functions": ["exact_mach"]})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    done = run("train", settings_file(tmp_path, settings), "--data", "missing.jsonl", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    folder, reward, data = done.stderr.splitlines()
    assert "already holds a run" in folder
    assert "exact_mach" in reward
    assert "missing.jsonl" in data
    assert all(line.startswith("treegrpo: ") for line in (folder, reward, data))


def test_engines_under_ray_need_ray(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_run(tmp_path, tiny_model_dir, scale={"engines": 2})
    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    assert lines_of(settings) == ["[scale] needs Ray: pip install 'treegrpo[scale]'"]


def test_servers_are_no_engines_under_ray(tiny_model_dir: Path, tmp_path: Path) -> None:
    server = {"engine": "server", "urls": ["http://127.0.0.1:1"]}
    with pytest.raises(UserError, match=r"scale.engines starts engines here: set it to 0 beside sampler.engine"):
        make_config(small_run(tmp_path, tiny_model_dir, scale={"engines": 2}, sampler=server))


def test_a_check_without_a_run_opens_one_worker_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def note(config: Any, *_: Any, **__: Any) -> Any:
        opened.append(config.environment.workers)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(preflight, "prepare", note)
    for workers in (0, 1, 1024):
        preflight.check(make_config({"environment": {"workers": workers}}), [])
    assert opened == [0, 1, 1]
