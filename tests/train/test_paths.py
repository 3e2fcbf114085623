"""Attention paths are objects: what registers itself is chosen, checked and trained on by its name alone."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from treegrpo_cli.config import TrainConfig
from treegrpo_cli.train import paths
from treegrpo_cli.train.paths import base
from treegrpo_cli.train.paths.base import register
from treegrpo_cli.train.paths.dense import Dense
from treegrpo_cli.train.paths.flex import Flex
from treegrpo_cli.train.paths.runs import Runs
from treegrpo_cli.train.planner import choose
from treegrpo_cli.train.trainer import Trainer

from tests.steps import make_config, make_step
from tests.tiny import make_tiny_model

NAMES = {"chains", "runs", "flex", "dense", "depth-first"}
TRAIN = Path(base.__file__).parents[1]


def subject(
    device: str, dtype: torch.dtype = torch.float32, ratio: str = "token", network: Any = None
) -> paths.Subject:
    return paths.Subject(network, torch.device(device), dtype, ratio)


@pytest.fixture
def free_path() -> Iterator[type[Dense]]:
    """A path that costs nothing and is offered everywhere, for the time of a test."""

    @register
    class Free(Dense):
        name = "free"

        def is_offered(self, *_: Any) -> bool:
            return True

        def cost(self, *_: Any) -> float:
            return 1.0

    yield Free
    del base._PATHS["free"]


def test_the_settings_name_what_is_registered() -> None:
    names = {path.name for path in paths.registered()}
    assert names == NAMES
    assert set(get_args(TrainConfig.model_fields["attention_path"].annotation)) == {"auto"} | names


def test_no_module_but_its_own_asks_for_the_name_of_a_path() -> None:
    for file in sorted(TRAIN.glob("*.py")):
        compared = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Compare | ast.Dict)]
        words = {node.value for found in compared for node in ast.walk(found) if isinstance(node, ast.Constant)}
        assert not words & (NAMES - {"dense"}), file.name


def test_a_path_that_registers_itself_is_planned_checked_and_trained_on(tmp_path: Path, free_path: type[Dense]) -> None:
    trainer = Trainer(make_config(make_tiny_model(tmp_path, hidden=32)))
    metrics = trainer.update(*make_step(0))
    assert metrics["tree/attention_path"] == free_path.name
    assert metrics["tree/self_check"] < 1e-5
    assert list(trainer.paths.checks.found) == ["chains", "free"]


@pytest.mark.usefixtures("free_path")
def test_the_planner_leaves_out_what_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(make_config(make_tiny_model(tmp_path, hidden=32)))
    forest, scores = make_step(0)
    step = base.Step.of([forest.pack(scores)], 16384, torch.device("cpu"))
    model = base.ModelShape(token=1e9, pair=1e5, num_layers=24)
    asked = (step, model, torch.device("cpu"), torch.float32, "auto")
    assert choose(*asked, {}).path.name == "free"
    assert choose(*asked, {"free": "it is too good"}).path.name == "runs"
    assert trainer.paths._refusals.keys() == {"flex"}


def test_each_path_knows_what_it_cannot_train() -> None:
    ratio = "a ratio over whole sequences differs between the rows that share a token"
    assert [path.name for path in paths.registered() if path.refusal(subject("cpu", ratio="sequence")) != ratio] == [
        "chains"
    ]
    runs = Runs()
    assert runs.refusal(subject("mps")) == "mps has no kernel for it"
    assert runs.refusal(subject("cuda")) == "attention of variable lengths computes in bfloat16, not in torch.float32"
    assert runs.refusal(subject("cuda", torch.bfloat16, "sequence")) == ratio


def test_flex_attention_that_is_not_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled it computes all pairs."""
    monkeypatch.setattr(base, "tree_refusal", lambda _: None)
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        monkeypatch.setenv(name, "0")
    assert Flex().refusal(subject("cuda")) is None
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert Flex().refusal(subject("cuda")) == "TORCHDYNAMO_DISABLE = 1 keeps FlexAttention from being compiled"
    assert Flex().refusal(subject("cpu")) == "FlexAttention has no gradient on cpu"
