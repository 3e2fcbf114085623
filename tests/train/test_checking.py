"""What a run does with its self-checks: rows alone, another check where paths grow, chains where a path fails later."""

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig
from treegrpo_cli.errors import UserError
from treegrpo_cli.train.forward import Decoder
from treegrpo_cli.train.paths.runs import Runs, RunsPlan
from treegrpo_cli.train.self_check import Trial
from treegrpo_cli.train.trainer import Trainer

from tests.families import SIZES, save_model
from tests.steps import make_config, make_step

WINDOW = 100


@pytest.fixture(autouse=True)
def _free_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the planner take runs for trees as small as these."""
    monkeypatch.setattr(Runs, "cost", lambda *_: 1.0)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MistralConfig(**SIZES | {"vocab_size": 300}, sliding_window=WINDOW)
    return save_model(config, tmp_path_factory.mktemp("model"))


def trained(trainer: Trainer, *steps: Any) -> list[dict[str, Any]]:
    return [trainer.update(*step) for step in steps]


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metrics[name] for name in ("loss", "grad_norm", "entropy")}


def assert_same_weights(one: Trainer, other: Trainer) -> None:
    theirs = dict(other.state_dict_for_sampler())
    for name, weight in one.state_dict_for_sampler():
        assert torch.equal(weight, theirs[name]), name


def test_a_window_that_a_path_does_not_know_is_seen_once_paths_outgrow_it(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In some models the mask alone knows of it, and a forest has none of the library's masks."""
    attend, lines = RunsPlan.attend, []
    monkeypatch.setattr(RunsPlan, "attend", lambda *args: attend(*args[:5], None, args[6]))
    steps = (make_step(0), make_step(1, turn_tokens=16), make_step(2, turn_tokens=45))
    assert [int(forest.pack(scores).path_tokens.max()) > WINDOW for forest, scores in steps] == [False, False, True]
    trainer = Trainer(make_config(model_dir, optimizer={"learning_rate": 1e-9}), lines.append)
    metrics = trained(trainer, *steps)
    assert [step["tree/attention_path"] for step in metrics] == ["runs", "runs", "chains"]
    assert ["tree/self_check" in step for step in metrics] == [True, False, True]
    assert lines[-2].startswith("warning: trees are trained on as chains: runs and chains differ by ")
    assert trainer.paths.checks.found["chains"].longest == 2 * WINDOW
    chains = Trainer(make_config(model_dir, optimizer={"learning_rate": 1e-9}, train={"attention_path": "chains"}))
    assert numbers(metrics[2]) == pytest.approx(numbers(trained(chains, steps[2])[0]), rel=1e-4)


def spoil_rows(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]) -> None:
    call = Decoder._call

    def spoilt(self: Decoder, *args: Any, **kwargs: Any) -> Tensor:
        states = call(self, *args, **kwargs)
        return states if "tree_plan" in kwargs else spoil(states)

    monkeypatch.setattr(Decoder, "_call", spoilt)


@pytest.mark.parametrize("path", ["chains", "auto"])
def test_where_padding_moves_a_row_each_is_computed_alone(
    path: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(model_dir, loss={"kl_coef": 0.1}, train={"attention_path": path})
    honest, lines = Trainer(config), []
    expected = trained(honest, make_step(0))
    spoil_rows(monkeypatch, lambda states: states * 1.1 if len(states) > 1 else states)
    trainer = Trainer(config, lines.append)
    metrics = trained(trainer, make_step(0))
    assert numbers(metrics[0]) == pytest.approx(numbers(expected[0]), rel=1e-5)
    assert metrics[0]["tree/attention_path"] == ("chains" if path == "chains" else "runs")
    assert lines[0].startswith("warning: each row is computed alone: rows side by side and rows alone differ by ")
    assert trainer.paths.checks.rows_alone
    assert not honest.paths.checks.rows_alone


def test_a_model_that_draws_in_its_forward_is_refused(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_rows(monkeypatch, lambda states: states + 0.1 * torch.randn_like(states))
    trainer = Trainer(make_config(model_dir, train={"attention_path": "chains"}))
    said = r"^model\.path: MistralForCausalLM cannot be trained: it computes the same row differently every time$"
    with pytest.raises(UserError, match=said):
        trainer.update(*make_step(0))


def test_nothing_of_a_check_is_alive_while_weights_are_updated(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Trial] = weakref.WeakSet()
    init, step, counts = Trial.__init__, Trainer._optimizer_step, []

    def counted(self: Trial, *args: Any, **kwargs: Any) -> None:
        alive.add(self)
        init(self, *args, **kwargs)
        counts.append(len(alive))

    monkeypatch.setattr(Trial, "__init__", counted)
    monkeypatch.setattr(Trainer, "_optimizer_step", lambda *args: counts.append(len(alive)) or step(*args))
    trained(Trainer(make_config(model_dir)), make_step(0))
    assert counts == [1, 0]


def break_runs(monkeypatch: pytest.MonkeyPatch, model_dir: Path) -> tuple[Any, Any]:
    """Let runs fail on more tokens than the first of two steps has."""
    small, large = make_step(0, num_prompts=1), make_step(1, num_prompts=4)
    attend, most = RunsPlan.attend, len(small[0].pack(small[1]).token_ids)
    assert len(large[0].pack(large[1]).token_ids) > most > 96

    def failing(self: RunsPlan, query: Tensor, *rest: Any) -> Tensor:
        if query.shape[2] > most:
            raise RuntimeError(f"no kernel for {most + 1}\ntokens")
        return attend(self, query, *rest)

    monkeypatch.setattr(RunsPlan, "attend", failing)
    return small, large


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"loss": {"old_logprobs": "recomputed"}, "train": {"num_epochs": 2}},
        {"loss": {"kl_coef": 0.1}, "train": {"prompts_per_minibatch": 3}},
    ],
)
def test_a_path_that_fails_in_a_step_is_left_for_chains(
    sections: dict[str, dict[str, Any]], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = break_runs(monkeypatch, model_dir)
    lines: list[str] = []
    trainer = Trainer(make_config(model_dir, **sections), lines.append)
    [before] = trained(trainer, small)
    assert before["tree/attention_path"] == "runs"
    chains = Trainer(
        make_config(model_dir, **sections | {"train": sections.get("train", {}) | {"attention_path": "chains"}})
    )
    chains.policy.model.load_state_dict(trainer.policy.model.state_dict())
    chains.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
    chains.step = trainer.step
    metrics, expected = trained(trainer, large), trained(chains, large)
    assert metrics == expected
    assert_same_weights(trainer, chains)
    warning, explanation = lines[1:]
    assert warning.startswith("warning: trees are trained on as chains: RuntimeError: no kernel for ")
    assert "\n" not in warning
    assert explanation.startswith("training on chains: ")
    assert trained(trainer, make_step(2))[0]["tree/attention_path"] == "chains"


def test_a_path_that_was_asked_for_and_fails_in_a_step_is_one_line(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = break_runs(monkeypatch, model_dir)
    trainer = Trainer(make_config(model_dir, train={"attention_path": "runs"}))
    trained(trainer, small)
    before = {name: weight.clone() for name, weight in trainer.state_dict_for_sampler()}
    said = r"^train\.attention_path: runs cannot train this model: RuntimeError: no kernel for \d+ tokens$"
    with pytest.raises(UserError, match=said):
        trainer.update(*large)
    for name, weight in trainer.state_dict_for_sampler():
        assert torch.equal(weight, before[name])


def test_what_chains_raise_flies(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make_config(model_dir, train={"attention_path": "chains"}))
    trained(trainer, make_step(0))

    def fail(*_: Any, **__: Any) -> Tensor:
        raise IndexError("our own bug")

    monkeypatch.setattr(Decoder, "_call", fail)
    with pytest.raises(IndexError, match="our own bug"):
        trainer.update(*make_step(1))
