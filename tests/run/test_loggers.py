"""Loggers beside metrics.jsonl: what they are told, and how a resumed run goes on in the same place."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.loggers import ENVIRONMENT, check_logger, make_logger
from treegrpo_cli.run.samples import Sample

SAMPLES = [
    Sample("What?", "<answer>Lima</answer>", 1.0, {"exact_match": 1.0}, 0.5),
    Sample("Who | why?", "two\nlines", None, {"exact_match": None}),
]


class Calls(list[tuple[Any, ...]]):
    """What a stand-in for wandb or trackio was asked, in order."""

    def inits(self) -> list[dict[str, Any]]:
        return [call[1] for call in self if call[0] == "init"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Both packages, replaced by one that notes its calls; `init` gives the id and name that it was asked for."""
    for variable in ("WANDB_MODE", *(name for names in ENVIRONMENT.values() for name in names.values())):
        monkeypatch.delenv(variable, raising=False)
    calls = Calls()

    def init(**arguments: Any) -> SimpleNamespace:
        print("welcome")
        calls.append(("init", arguments))
        return SimpleNamespace(id=arguments.get("id", "made-up"), name=arguments.get("name"))

    for name in ("wandb", "trackio"):
        package: Any = ModuleType(name)
        package.init = init
        package.log = lambda metrics, step: calls.append(("log", metrics, step))
        package.finish = lambda: calls.append(("finish",))
        package.Table = lambda columns, data: (columns, data)
        package.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
        monkeypatch.setitem(sys.modules, name, package)
    return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_new_run_is_named_like_its_folder_and_gets_config_and_every_step(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    logger = make_logger(name, tmp_path, {"seed": 3})
    logger.log(1, {"reward": 0.5})
    logger.close()
    own = {"dir": str(tmp_path), "resume": "allow"} if name == "wandb" else {"resume": "never"}
    begin = {"project": "treegrpo", "name": tmp_path.name, "config": {"seed": 3}, **own}
    assert calls == [("init", begin), ("log", {"reward": 0.5}, 1), ("finish",)]
    assert capsys.readouterr().out == ""


def test_wandb_goes_on_under_the_id_that_the_first_run_got(calls: Calls, tmp_path: Path) -> None:
    make_logger("wandb", tmp_path, {})
    make_logger("wandb", tmp_path, {}, resumed_step=4)
    first, second = calls.inits()
    assert "id" not in first
    assert (second["id"], second["resume"]) == ("made-up", "allow")


def test_trackio_goes_on_under_its_name(calls: Calls, tmp_path: Path) -> None:
    make_logger("trackio", tmp_path, {})
    make_logger("trackio", tmp_path, {}, resumed_step=4)
    assert [(call["name"], call["resume"]) for call in calls.inits()] == [
        (tmp_path.name, "never"),
        (tmp_path.name, "allow"),
    ]


@pytest.mark.parametrize("resumed_step", [None, -1])
def test_a_run_that_begins_again_is_a_new_one(calls: Calls, tmp_path: Path, resumed_step: int | None) -> None:
    make_logger("wandb", tmp_path, {})
    make_logger("wandb", tmp_path, {}, resumed_step=resumed_step)
    assert ["id" in call for call in calls.inits()] == [False, False]


@pytest.mark.parametrize("broken", ["", "[]", '{"wandb": 3}', "{"])
def test_a_broken_note_of_names_is_no_obstacle(calls: Calls, tmp_path: Path, broken: str) -> None:
    (tmp_path / "loggers.json").write_text(broken)
    make_logger("wandb", tmp_path, {}, resumed_step=4)
    assert "id" not in calls.inits()[0]


def test_environment_variables_of_wandb_win_over_our_choice(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_logger("wandb", tmp_path, {})
    for variable in ENVIRONMENT["wandb"].values():
        monkeypatch.setenv(variable, "mine")
    make_logger("wandb", tmp_path, {}, resumed_step=4)
    assert calls.inits()[1] == {"config": {}, "resume": "allow"}  # wandb reads the rest itself


def test_environment_variables_of_trackio_are_handed_on(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    make_logger("trackio", tmp_path, {})
    assert calls.inits()[0]["project"] == "mine"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_completions_go_to_run_loggers_as_a_table(calls: Calls, tmp_path: Path, name: str) -> None:
    make_logger(name, tmp_path, {}).log_samples(2, SAMPLES)
    columns = ["prompt", "completion", "exact_match", "advantage"]
    rows = [["What?", "<answer>Lima</answer>", 1.0, 0.5], ["Who | why?", "two\nlines", None, None]]
    assert calls[-1] == ("log", {"completions": (columns, rows)}, 2)


@pytest.mark.usefixtures("calls")
def test_a_logger_that_stops_taking_metrics_warns_once_and_ends_nothing(tmp_path: Path) -> None:
    logger = make_logger("wandb", tmp_path, {})
    sys.modules["wandb"].log = lambda *_, **__: 1 / 0  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="wandb did not accept metrics: ZeroDivisionError"):
        logger.log(1, {})
    logger.log(2, {})  # a second warning would be an error here


@pytest.mark.usefixtures("calls")
def test_a_logger_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    sys.modules["wandb"].init = lambda **_: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="report_to: wandb does not start: ZeroDivisionError: division by zero"):
        make_logger("wandb", tmp_path, {})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_logger_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"report_to: {name} is not installed; pip install {name}"):
        check_logger(name)


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("logged_in", [True, False])
@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_wandb_needs_an_account_only_where_it_sends(logged_in: bool, mode: str) -> None:
    package: Any = sys.modules["wandb"]
    package.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))

    def login(*, prompt: bool = True, verify: bool = True) -> bool:
        assert not prompt
        assert not verify
        return logged_in

    older = SimpleNamespace(api_key="key" if logged_in else None)
    for package.login, package.api in ((login, None), (lambda key=None: None, older)):
        if mode == "online" and not logged_in:
            with pytest.raises(UserError, match="wandb is not logged in; run `wandb login`, or set WANDB_MODE=offline"):
                check_logger("wandb")
        else:
            check_logger("wandb")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_completions_as_text(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = make_logger("tensorboard", tmp_path, {})
    logger.log_samples(3, SAMPLES)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [event] = events.Tensors("completions/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 3
    assert text.splitlines() == [
        "| prompt | completion | exact_match | advantage |",
        "| --- | --- | --- | --- |",
        "| What? | <answer>Lima</answer> | 1.0 | 0.5 |",
        "| Who \\| why? | two<br>lines | None | None |",
    ]
