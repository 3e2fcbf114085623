"""Several ranks against one process: the same loss, gradient, norm, weights and metrics, whatever is trained.

The ranks are real processes, started once for all tests here; each case is named as in `tests.rank_cases`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from treegrpo_cli.train.ranks import ALONE, JoinedRanks, open_store
from treegrpo_cli.train.trainer import Trainer

from tests.families import FAMILIES, FOREIGN_ATTENTION, relative, save_model
from tests.rank_cases import BUT_NORMS, CASES, CHAINWISE, FLOAT64, Outcome, run_case
from tests.tiny import make_tiny_model
from tests.updates import expected_update

TIMEOUT_S = 520
TOLERANCE = {FLOAT64: 1e-10, BUT_NORMS: 1e-6}
"""Relative. What norms in float32 round otherwise where a layout is cut otherwise is in the second."""

OnRanks = Callable[[str, int, int], Any]

MEETING = "meeting"
"""Under this name each rank leaves what it saw of the others."""

PAIRS = [(name, size) for name, case in CASES.items() for size in case.sizes]
EXACT = [(name, size) for name, size in PAIRS if CASES[name].numbers in TOLERANCE and not CASES[name].fails]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "tied", hidden=32)
    make_tiny_model(folder / "untied", hidden=32, tied=False)
    for name, config in (("moe", FAMILIES["qwen3-moe"]), ("softcap", FOREIGN_ATTENTION["softcap"])):
        config.vocab_size = 320
        save_model(config, folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(models: Path) -> Callable[[str], Outcome]:
    return cache(lambda name: run_case(name, models, ALONE))


@pytest.fixture(scope="module")
def on_ranks(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRanks]:
    """Start all ranks; return what a rank of a group has found, once it has."""
    results = tmp_path_factory.mktemp("results")
    log = (results / "log").open("w")
    command = [sys.executable, "-m", "tests.rank_processes", str(models), str(results)]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def found(name: str, size: int, rank: int) -> Any:
        told = results / str(size) / str(rank) / (name if name == MEETING else f"{name}.json")
        end = time.monotonic() + TIMEOUT_S
        while not told.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert told.exists(), (results / "log").read_text()
        return json.loads(told.read_text()) if name == MEETING else Outcome.load(told.with_suffix(".safetensors"))

    try:
        yield cache(found)
    finally:
        try:
            process.wait(TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.close()
    assert process.returncode == 0, (results / "log").read_text()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert expected
    for name, tensor in expected.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        distance, size = float((found[name] - tensor).norm()), float(tensor.norm())
        assert distance <= tolerance * size, f"{name}: {distance / (size or 1):.1e}"


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def assert_metrics(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    """Sums that cancel, as a loss of both signs does, have the error of what they add up: numbers about 1."""
    assert [metrics.keys() for metrics in found] == [metrics.keys() for metrics in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            if name != "tree/self_check":  # no more than noise
                same = value if isinstance(value, str) else pytest.approx(value, rel=tolerance, abs=tolerance)
                assert ours[name] == same, name


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_add_up_compare_and_agree(on_ranks: OnRanks, size: int) -> None:
    for rank in range(size):
        seen = on_ranks(MEETING, size, rank)
        assert seen["gather"] == [[float(other), 10.0 - other] for other in range(size)]
        assert seen["sum"] == [sum(range(size)), 10.0 * size - sum(range(size))]
        assert seen["max"] == [size - 1.0, 10.0]
        assert seen["agreed"] == {"of": 0, "infinite": float("inf")}


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_take_turns_also_where_one_fails_in_its_own(on_ranks: OnRanks, size: int) -> None:
    seen = [on_ranks(MEETING, size, rank) for rank in range(size)]
    assert [one["failed"] for one in seen] == [rank == 1 for rank in range(size)]
    for one, after in pairwise(seen):
        assert one["turn"][1] <= after["turn"][0]


def test_a_rank_waits_for_the_others_where_exchanges_are_only_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card. A tensor without numbers stands for the answer: reading it shows that it is waited for."""
    ranks = object.__new__(JoinedRanks)
    ranks.device, ranks._turn, ranks._turns = torch.device("cpu"), 1, 2
    monkeypatch.setattr(ranks, "gather", lambda values: values.to("meta"))
    with pytest.raises(NotImplementedError, match="meta"), ranks.in_turn():
        pytest.fail("it did not wait for its turn")


def test_no_other_machine_reaches_the_place_where_ranks_of_one_machine_meet() -> None:
    store = open_store(timeout_s=20.0)
    socket.create_connection(("127.0.0.1", store.port), timeout=20).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port), timeout=20)


def test_one_process_is_its_own_sum_and_asks_nobody() -> None:
    values = torch.tensor([1.0, 2.0])
    assert ALONE.sum(values) is values
    assert ALONE.max(values) is values
    assert torch.equal(ALONE.gather(values), values[None])
    assert (ALONE.rank, ALONE.size, ALONE.agree("value")) == (0, 1, "value")


@pytest.mark.parametrize(("name", "size"), EXACT, ids=[f"{name}, {size}" for name, size in EXACT])
def test_ranks_train_as_one_process_does(
    alone: Callable[[str], Outcome], on_ranks: OnRanks, name: str, size: int
) -> None:
    expected, found, tolerance = alone(name), on_ranks(name, size, 0), TOLERANCE[CASES[name].numbers]
    assert not expected.raised
    assert len(expected.metrics) == CASES[name].num_steps
    assert_metrics(found.metrics, expected.metrics, tolerance)
    for kind in ("first", "last", "weight", "sent"):
        if expected.of(kind):
            assert_same(found.of(kind), expected.of(kind), tolerance)
    assert expected.of("first")
    assert expected.of("weight")
    assert expected.of("sent")
    if "flex" in expected.tensors:
        assert relative(found.tensors["flex"], expected.tensors["flex"]) < tolerance


@pytest.mark.parametrize(("name", "size"), PAIRS, ids=[f"{name}, {size}" for name, size in PAIRS])
def test_all_ranks_return_the_same_and_the_first_alone_speaks(on_ranks: OnRanks, name: str, size: int) -> None:
    first, *others = [on_ranks(name, size, rank) for rank in range(size)]
    for other in others:
        assert other.metrics == first.metrics
        assert other.lines == []
        assert other.tensors.keys() == first.tensors.keys()
        assert all(torch.equal(tensor, first.tensors[key]) for key, tensor in other.tensors.items())


def test_five_steps_in_float32_are_those_of_one_process(alone: Callable[[str], Outcome], on_ranks: OnRanks) -> None:
    expected, found = alone("float32"), on_ranks("float32", 2, 0)
    assert expected.tensors["weight model.norm.weight"].dtype == torch.float32
    assert_metrics(found.metrics, expected.metrics, 1e-6)
    for kind in ("first", "last", "weight"):
        assert found.of(kind).keys() == expected.of(kind).keys()
        assert relative(flat(found.of(kind)), flat(expected.of(kind))) < 1e-6


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16 adapters"])
def test_in_bfloat16_ranks_differ_from_one_process_by_rounding(
    alone: Callable[[str], Outcome], on_ranks: OnRanks, name: str
) -> None:
    """The gradient of the first step: one number for all of it, for that of a single weight may vanish."""
    expected, found = alone(name), on_ranks(name, 2, 0)
    assert {grad.dtype for grad in expected.of("first").values()} == {torch.float32}
    assert relative(flat(found.of("first")), flat(expected.of("first"))) < 2**-6
    assert found.metrics[0]["grad_norm"] == pytest.approx(expected.metrics[0]["grad_norm"], rel=2**-6)


def test_ranks_find_the_gradient_that_rows_ask_for_one_by_one(models: Path, on_ranks: OnRanks) -> None:
    trainer = Trainer(CASES["row by row"].config(models))
    trainer.policy.model.double()
    expected, found = expected_update(trainer, CHAINWISE), on_ranks("row by row", 2, 0)
    assert found.metrics[0]["loss"] == pytest.approx(expected.loss, abs=1e-6 * expected.size)
    assert_same(found.of("first"), {f"first {name}": grad for name, grad in expected.grads.items()}, 1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_adapters_start_the_same_on_any_number_of_ranks(models: Path, on_ranks: OnRanks, size: int) -> None:
    """The first factor is drawn, and so little moved by a few steps that another draw would show."""
    before = Trainer(CASES["adapters"].config(models)).policy.adapter()
    assert before is not None
    after = on_ranks("adapters", size, 0).tensors
    for name, (down, _) in before.layers.items():
        assert relative(after[f"sent {name} A"], down.detach()) < 0.1


def test_a_step_without_a_trained_token_leaves_the_weights_alone(on_ranks: OnRanks) -> None:
    losses = [metrics["loss"] for metrics in on_ranks("now and then", 2, 0).metrics]
    assert losses[1] == 0.0
    assert losses[0] != 0.0 != losses[2]


def test_what_a_model_does_not_support_is_left_by_all_ranks(alone: Callable[[str], Outcome], on_ranks: OnRanks) -> None:
    found = on_ranks("unsupported", 2, 0)
    assert {metrics["tree/attention_path"] for metrics in found.metrics} == {"chains"}
    assert found.lines == alone("unsupported").lines


def test_a_loss_that_one_rank_finds_not_finite_stops_all_before_a_weight_moves(models: Path, on_ranks: OnRanks) -> None:
    untouched = Trainer(CASES["not finite"].config(models)).policy.trained_parameters()
    first, second = (on_ranks("not finite", 2, rank) for rank in (0, 1))
    assert first.raised == second.raised
    assert "UserError: step 1: loss nan" in first.raised
    assert all(torch.equal(first.tensors[f"weight {name}"].float(), weight) for name, weight in untouched.items())


def test_a_path_that_fails_in_mid_step_is_raised_and_not_replaced(
    alone: Callable[[str], Outcome], on_ranks: OnRanks
) -> None:
    assert on_ranks("broken path", 2, 0).raised == "PathFailedError: RuntimeError: no such kernel"
    assert "cannot train this model" in alone("broken path").raised
