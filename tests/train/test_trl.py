"""Settings in TRL's own names give TRL's own loss and gradient: its `_compute_loss` on replicated rows."""

import copy
import warnings
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from treegrpo_cli.config.files import load_config

from tests.chainwise import Rows, random_trees
from tests.families import FAMILIES, VOCABULARY, make_trainer, relative, save_model
from tests.updates import kept_gradients


@dataclass
class Case:
    """What both are told in TRL's names, and what each alone is told in its own."""

    both: dict[str, Any]
    theirs: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    path: str = "runs"


CASES = {
    "dapo, as TRL has it": Case({"loss_type": "dapo"}),
    "dapo, two clips and a bound, KL": Case(
        {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.28, "delta": 1.5, "beta": 0.1}
    ),
    "grpo, KL without the ratio": Case({"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}),
    "grpo, KL with it, the least bound": Case({"loss_type": "grpo", "epsilon": 0.3, "delta": 1.3, "beta": 0.1}),
    "dr_grpo": Case({"loss_type": "dr_grpo", "beta": 0.1}),
    "gspo": Case(
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1, "epsilon": 0.4}, path="chains"
    ),
    "a ratio over rows in a mean over tokens": Case(
        {"loss_type": "dapo", "importance_sampling_level": "sequence", "delta": 1.5}, path="chains"
    ),
    "weights for the engine": Case(
        {"loss_type": "dapo", "beta": 0.1, "vllm_importance_sampling_mode": "token_truncate"}
        | {"vllm_importance_sampling_clip_max": 1.5}
    ),
    "weights for the engine, TRL's bound, a mean over rows": Case(
        {"loss_type": "grpo", "vllm_importance_sampling_mode": "token_truncate"}
    ),
    "bnpo in one micro-batch is a mean over tokens": Case({}, {"loss_type": "bnpo"}, {"denominator": "token-mean"}),
    "an entropy bonus in a mean over tokens": Case({}, {"entropy_coef": 0.05}, {"entropy_coef": 0.05}),
}


@pytest.fixture(scope="module")
def trl() -> Any:
    """The parts of TRL that are compared with; it warns of what it finds deprecated, and takes long to load vLLM."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        import trl.import_utils as import_utils

        patch.setattr(import_utils, "is_vllm_available", lambda *_, **__: False)
        from trl import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer, add_fused_lm_head
    return SimpleNamespace(config=GRPOConfig, trainer=GRPOTrainer, add_head=add_fused_lm_head)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(FAMILIES["qwen3"], tmp_path_factory.mktemp("qwen3"))


def their_trainer(trl: Any, model: Any, settings: dict[str, Any], folder: Path) -> Any:
    """TRL's trainer with what `_compute_loss` reads, set as its `__init__` sets it; one micro-batch an update."""
    trainer = trl.trainer.__new__(trl.trainer)
    args = trl.config(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **settings)
    names = ("beta", "loss_type", "importance_sampling_level", "max_completion_length", "top_entropy_quantile")
    names += (
        "off_policy_mask_threshold",
        "entropy_coef",
        "use_adaptive_entropy",
        "vllm_importance_sampling_correction",
    )
    for name in names:
        setattr(trainer, name, getattr(args, name))
    trainer.epsilon_low = args.epsilon
    trainer.epsilon_high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    trainer._entropy_bonus_enabled = args.entropy_coef != 0.0
    trainer.use_vllm = "vllm_importance_sampling_mode" in settings
    trainer.aux_loss_enabled, trainer.current_gradient_accumulation_steps = False, 1
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer.args, trainer.model = args, model.train()
    trainer.accelerator = SimpleNamespace(
        gather=lambda tensor: tensor,
        reduce=lambda tensor, reduction: tensor,
        num_processes=1,
        sync_gradients=True,
        autocast=nullcontext,
        is_main_process=True,
    )
    trl.add_head(model, outputs=("log_probs", "entropy"))
    return trainer


def their_inputs(rows: Rows) -> dict[str, Tensor]:
    """Each scored leaf's row: its first token as the prompt, all behind it as the completion, with a mask of what the
    policy sampled; padded on the right."""
    names = ("completion_ids", "completion_mask", "tool_mask", "sampling_per_token_logps")
    columns: dict[str, list[Tensor]] = {name: [] for name in names}
    paths = rows.paths()
    for path in paths:
        tokens = [token for node in path for token in node["tokens"]][1:]
        values = ([t for t, _, _ in tokens], [1] * len(tokens), [int(s) for _, s, _ in tokens], [p for *_, p in tokens])
        for name, column in zip(names, values, strict=True):
            columns[name].append(torch.tensor(column))
    inputs = {name: torch.nn.utils.rnn.pad_sequence(column, batch_first=True) for name, column in columns.items()}
    return inputs | {
        "prompt_ids": torch.tensor([path[0]["tokens"][0][:1] for path in paths]),
        "prompt_mask": torch.ones(len(paths), 1, dtype=torch.long),
        "advantages": torch.tensor([rows.advantage(path[-1], path[-1]) for path in paths]),
        "num_items_in_batch": inputs["tool_mask"].sum(),
    }


def logprobs_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of the completions' tokens, from the library's logits, without a graph."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1], dim=-1)
    return log_p.gather(-1, inputs["completion_ids"][..., None])[..., 0]


def their_update(trainer: Any, inputs: dict[str, Tensor], reference: Any) -> tuple[float, dict[str, Tensor]]:
    """TRL's loss of one batch, and its gradients.

    The old policy is the sampler, or where there are weights for it the policy itself, as TRL computes both.
    """
    inputs = dict(inputs)
    old = sampling = inputs.pop("sampling_per_token_logps")
    if trainer.use_vllm:
        old = logprobs_of(trainer.model, inputs)
        ratio = torch.exp((old - sampling) * inputs["tool_mask"])
        inputs["importance_sampling_ratio"] = ratio.clamp(max=trainer.args.vllm_importance_sampling_clip_max)
    inputs["old_per_token_logps"] = old
    if reference is not None:
        inputs["ref_per_token_logps"] = logprobs_of(reference, inputs)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in trainer.model.named_parameters()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_settings_in_trl_s_names_have_trl_s_loss_and_gradient(
    trl: Any, model_dir: Path, tmp_path: Path, case: Case
) -> None:
    loss = load_config(None, [f"{name}={value}" for name, value in case.both.items()]).loss.model_dump() | case.ours
    ours = make_trainer(model_dir, case.path, loss)
    rows = Rows.of(random_trees(2, VOCABULARY), "grpo")
    theirs = their_trainer(trl, copy.deepcopy(ours.policy.model), case.both | case.theirs, tmp_path)
    expected_loss, expected = their_update(theirs, their_inputs(rows), ours.policy.reference)

    with kept_gradients(ours) as grads:
        metrics = ours.update(rows.forest, rows.scores)
    assert metrics["loss"] == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert grads.keys() == expected.keys()
    worst = max(relative(grad, expected[name]) for name, grad in grads.items())
    assert worst < 1e-5
    if theirs.use_vllm:
        assert 0 < metrics["sampling/importance_sampling_ratio/truncated"] < 1
        return
    for side in ("low", "high"):
        [share] = theirs._metrics["train"][f"clip_ratio/{side}_mean"]
        if loss["denominator"] == "token-mean" and loss["ratio"] == "token":
            assert metrics[f"clip_ratio/{side}_mean"] == pytest.approx(share, rel=1e-5)
        assert metrics[f"clip_ratio/{side}_mean"] > 0


def test_the_bound_that_is_refused_is_another_loss_in_trl(trl: Any, model_dir: Path, tmp_path: Path) -> None:
    """Below 1 + epsilon_high; else the refusal would be for nothing."""
    ours = make_trainer(model_dir, "chains", {"dual_clip": 1.1})
    rows = Rows.of(random_trees(2, VOCABULARY), "grpo")
    theirs = their_trainer(trl, copy.deepcopy(ours.policy.model), {"delta": 1.1}, tmp_path)
    expected_loss, _ = their_update(theirs, their_inputs(rows), None)
    assert abs(ours.update(rows.forest, rows.scores)["loss"] - expected_loss) > 1e-3
