"""gymnasium environments: acted in by text, copied at any turn, with their own rewards."""

import asyncio
import sys
import zlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs import close_states, load_environment, reset_with_retries, step_with_retries
from treegrpo_cli.errors import ToolError, UserError
from treegrpo_cli.types import Action, StepResult, Task, ToolCall

TASK = Task("Balance the pole.")

CORRIDOR = """
import threading
import gymnasium
from gymnasium import spaces

class Corridor(gymnasium.Env):
    action_space = spaces.Discrete(2)
    observation_space = spaces.Discrete(5)
    num_closed = 0

    def __init__(self, length: int = 3):
        self.length = length
        LOCK
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self.place, {"seed": seed}
    def step(self, action):
        if self.place == 1 and action == 0:
            raise RuntimeError("fell off")
        self.place += 2 * action - 1
        arrived = self.place == self.length
        return self.place, 0.25 + arrived, arrived, self.place < -1, {}
    def close(self):
        Corridor.num_closed += 1

def in_words(place):
    return f"You stand at {place}."
"""


def config(name: str, dialect: str = "inline", **options: Any) -> EnvironmentConfig:
    return EnvironmentConfig(name=name, dialect=dialect, options=options, tool_retries=0)  # type: ignore[arg-type]


def load(name: str, **options: Any) -> Any:
    return load_environment(config(name, **options))


def reset(environment: Any, task: Task = TASK) -> tuple[Any, str]:
    state, messages = asyncio.run(reset_with_retries(environment, task, config("x")))
    return state, messages[-1]["content"]


def act(environment: Any, state: Any, action: Any, **settings: Any) -> tuple[Any, StepResult]:
    call = Action("", (ToolCall("act", {"action": action}),))
    limits = config("x").model_copy(update=settings)
    return asyncio.run(step_with_retries(environment, state, call, limits))


def shown(result: StepResult) -> str:
    [message] = result.observation
    return str(message["content"])


@pytest.fixture
def corridor(tmp_path: Path) -> str:
    (tmp_path / "corridor.py").write_text(CORRIDOR.replace("LOCK", ""))
    return f"{tmp_path / 'corridor.py'}:Corridor"


def test_an_environment_by_its_id_is_gymnasiums_own(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = load("gym:CartPole-v1", actions=["left", "right"])
    state, prompt = reset(environment)
    twin = gymnasium.make("CartPole-v1")
    first, _ = twin.reset(seed=zlib.crc32(TASK.question.encode()))
    assert prompt.startswith(
        "Act by <act>action</act>, one action a turn. Actions: left, right.\n\nBalance the pole.\n\n["
    )
    assert np.allclose(np.array(prompt.rpartition("[")[2].rstrip("]").split(","), dtype=float), first, atol=1e-4)
    for name in ("right", " LEFT ", "1"):
        state, result = act(environment, state, name)
        observation, reward, *_ = twin.step({"right": 1, " LEFT ": 0, "1": 1}[name])
        assert np.allclose(np.array(shown(result).strip("[]").split(","), dtype=float), observation, atol=1e-4)
        assert (result.reward, result.num_tool_calls, result.done) == (reward, 1, False)


def test_any_turn_can_be_continued_again(corridor: str) -> None:
    environment = load(corridor)
    start, _ = reset(environment)
    one, first = act(environment, start, "1")
    two = [act(environment, one, "1") for _ in range(2)]
    assert environment.fork_method == "deepcopy"
    assert [shown(result) for _, result in (*two, (one, first))] == ["2", "2", "1"]
    _, last = act(environment, two[0][0], "1")
    assert (last.done, last.reward) == (True, 1.25)
    assert (start.world.observation, one.world.observation) == (0, 1)


def test_one_that_cannot_be_copied_is_replayed_from_its_seed(tmp_path: Path) -> None:
    (tmp_path / "locked.py").write_text(CORRIDOR.replace("LOCK", "self.lock = threading.Lock()"))
    environment = load(f"{tmp_path / 'locked.py'}:Corridor", make={"length": 2})
    state, _ = reset(environment, Task("Walk.", columns={"seed": 7}))
    state, _ = act(environment, state, "1")
    state, result = act(environment, state, "1")
    assert (environment.fork_method, result.done, state.world.info) == ("replay", True, {})
    assert state.world.env.length == 2


def test_the_rows_seed_starts_the_episode(corridor: str) -> None:
    environment = load(corridor)
    assert reset(environment, Task("Walk.", columns={"seed": 7}))[0].world.info == {"seed": 7}
    assert reset(environment, Task("Walk.", columns={"seed": "x"}))[0].world.info == {"seed": zlib.crc32(b"Walk.")}


def test_what_the_environment_raises_is_shown_and_leaves_the_state(corridor: str) -> None:
    environment = load(corridor)
    state, _ = act(environment, reset(environment)[0], "1")
    after, result = act(environment, state, "0")
    assert (after is state, shown(result), result.num_failed_tool_calls) == (True, "Error: RuntimeError: fell off", 1)
    with pytest.raises(ToolError, match=r"^RuntimeError: fell off$"):
        act(environment, state, "0", tool_errors="close")


def test_every_episode_is_closed_once(corridor: str) -> None:
    environment = load(corridor)
    start, _ = reset(environment)
    after, _ = act(environment, start, "1")
    asyncio.run(close_states([start, after, after]))
    corridor_class = type(after.world.env)
    assert corridor_class.num_closed == 2


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("2", "Error: there is no action '2'. Actions: 0 to 1."),
        ("up", "Error: there is no action 'up'. Actions: 0 to 1."),
        (None, "Error: there is no action None. Actions: 0 to 1."),
        ("1.0", "Error: there is no action '1.0'. Actions: 0 to 1."),
    ],
)
def test_an_action_that_is_none_costs_a_turn(corridor: str, action: Any, message: str) -> None:
    environment = load(corridor)
    state, _ = reset(environment)
    after, result = act(environment, state, action)
    assert (shown(result), result.num_tool_calls, result.reward) == (message, 0, None)
    assert after.world.observation == 0


def test_a_turn_without_one_action_is_told_so(corridor: str) -> None:
    environment = load(corridor)
    state, _ = reset(environment)
    calls = (ToolCall("act", {"action": "1"}),) * 2
    for action in (Action("hm"), Action("", calls), Action("", (ToolCall("run", {}),)), Action("", error="Not read.")):
        _, result = asyncio.run(step_with_retries(environment, state, action, config("x")))
        assert shown(result).endswith("Take one action: 0 to 1.")


def test_observations_are_written_by_a_function_of_ones_own(corridor: str) -> None:
    environment = load(corridor, observation=corridor.replace(":Corridor", ":in_words"), dialect="chat")
    state, prompt = reset(environment)
    assert prompt.endswith("You stand at 0.")
    assert prompt.startswith("Act by the tool `act`")
    assert shown(act(environment, state, 1)[1]) == "You stand at 1."


def test_or_drawn_with_coloured_cells_in_brackets() -> None:
    environment = load("gym:FrozenLake-v1", observation="render", make={"is_slippery": False}, instructions="")
    state, prompt = reset(environment)
    assert prompt == "Balance the pole.\n\n[S]FFF\nFHFH\nFFFH\nHFFG"
    assert shown(act(environment, state, "1")[1]).endswith("SFFF\n[F]HFH\nFFFH\nHFFG")


BOXES = """
import gymnasium, numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple

class Boxes(gymnasium.Env):
    action_space = Dict(push=Box(-1, 1, (2,), np.float32), pair=Tuple((Discrete(3), Discrete(2))))
    observation_space = Dict(seen=Box(-1, 1, (2,), np.float32))
    def reset(self, *, seed=None, options=None):
        return {"seen": np.zeros(2, np.float32)}, {}
    def step(self, action):
        return {"seen": action["push"]}, np.float32(sum(action["pair"])), False, False, {}
"""


def test_other_spaces_take_json(tmp_path: Path) -> None:
    (tmp_path / "boxes.py").write_text(BOXES)
    environment = load(f"{tmp_path / 'boxes.py'}:Boxes")
    state, prompt = reset(environment)
    assert prompt.endswith("seen: [0., 0.]")
    _, result = act(environment, state, '{"push": [0.5, -0.25], "pair": [2, 1]}')
    assert (shown(result), result.reward) == ("seen: [ 0.5 , -0.25]", 3.0)
    for wrong in ('{"push": [0.5, 2], "pair": [2, 1]}', '{"push": 1}', "[", '{"push": ["x", 1], "pair": [2, 1]}'):
        assert shown(act(environment, state, wrong)[1]).startswith("Error: ")
    with pytest.raises(UserError, match=r"environment\.options\.actions: names are for discrete actions, not for Dict"):
        load(f"{tmp_path / 'boxes.py'}:Boxes", actions=["a"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gym:Nowhere-v0", {}, r"environment: cannot make gym:Nowhere-v0: NameNotFound: "),
        ("gym:CartPole-v1", {"actions": ["left"]}, r"environment\.options\.actions: 1 names for 2 actions"),
        ("gym:CartPole-v1", {"acions": []}, r"environment\.options\.acions: unknown; did you mean 'actions'"),
        ("gym:CartPole-v1", {"make": {"gravty": 3}}, r"environment: cannot make gym:CartPole-v1: TypeError: "),
        ("gym:CartPole-v1", {"observation": "os:sep"}, r"environment\.options\.observation: os:sep is not a function"),
    ],
)
def test_a_wrong_name_or_option_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(name, **options)


def test_without_gymnasium_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"gym:CartPole-v1 needs gymnasium, .*: pip install 'treegrpo\[gym\]'"):
        load("gym:CartPole-v1")
