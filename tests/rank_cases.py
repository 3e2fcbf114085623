"""What is trained on one process and on several ranks, by the same code: a case's name -> what came of it.

All is computed in float64 unless a case says otherwise: what is left between one process and many is the order of sums.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.errors import UserError
from treegrpo_cli.train import policy as policy_module
from treegrpo_cli.train import trainer as trainer_module
from treegrpo_cli.train.batch import layouts, to_batch
from treegrpo_cli.train.networks import load_model
from treegrpo_cli.train.path_errors import PathFailedError
from treegrpo_cli.train.paths import named
from treegrpo_cli.train.paths.runs import RunsPlan
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.ranks import Ranks
from treegrpo_cli.train.self_check import Disagreement
from treegrpo_cli.train.shards import whole
from treegrpo_cli.train.trainer import Trainer

from tests.families import Float64
from tests.steps import make_chains, make_comb, make_config, make_step, make_trees, set_rewards, step_of
from tests.updates import Case

FOLDERS = ("tied", "untied", "moe", "softcap")
"""Random models that cases are about, by the folder under which they lie."""

CHAINWISE = Case({"ratio": "turn", "dual_clip": 3.0, "entropy_coef": 0.01}, "parent", 1, ("low", "dual"))
"""Compared with the rows computed one by one, in plain code."""


def nothing_trained(seed: int) -> tuple[Forest, Scores]:
    trees = make_trees(seed)
    for tree in trees:
        set_rewards(tree, None)
    return step_of(trees)


def one_tree(seed: int) -> tuple[Forest, Scores]:
    """One tree of one prompt: fewer wholes than ranks."""
    return step_of(make_comb(seed, num_turns=5))


def few(seed: int) -> tuple[Forest, Scores]:
    return make_step(seed, num_prompts=2)


def now_and_then(seed: int) -> tuple[Forest, Scores]:
    """Every other step has nothing to train on."""
    return nothing_trained(seed) if seed % 2 else make_step(seed)


FLOAT64, BUT_NORMS, AS_SET = "float64", "float64 but for the library's norms", "as the settings say"
"""What is computed in. A checkpointed layer computes its norms in float32 again whatever a test does about it."""


@dataclass
class RankCase:
    """Settings, the model, and the step of each seed; `fails`: what shall go wrong.

    `flexes`: whether FlexAttention computes log-probabilities too, of which it knows no gradient on a CPU.
    """

    tables: dict[str, Any] = field(default_factory=dict)
    model: str = "tied"
    step: Callable[[int], tuple[Forest, Scores]] = make_step
    num_steps: int = 5
    numbers: str = FLOAT64
    sizes: tuple[int, ...] = (2,)
    fails: str = ""
    flexes: bool = False

    def config(self, models: Path) -> Any:
        optimizer = {"learning_rate": 1e-3, "weight_decay": 0.1}
        return make_config(models / self.model, **({"optimizer": optimizer} | self.tables))


def on_path(path: str, **tables: Any) -> dict[str, Any]:
    return tables | {"train": {"attention_path": path} | tables.get("train", {})}


SMALL = {"microbatch_tokens": 64}
"""Several micro-batches a step."""

CASES: dict[str, RankCase] = {
    "chains": RankCase(on_path("chains", train=SMALL), model="untied", num_steps=2),
    "dense": RankCase(on_path("dense"), num_steps=2),
    "runs": RankCase(on_path("runs", train=SMALL), num_steps=3, sizes=(2, 3), flexes=True),
    "depth-first": RankCase(on_path("depth-first"), step=few, num_steps=2),
    "turn ratio": RankCase(on_path("runs", loss={"ratio": "turn"}), num_steps=2),
    "turn ratio, depth-first": RankCase(on_path("depth-first", loss={"ratio": "turn"}), step=few, num_steps=1),
    "sequence ratio": RankCase(on_path("chains", loss={"ratio": "sequence"}), num_steps=2),
    "adapters": RankCase(on_path("runs", model={"lora_rank": 4}, loss={"kl_coef": 0.1}), sizes=(2, 3)),
    "adapters, depth-first": RankCase(
        on_path("depth-first", model={"lora_rank": 4}, loss={"kl_coef": 0.1}), step=few, num_steps=2
    ),
    "reference": RankCase(on_path("runs", loss={"kl_coef": 0.1}), model="untied", num_steps=2),
    "reference, depth-first, checkpointed": RankCase(
        on_path("depth-first", model={"gradient_checkpointing": True}, loss={"kl_coef": 0.1}),
        step=few,
        num_steps=1,
        numbers=BUT_NORMS,
    ),
    "checkpointed": RankCase(on_path("runs", model={"gradient_checkpointing": True}), num_steps=2, numbers=BUT_NORMS),
    "epochs and mini-batches": RankCase(
        on_path("runs", train={"num_epochs": 2, "prompts_per_minibatch": 3}, loss={"old_logprobs": "recomputed"}),
        num_steps=2,
        sizes=(2, 3),
    ),
    "epochs, depth-first": RankCase(
        on_path("depth-first", train={"num_epochs": 2}, loss={"old_logprobs": "recomputed"}), step=few, num_steps=1
    ),
    "entropy and row means": RankCase(
        on_path("chains", loss={"entropy_coef": 0.01, "denominator": "sequence-mean"}), num_steps=2
    ),
    "experts": RankCase(on_path("chains"), model="moe", num_steps=2),
    "one tree": RankCase(on_path("runs"), step=one_tree, num_steps=2, sizes=(2, 3)),
    "one tree, depth-first": RankCase(on_path("depth-first"), step=one_tree, num_steps=2, sizes=(3,)),
    "two chains": RankCase(on_path("chains"), step=lambda seed: make_chains(seed, 2), num_steps=2, sizes=(3,)),
    "now and then": RankCase(on_path("runs"), step=now_and_then, num_steps=3),
    "planned": RankCase(num_steps=2),
    "unsupported": RankCase(model="softcap", num_steps=2),
    "float32": RankCase(
        on_path("runs", optimizer={"learning_rate": 1e-5}, loss={"old_logprobs": "recomputed"}), numbers=AS_SET
    ),
    "bfloat16": RankCase(on_path("runs", model={"dtype": "bfloat16"}), numbers=AS_SET, num_steps=2),
    "bfloat16 adapters": RankCase(
        on_path("runs", model={"dtype": "bfloat16", "lora_rank": 4}), numbers=AS_SET, num_steps=2
    ),
    "not finite": RankCase(on_path("runs"), num_steps=1, fails="loss"),
    "broken path": RankCase(on_path("runs"), num_steps=1, fails="path"),
    "row by row": RankCase(
        on_path(
            "runs",
            loss=CHAINWISE.loss,
            optimizer={"learning_rate": 1e-3, "max_grad_norm": 1e9},
            train={"prompts_per_step": 16},
        ),
        step=lambda _: _of_rows(),
        num_steps=1,
    ),
}


def _of_rows() -> tuple[Forest, Scores]:
    rows = CHAINWISE.rows()
    return rows.forest, rows.scores


def write_whole(file: Path, text: str) -> None:
    """Write a file that others wait for: it is there once it is whole."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(file)


@dataclass
class Outcome:
    """Metrics of each step, lines that were said, and what was raised; `tensors`: first and last gradient, weights.

    A gradient is that of the last optimizer step of an update, clipped; `sent` is what an engine would be handed.
    """

    metrics: list[dict[str, Any]]
    lines: list[str]
    raised: str
    tensors: dict[str, Tensor]

    def save(self, file: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, file)
        told = {"metrics": self.metrics, "lines": self.lines, "raised": self.raised}
        write_whole(file.with_suffix(".json"), json.dumps(told))

    @classmethod
    def load(cls, file: Path) -> "Outcome":
        return cls(**json.loads(file.with_suffix(".json").read_text()), tensors=load_file(file))

    def of(self, kind: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith(f"{kind} ")}


def run_case(name: str, models: Path, ranks: Ranks) -> Outcome:
    """Train a case on these ranks, or in this process."""
    case, lines = CASES[name], list[str]()
    outcome = Outcome([], lines, "", {})
    with _computing(case.numbers):
        trainer = Trainer(case.config(models), lines.append, ranks=ranks)
        _keep_gradients(trainer, outcome.tensors)
        try:
            for seed in range(case.num_steps):
                with _failing(case.fails, trainer, ranks):
                    outcome.metrics.append(trainer.update(*case.step(seed)))
        except (UserError, PathFailedError) as error:
            outcome.raised = f"{type(error).__name__}: {error}"
        for key, weight in trainer.policy.trained_parameters().items():
            outcome.tensors[f"weight {key}"] = whole(weight.detach()).clone()
        outcome.tensors |= {f"sent {key}": tensor.clone() for key, tensor in trainer.state_dict_for_sampler()}
        if case.flexes:
            [layout] = layouts(*case.step(0), 0.0, 4, shared=True)
            [micro] = layout.micro_batches(1 << 20)
            with warnings.catch_warnings(action="ignore"):  # it is not compiled
                outcome.tensors["flex"] = trainer.policy.log_probs(to_batch(micro, dtype=torch.float64), named("flex"))
        adapter = trainer.policy.adapter()
        for key, (down, up) in ({} if adapter is None else adapter.layers).items():
            outcome.tensors |= {f"sent {key} A": down.detach().clone(), f"sent {key} B": up.detach().clone()}
    return outcome


def _keep_gradients(trainer: Trainer, kept: dict[str, Tensor]) -> None:
    def keep(*_: Any) -> None:
        which = "last" if any(name.startswith("first ") for name in kept) else "first"
        for name, weight in trainer.policy.trained_parameters().items():
            if weight.grad is not None:
                kept[f"{which} {name}"] = whole(weight.grad).clone()

    trainer.optimizer.register_step_pre_hook(keep)


@contextmanager
def _computing(numbers: str) -> Iterator[None]:
    if numbers == AS_SET:
        yield
        return

    def load(path: Any) -> Any:
        model = load_model(path).double()
        if hasattr(model.config, "num_experts"):
            model.set_experts_implementation("eager")
        return model

    def batch(micro: Any, device: Any) -> Any:
        return to_batch(micro, device, torch.float64)

    with (
        patch.object(policy_module, "load_model", load),
        patch.object(Policy, "_check_forward"),  # it compares in float32
        patch.object(trainer_module, "to_batch", batch),
        Float64() if numbers == FLOAT64 else nullcontext(),
    ):
        yield


@contextmanager
def _failing(what: str, trainer: Trainer, ranks: Ranks) -> Iterator[None]:
    """On the last rank alone: a micro-batch whose loss is no number, or an attention that fails behind its check."""
    if what == "loss":

        def batch(micro: Any, device: Any) -> Any:
            made = to_batch(micro, device, torch.float64)
            made.gain.fill_(float("nan"))
            return made

        with patch.object(trainer_module, "to_batch", batch if ranks.rank == ranks.size - 1 else to_batch):
            yield
    elif what == "path":
        trainer.paths.checks.found = dict.fromkeys(("chains", "runs"), Disagreement(None, None, longest=1000))
        with patch.object(RunsPlan, "attend", side_effect=RuntimeError("no such kernel")):
            yield
    else:
        yield
