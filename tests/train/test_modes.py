"""The trained model computes as it samples; adapters drop out and layers are computed twice all the same."""

from pathlib import Path

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from treegrpo_cli.train.policy import Policy

from tests.families import FAMILIES, make_trainer, save_model


def make_policy(path: Path, **model: object) -> Policy:
    return make_trainer(save_model(FAMILIES["qwen3"], path), "chains", {}, model=model).policy


def test_nothing_but_checkpointed_layers_is_in_training(tmp_path: Path) -> None:
    policy = make_policy(tmp_path)
    modes = {isinstance(module, GradientCheckpointingLayer): module.training for module in policy.model.modules()}
    assert modes == {True: True, False: False}


def test_the_dropout_of_adapters_drops(tmp_path: Path) -> None:
    network = make_policy(tmp_path, lora_rank=2, lora_dropout=0.5).network
    [dropout, *_] = [module for name, module in network.named_modules() if name.endswith("lora_dropout.default")]
    assert isinstance(dropout, nn.Dropout)
    assert 0 < int((dropout(torch.ones(1000)) == 0).sum()) < 1000


def test_checkpointed_layers_are_computed_again_for_their_gradient(tmp_path: Path) -> None:
    counts = {}
    for is_on in (False, True):
        policy = make_policy(tmp_path / str(is_on), gradient_checkpointing=is_on)
        calls: list[int] = []
        policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        policy.network(torch.arange(4)[None], use_cache=False).logits.sum().backward()
        counts[is_on] = len(calls)
    assert counts == {False: 1, True: 2}
