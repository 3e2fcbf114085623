"""A tiny configuration -> whether trees and chains train as its rows do, each alone through the library."""

import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils.logging import disable_progress_bar
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.train import paths
from treegrpo_cli.train.batch import to_batch
from treegrpo_cli.train.counts import ModelShape
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.tree_attention import TreeUnsupportedError
from treegrpo_cli.types import TrainBatch

from tests.chainwise import Rows, random_trees
from tests.survey.configs import VOCABULARY

TREE_PATHS = ("runs", "dense", "depth-first")
CONTEXT_TOKENS = 128
"""The longest context of a run: longer than what rotary positions of the survey were trained on."""


@dataclass
class Finding:
    """What is true of one configuration.

    not_built: why the library itself does not build or run it on rows of text · refused: the line that a user reads ·
    crashed: an error that nobody would understand · refusals: why a path is not taken · differences: how far a path
    is from lone rows, the greater of loss and gradient.
    """

    not_built: str | None = None
    refused: str | None = None
    crashed: str | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)


@dataclass
class Truth:
    """Loss and gradients of rows that were computed one by one; size: of the terms that the loss adds up."""

    loss: float
    size: float
    grads: dict[str, Tensor]


def survey(config: PreTrainedConfig) -> Finding:
    """Write a random model of this configuration, load it as a run does, and compare."""
    rows = Rows.of(random_trees(0, VOCABULARY, num_turns=4), "grpo")
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_random_model(config, Path(folder))
            truth = lone_rows(config, Path(folder), rows)
        except Exception as error:
            return Finding(not_built=_said(error))
        try:
            policy = Policy(Config.model_validate(_settings(folder)))
            ModelShape.of(policy.model)
        except UserError as error:
            return Finding(refused=str(error))
        except Exception as error:
            return Finding(crashed=_said(error))
        found = Finding()
        for name in ("chains", *TREE_PATHS):
            _compare(policy, name, rows, truth, found)
        return found


def save_random_model(config: PreTrainedConfig, folder: Path) -> None:
    """Write a model whose weights are far from those that every token leaves alike."""
    disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for module in model.modules():
            for weight in module.parameters(recurse=False):
                if weight.dim() == 1:
                    weight += 0.2 * torch.randn_like(weight)
                else:
                    scale = 0.5 if isinstance(module, nn.Embedding) else 1.2 / weight.shape[-1] ** 0.5
                    weight.copy_(scale * torch.randn_like(weight))
    model.save_pretrained(folder)


def lone_rows(config: PreTrainedConfig, folder: Path, rows: Rows) -> Truth:
    """Compute every scored leaf alone, unpadded, by the library's own forward as it samples."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, config=_as_the_engine_chooses(config)).float().eval()
    loss, size = torch.zeros(()), 0.0
    for path in rows.paths():
        ids = torch.tensor([[token for node in path for token, _, _ in node["tokens"]]])
        log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), dim=-1)
        end = 0
        for node in path:
            start, end = end, end + len(node["tokens"])
            at = [start + place for place, (_, sampled, _) in enumerate(node["tokens"]) if sampled]
            terms = log_p[[place - 1 for place in at], ids[0, at]] * rows.advantage(node, path[-1]) if at else None
            if terms is not None:
                loss, size = loss - terms.sum(), size + float(terms.detach().abs().sum())
    loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return Truth(float(loss.detach()), size, grads)


def _settings(folder: str) -> dict[str, Any]:
    return {
        "model": {"path": folder, "device": "cpu", "dtype": "float32"},
        "rollout": {"max_context_tokens": CONTEXT_TOKENS},
    }


def _as_the_engine_chooses(config: PreTrainedConfig) -> PreTrainedConfig:
    """Longrope's long factors for every row, as an engine takes them that holds longer contexts than the original."""
    config = copy.deepcopy(config)
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    is_long = parameters.get("original_max_position_embeddings", CONTEXT_TOKENS) < CONTEXT_TOKENS
    for kind in ("factor", "mscale"):
        if is_long and f"long_{kind}" in parameters:
            parameters[f"short_{kind}"] = parameters[f"long_{kind}"]
    return config


def _compare(policy: Policy, name: str, rows: Rows, truth: Truth, found: Finding) -> None:
    path = paths.named(name)
    reason = path.refusal(paths.Subject(policy.network, policy.device, policy.dtype, "token"))
    if reason is None:
        try:
            found.differences[name] = _difference(policy, path, rows, truth)
            return
        except TreeUnsupportedError as error:
            reason = str(error)
        except Exception as error:
            if name == "chains":
                found.crashed = _said(error)
                return
            reason = _said(error)
    found.refusals[name] = reason


def _difference(policy: Policy, path: paths.AttentionPath, rows: Rows, truth: Truth) -> float:
    [micro] = rows.forest.pack(rows.scores, 1.0, shared=path.shares).micro_batches(100_000)
    batch = to_batch(micro)
    for weight in policy.model.parameters():
        weight.grad = None
    loss = _backward(policy, path, batch)
    worst = abs(loss - truth.loss) / truth.size
    whole = float(torch.stack([grad.norm() for grad in truth.grads.values()]).norm())
    for name, weight in policy.model.named_parameters():
        wanted = truth.grads.get(name, torch.zeros_like(weight))
        ours = torch.zeros_like(weight) if weight.grad is None else weight.grad
        worst = max(worst, float((ours - wanted).norm()) / (float(wanted.norm()) + 1e-2 * whole))
    return worst if worst == worst else float("inf")


def _backward(policy: Policy, path: paths.AttentionPath, batch: TrainBatch) -> float:
    """The policy gradient's objective: advantage times log-probability."""
    advantages = batch.gain + batch.penalty

    def objective(logprobs: Tensor, _entropy: Tensor, which: slice) -> Tensor:
        return -(advantages[which] * logprobs).sum()

    return float(policy.backward(batch, path, objective, is_local=True).loss)


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
