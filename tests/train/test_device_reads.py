"""A micro-batch is computed without one question to the device: each would wait for all that was launched before."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from treegrpo_cli.train import products
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.forward import Decoder
from treegrpo_cli.train.head import Head
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.trainer import Trainer

from tests.chainwise import Rows, random_trees
from tests.families import FAMILIES, VOCABULARY, make_trainer, save_model

READS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "is_nonzero", "equal", "item"}
"""What must know the numbers of a tensor on the host, be it for its value or for the size of the result."""


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.num_operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        name = function.overloadpacket.__name__
        boolean = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READS or boolean:
            self.found[name] += 1
        return function(*args, **kwargs or {})


def micro_batches(trainer: Trainer, path: str) -> list[Any]:
    rows = Rows.of(random_trees(1, VOCABULARY, num_turns=14), "grpo")
    layout = rows.forest.pack(rows.scores, shared=path != "chains")
    return named(path).micro_batches(layout, 10_000, trainer.policy.device)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, as the vocabulary of a language model gives them."""
    for kind in ("cpu", "cuda"):
        monkeypatch.setitem(products.SIZES, kind, products.Sizes(chunk=10 * VOCABULARY, block=4 * VOCABULARY))


def test_what_counts_as_a_read() -> None:
    with Reads() as reads:
        ones = torch.ones(3)
        float(ones.sum())
        ones[ones > 0]
        ones.unique()
        assert torch.equal(ones, ones)
    assert reads.found == {"_local_scalar_dense": 1, "index": 1, "_unique2": 1, "equal": 1}


@pytest.mark.parametrize("ratio", ["token", "turn"])
@pytest.mark.parametrize("path", ["runs", "dense", "depth-first", "chains"])
def test_no_number_is_read_while_a_micro_batch_is_computed(path: str, ratio: str, tmp_path: Path) -> None:
    """But by the library, where it makes its masks: it asks whether the positions of rows are those of packed texts."""
    loss = {"ratio": ratio, "kl_coef": 0.1, "entropy_coef": 0.1, "importance_clip": 2.0, "dual_clip": 3.0}
    trainer = make_trainer(save_model(FAMILIES["qwen2-window"], tmp_path), path, loss)
    trainer.paths.path = named(path)
    for micro in micro_batches(trainer, path):
        batch = to_batch(micro, trainer.policy.device)
        assert len(batch.predictors) > 30
        with Reads() as reads:
            trainer._backward(batch, 10.0, None)
        assert reads.num_operations > 200
        masks = {"_local_scalar_dense": 2 * 2} if path == "chains" else {}  # two kinds of layers, and the reference
        assert reads.found == masks


@pytest.mark.parametrize("path", ["runs", "dense", "depth-first", "chains"])
@pytest.mark.parametrize("family", ["qwen2-window", "gemma3"])
def test_on_cuda_a_forward_and_its_head_wait_for_nothing(path: str, family: str) -> None:
    """On a card in name only, whose tensors have no numbers: who asks for one gets an error."""
    rows = Rows.of(random_trees(1, VOCABULARY, num_turns=14), "grpo")
    [micro] = rows.forest.pack(rows.scores, shared=path != "chains").micro_batches(10_000)
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family]), dtype=torch.bfloat16)
        head = Head(model.get_output_embeddings().weight.detach())
        logprobs = named(path).log_probs(Decoder(model), head, to_batch(micro, "cuda"))
        assert (logprobs.device.type, logprobs.dtype) == ("cuda", torch.float32)
        assert logprobs.shape == (len(micro.target_ids),)
        with pytest.raises(DataDependentOutputException):
            logprobs.sum().item()
