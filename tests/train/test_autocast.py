"""bfloat16: how long a copy of a weight lives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.types import TrainBatch

from tests.chainwise import Rows, random_trees
from tests.families import SIZES, VOCABULARY, make_trainer, save_model


class Casts(TorchDispatchMode):
    """Sees every copy of a float32 matrix in bfloat16, and which of them are still held."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self._shapes = shapes
        self._copies: list[StorageWeakRef] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        is_cast = function is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16
        if is_cast and args[0].shape in self._shapes:
            self._copies.append(StorageWeakRef(result.untyped_storage()))
        return result

    def count(self) -> int:
        return len(self._copies)

    def alive(self) -> int:
        return sum(not copy.expired() for copy in self._copies)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    config = LlamaConfig(**SIZES | {"vocab_size": VOCABULARY + 2})  # the head has a shape of its own
    return make_trainer(save_model(config, tmp_path), "runs", {}, model={"dtype": "bfloat16"}).policy


@pytest.fixture(scope="module")
def batch() -> TrainBatch:
    rows = Rows.of(random_trees(0, VOCABULARY), "grpo")
    [whole] = rows.forest.pack(rows.scores).micro_batches(10_000)
    return to_batch(whole)


def matrices(policy: Policy) -> list[Tensor]:
    """The weights that a forward of the decoder multiplies with."""
    layers = policy.model.get_decoder().layers
    return [module.weight for module in layers.modules() if isinstance(module, torch.nn.Linear)]


def alive_after_the_forward(policy: Policy, batch: TrainBatch, path: str) -> tuple[int, int]:
    """Copies of the decoder's weights that are held when its last forward is done, and all that were made."""
    casts = Casts({weight.shape for weight in matrices(policy)})
    found = (0, 0)

    def look(*_: Any) -> None:
        nonlocal found
        found = (casts.alive(), casts.count())

    handle = policy.decoder.module.register_forward_hook(look)
    with casts:
        policy.log_probs(batch, named(path))
    handle.remove()
    assert casts.alive() == 0
    return found


@pytest.mark.parametrize("path", ["runs", "dense", "chains"])
def test_a_forward_without_a_gradient_leaves_no_copy_of_a_weight(path: str, policy: Policy, batch: TrainBatch) -> None:
    assert alive_after_the_forward(policy, batch, path) == (0, len(matrices(policy)))


def test_edge_by_edge_a_weight_is_copied_once_for_all_edges(policy: Policy, batch: TrainBatch) -> None:
    assert len(batch.edges) > 5
    assert alive_after_the_forward(policy, batch, "depth-first") == (len(matrices(policy)),) * 2


def test_the_heads_copy_lives_no_longer_than_the_head(policy: Policy, batch: TrainBatch) -> None:
    head = policy.model.get_output_embeddings().weight
    casts = Casts({head.shape})
    before = []
    handle = policy.decoder.module.register_forward_hook(lambda *_: before.append(casts.count()))
    states: list[int] = []
    with casts:
        policy.model.get_input_embeddings().weight.register_hook(lambda _: states.append(casts.alive()))
        policy.backward(batch, named("runs"), lambda p, *_: p.sum(), is_local=False)
    handle.remove()
    assert before == [0]
    assert states == [0], "it was held through the decoder's backward"
    assert casts.count() == 1, "two passes over the logits share it"
