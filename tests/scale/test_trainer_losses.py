"""Ranks that fail in every way, played by objects of this process: what the group does, and what the user reads."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from treegrpo_cli._core import Forest
from treegrpo_cli.config import Config
from treegrpo_cli.errors import FileError, Problems, UserError
from treegrpo_cli.models.chunks import Chunk
from treegrpo_cli.models.weights import Adapter, Weights
from treegrpo_cli.samplers.routing import RoutedSampler
from treegrpo_cli.scale import rank_actors
from treegrpo_cli.scale import trainer as trainer_module
from treegrpo_cli.scale.columns import StepColumns
from treegrpo_cli.scale.rank_actor import Opened, PathRefusedError, Updated
from treegrpo_cli.scale.rank_actors import RankActors, RankDiedError, most_telling
from treegrpo_cli.scale.trainer import MAX_LOSSES, RankGroup
from treegrpo_cli.scale.weights import Published, publish
from treegrpo_cli.train.self_check import Disagreement
from treegrpo_cli.train.together import ElsewhereError

from tests.forests import forest_of
from tests.steps import make_step, make_trees


@dataclass
class Played:
    """What ranks were asked, in order; `fate(method, number of the call)` may raise."""

    asked: list[tuple[str, Any]] = field(default_factory=list)
    num_started: int = 0
    fate: Callable[[str, int], None] = lambda *_: None

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.asked)


class FakeActors:
    """Ranks whose weights are the number of updates since the model."""

    played: Played

    def __init__(self, *_: Any) -> None:
        self.played.num_started += 1
        self.is_usable, self.updates, self.left = True, 0, iter(())

    def ask(self, method: str, *args: Any) -> Any:
        self.played.asked.append((method, args))
        self.played.fate(method, self.played.count(method))
        return getattr(self, method)(*args)

    def opening(self) -> Opened:
        return Opened("float32", None, {"weight": (3,)})

    def update(self, step: StepColumns) -> Updated:
        self.updates += 1
        return Updated({"loss": float(self.updates)}, 0.0)

    def save(self, folder: Path, state: dict[str, Any]) -> Path:
        return folder / f"checkpoint-{self.updates}"

    def load(self, path: Path) -> tuple[int, dict[str, Any]]:
        self.updates = int(path.name.rpartition("-")[2])
        return self.updates, {}

    def refuse(self, refusals: dict[str, Disagreement]) -> None:
        self.refused = refusals

    def is_whole(self) -> bool:
        return True

    def begin_weights(self) -> None:
        weights = [("weight", torch.full((3,), float(self.updates))), ("bias", torch.arange(2.0))]
        self.left = iter([Chunk.of([item]) for item in weights])

    def next_chunk(self) -> Chunk | None:
        self.played.asked.append(("next_chunk", ()))
        self.played.fate("next_chunk", self.played.count("next_chunk"))
        return next(self.left, None)

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def take_lines(self) -> list[str]:
        return []

    def kill(self) -> None:
        self.is_usable = False


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    FakeActors.played = Played()
    monkeypatch.setattr(trainer_module, "RankActors", FakeActors)
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.get", lambda value: value)
    return FakeActors.played


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def group(played: Played, said: list[str]) -> RankGroup:
    return RankGroup(Config(), said.append, None, lambda _: {})


def dying(method: str, *numbers: int) -> Callable[[str, int], None]:
    def fate(asked: str, number: int) -> None:
        if asked == method and number in numbers:
            raise RankDiedError("trainer rank 1 has died")

    return fate


def test_steps_since_the_last_checkpoint_are_taken_again(
    group: RankGroup, played: Played, said: list[str], tmp_path: Path
) -> None:
    for step in range(3):
        group.update(*make_step(step))
        if step == 0:
            group.save(tmp_path, {})
    played.asked.clear()
    played.fate = dying("update", 1)
    assert group.update(*make_step(3)) == {"loss": 4.0}
    assert [method for method, _ in played.asked] == ["update", "load", "update", "update", "update"]
    assert said == [
        "warning: trainer rank 1 has died: all trainer ranks start again from checkpoint-1 and take steps 2 to 3 once "
        "more"
    ]
    trained = [args[0].forest["token_ids"].tolist() for method, args in played.asked if method == "update"]
    expected = [make_step(step)[0].columns()["token_ids"].tolist() for step in (3, 1, 2, 3)]
    assert trained == expected


def test_ranks_that_die_again_and_again_end_the_run_in_one_line(group: RankGroup, played: Played) -> None:
    played.fate = dying("update", *range(100))
    with pytest.raises(
        UserError, match=r"^step 1: trainer rank 1 has died; 4 times in a row; .*rank-\*\.log"
    ) as raised:
        group.update(*make_step(0))
    assert "\n" not in str(raised.value)
    assert played.num_started == 1 + MAX_LOSSES
    assert not group.is_whole  # nothing is saved of a step that nobody can come back to


def test_only_losses_in_a_row_count(group: RankGroup, played: Played) -> None:
    played.fate = lambda method, number: dying("update", number if number % 2 else 0)(method, number)
    for step in range(3):
        group.update(*make_step(step))
        group._since.clear()  # as if each was saved
    assert played.num_started > MAX_LOSSES


def test_a_death_while_steps_are_taken_again_counts_too(group: RankGroup, played: Played) -> None:
    group.update(*make_step(0))
    played.fate = dying("update", 2, 3)
    assert group.update(*make_step(1)) == {"loss": 2.0}
    assert played.num_started == 3


def test_a_path_that_fails_is_not_taken_again(group: RankGroup, played: Played, said: list[str]) -> None:
    refusals = {"runs": Disagreement(None, "no such kernel", longest=7)}

    def fate(method: str, number: int) -> None:
        if (method, number) == ("update", 1):
            raise PathRefusedError(refusals)

    played.fate = fate
    group.update(*make_step(0))
    assert ("refuse", (refusals,)) in played.asked
    assert said == ["warning: runs cannot be computed (no such kernel): all trainer ranks start again from the model"]


def test_weights_go_on_where_a_rank_died_while_they_were_sent(group: RankGroup, played: Played) -> None:
    group.update(*make_step(0))
    played.fate = dying("next_chunk", 2)
    received: list[tuple[str, list[float]]] = []

    class Takes:
        takes_adapter = False

        def update_weights(self, weights: Weights, policy_version: int) -> None:
            assert policy_version == 1
            received.extend((name, tensor.tolist()) for name, tensor in weights)

    group.send_weights(Takes())  # type: ignore[arg-type]
    assert received == [("weight", [1.0, 1.0, 1.0]), ("bias", [0.0, 1.0])]
    assert played.num_started == 2


def test_an_engine_that_comes_back_is_brought_whole_weights_also_where_a_rank_dies_meanwhile(
    group: RankGroup, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[int, list[list[float]]]] = []

    def send(published: Published, engine: object) -> None:
        assert not published.lasts
        tensors = [tensor.tolist() for chunk in published.refs() for _, tensor in chunk.items()]
        received.append((published.policy_version, tensors))

    monkeypatch.setattr(trainer_module, "send", send)
    update = group._from_card_to_card([])
    group.update(*make_step(0))
    played.fate = dying("next_chunk", 2)
    update.send_to(object())
    assert received == [(1, [[1.0, 1.0, 1.0], [0.0, 1.0]])]
    assert played.num_started == 2


def test_ranks_that_were_closed_are_not_started_again_by_an_engine_that_comes_back(
    group: RankGroup, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "send", lambda published, _: list(published.refs()))
    group.close()
    with pytest.raises(RuntimeError, match="the ranks were closed"):
        group._from_card_to_card([]).send_to(object())
    assert played.num_started == 1


def test_weights_are_kept_by_reference_and_the_last_ones_let_go_before(group: RankGroup, played: Played) -> None:
    taken: list[Published] = []
    fields = {"max_model_len": 8, "keeps_prefixes": True, "takes_adapter": False, "take": taken.append}
    replica: Any = SimpleNamespace(name="engine 0", close=lambda: None, **fields)
    sampler = RoutedSampler("engines", [replica], publish)
    held: list[object] = []
    played.fate = lambda method, _: held.append(sampler._update) if method == "next_chunk" else None
    for _ in range(2):
        group.send_weights(sampler)
    assert held
    assert set(held) == {None}
    assert [(update.lasts, update.header.shapes) for update in taken] == [(True, {"weight": (3,)})] * 2
    assert len(list(taken[1].refs())) == 2
    sampler.close()


def test_where_more_was_trained_than_is_kept_a_death_ends_the_run_behind_its_checkpoint(
    group: RankGroup, played: Played, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = make_step(0)
    monkeypatch.setattr(trainer_module, "MAX_KEPT_BYTES", StepColumns.of(*step, None).num_bytes * 3 // 2)
    group.update(*step)
    assert len(group._since) == 1
    group.update(*step)
    assert group._since == []
    played.fate = dying("update", 3)
    with pytest.raises(UserError, match=r"more than is kept: lower train\.save_steps"):
        group.update(*step)
    assert not group.is_whole


def test_ranks_give_free_memory_back_before_a_colocated_engine_wakes_for_an_adapter(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, woken = Adapter(1, 1.0, {}), []
    monkeypatch.setattr(FakeActors, "opening", lambda _: Opened("float32", adapter, {}))
    monkeypatch.setattr(FakeActors, "adapter", lambda _: adapter, raising=False)
    monkeypatch.setattr(FakeActors, "empty_cache", lambda _: None, raising=False)

    class Sleeps:
        takes_adapter = True

        def update_adapter(self, given: Adapter, policy_version: int) -> None:
            assert given is adapter
            woken.append(played.count("empty_cache"))

    config = Config.model_validate({"scale": {"engines": 2, "trainer_ranks": 2, "placement": "colocated"}})
    RankGroup(config, print, None, lambda _: {}).send_weights(Sleeps())  # type: ignore[arg-type]
    assert woken == [1]


def test_what_ended_an_update_is_said_also_where_a_rank_dies_behind_it(group: RankGroup, played: Played) -> None:
    def fate(method: str, number: int) -> None:
        if method == "update":
            raise UserError("out of memory")
        if method == "is_whole":
            raise RankDiedError("trainer rank 1 has died")

    played.fate = fate
    with pytest.raises(UserError, match=r"^out of memory$"):
        group.update(*make_step(0))
    assert played.count("is_whole") == 1
    assert group.is_whole


def test_a_checkpoint_lets_go_of_the_steps_before_it(group: RankGroup, tmp_path: Path) -> None:
    group.update(*make_step(0))
    group.save(tmp_path, {})
    assert group._since == []


def test_of_several_errors_the_one_that_says_why_is_told() -> None:
    elsewhere, own, bug = ElsewhereError("x", "another rank"), FileError("x", "no space left"), RuntimeError("bug")
    assert most_telling({0: elsewhere, 1: own}) is own
    assert most_telling({0: bug, 1: own}) is own
    assert most_telling({0: elsewhere}) is elsewhere
    assert most_telling({1: bug}) is bug
    assert isinstance(most_telling({1: torch.distributed.DistNetworkError("lost")}), RankDiedError)
    refused = PathRefusedError({"runs": Disagreement(None, "no", longest=1)})
    assert isinstance(most_telling({0: bug, 1: refused}), PathRefusedError)


@pytest.mark.parametrize(("seconds", "is_late"), [(10.0, False), (2000.0, True)])
def test_a_rank_that_hangs_is_the_one_that_others_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch, seconds: float, is_late: bool
) -> None:
    """An exchange is given up behind half an hour; an error before that is what it says."""
    clock = iter([0.0, *(seconds + number for number in range(100))])
    monkeypatch.setattr(rank_actors.time, "monotonic", lambda: next(clock))
    bug = RuntimeError("what gloo says, or a bug")

    def take_answers(waiting: dict[Any, int], answers: dict[int, Any], failures: dict[int, BaseException]) -> None:
        if waiting.pop("first", None) is not None:
            failures[0] = bug

    monkeypatch.setattr(rank_actors, "_take_answers", take_answers)
    actors: Any = SimpleNamespace(is_usable=True)
    with pytest.raises(RankDiedError if is_late else RuntimeError) as raised:
        RankActors._answers(actors, ["first", "second"])
    assert str(raised.value) == ("trainer rank 1 hangs" if is_late else str(bug))
    assert not actors.is_usable


@pytest.mark.parametrize(
    "error", [FileError("a/b", "cut off", 7), Problems(["one", "two"]), UserError("x", trace=["y"])], ids=str
)
def test_errors_cross_processes_as_they_are(error: UserError) -> None:
    make, args, *state = error.__reduce__()
    again = make(*args)
    if state:
        again.__dict__.update(state[0])
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


SCORED: dict[str, Any] = {
    "leaves": [{"estimator": "grpo"}],
    "the paper's": [{"estimator": "tree-grpo"}],
    "turns": [{"estimator": "state-loo"}],
    "a sum with a mask": [{"estimator": "grpo"}, {"estimator": "tree-grpo", "weight": 0.5, "mask": "tool-calls"}],
}


@pytest.mark.parametrize("terms", SCORED)
@pytest.mark.parametrize("shared", [True, False])
def test_a_forest_that_was_built_again_is_laid_out_the_same(terms: str, shared: bool) -> None:
    forest, _ = forest_of(make_trees(3))
    scores = forest.score(SCORED[terms])
    prompts = np.array([2, 0], dtype=np.uint32)
    columns = StepColumns.of(forest, scores, prompts)
    again, again_scores = columns.build()
    assert isinstance(again, Forest)
    prefix_weight = 0.7 if scores.weight is None else 1.0
    layout = forest.pack(scores, prefix_weight, shared=shared, prompts=prompts)
    other = again.pack(again_scores, prefix_weight, shared=shared, prompts=prompts)
    assert layout.weighted_tokens == other.weighted_tokens
    for micro, other_micro in zip(layout.micro_batches(100), other.micro_batches(100), strict=True):
        for name in ("token_ids", "positions", "target_ids", "logprobs", "gain", "penalty", "weights", "turn"):
            assert np.array_equal(getattr(micro, name), getattr(other_micro, name)), name
        for name in ("gain_weights", "penalty_weights", "target_row", "parent_token", "subtree_end"):
            assert np.array_equal(getattr(micro, name), getattr(other_micro, name)), name
