"""The self-check agrees where a path is right, and sees in every dtype where positions, mask or windows are not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from treegrpo_cli.train.check_forest import small_forest
from treegrpo_cli.train.forward import Decoder, tree_refusal
from treegrpo_cli.train.paths import Subject, named
from treegrpo_cli.train.paths.dense import DensePlan
from treegrpo_cli.train.paths.depth_first import DepthFirst, EdgePlan
from treegrpo_cli.train.paths.one_forward import WholeForest
from treegrpo_cli.train.paths.runs import Runs, RunsPlan
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.train.self_check import Disagreement, Trial, check
from treegrpo_cli.types import TrainBatch

from tests.chainwise import Rows, random_trees
from tests.families import FAMILIES, FOREIGN_ATTENTION, OTHERS, VOCABULARY, make_trainer, save_model
from tests.survey.configs import tiny_config

DTYPES = ["float64", "float32", "bfloat16", "bfloat16 alone"]
"""The last: a path whose kernel has no float32, as that of variable lengths on CUDA."""

PATHS = ["runs", "dense", "depth-first"]
CPU = torch.device("cpu")


def make_batch(seed: int, length: int = 64) -> TrainBatch:
    rows = Rows.of(random_trees(seed, VOCABULARY, num_turns=12), "grpo")
    batch = small_forest([rows.forest.pack(rows.scores)], length, CPU)
    assert batch is not None
    return batch


def make_policy(config: Any, path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Policy:
    kept = "bfloat16" if dtype.startswith("bfloat16") else "float32"
    policy = make_trainer(save_model(config, path), "chains", {}, model={"dtype": kept}).policy
    if dtype == "float64":
        policy.model.double()
        policy.model.set_experts_implementation("eager")  # the library's grouped ones know no float64
    if dtype == "bfloat16 alone":
        for kind in map(type, map(named, PATHS)):
            monkeypatch.setattr(kind, "refusal", only_narrow)
    return policy


def only_narrow(_path: Any, subject: Subject) -> str | None:
    return None if subject.dtype == torch.bfloat16 else "its kernel computes in bfloat16"


@pytest.mark.parametrize("name", FAMILIES | OTHERS)
def test_it_finds_rounding_alone_on_an_honest_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = (FAMILIES | OTHERS)[name]
    for dtype, bound in zip(DTYPES, (1e-6, 1e-5, 1e-5, 0.1), strict=True):
        policy = make_policy(config, tmp_path, dtype, monkeypatch)
        for seed in range(2 if dtype == "float32" else 1):
            trial = Trial(policy, make_batch(seed), is_local=seed == 0)
            for path in ("chains", *PATHS):
                result = trial.of(named(path))
                assert result.refusal is None, (dtype, path)
                assert result.difference is not None
                assert (0 if path != "chains" else -1) < result.difference < bound, (dtype, path)
                assert result.longest == 64


def spoil_positions(monkeypatch: pytest.MonkeyPatch, start: int = 64) -> None:
    """Let positions restart one too late behind the first row."""
    call = Decoder._call

    def spoilt(self: Decoder, token_ids: Tensor, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if plan := kwargs.get("tree_plan"):
            where = torch.arange(positions.shape[1]) >= start
            is_edge = isinstance(plan, EdgePlan)
            positions = positions + ((is_edge and len(plan._path()) == 1) or (not is_edge and where[None]))
        return call(self, token_ids, positions, *args, **kwargs)

    monkeypatch.setattr(Decoder, "_call", spoilt)


def leak_a_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second row see what the first has for itself."""
    for kind in (WholeForest, DepthFirst):
        for method in ("backward", "log_probs", "predictor_states"):
            if hasattr(kind, method):
                monkeypatch.setattr(kind, method, leaking(getattr(kind, method)))


def leaking(method: Callable[..., Any]) -> Callable[..., Any]:
    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *(leak(arg) if isinstance(arg, TrainBatch) else arg for arg in args), **kwargs)

    return spoilt


def leak(batch: TrainBatch) -> TrainBatch:
    (_, end), (start, behind) = batch.runs[:2]
    [fork] = [number for number, edge in enumerate(batch.edges) if edge[1] == end]
    own = batch.edges[fork][0]
    subtree_end = batch.subtree_end.clone()
    subtree_end[own:end] = behind
    edges = tuple((a, b, fork) if a == start else (a, b, above) for a, b, above in batch.edges)
    return dataclasses.replace(
        batch, subtree_end=subtree_end, segments=(*batch.segments, (own, end, start, behind)), edges=edges
    )


def move_windows(monkeypatch: pytest.MonkeyPatch, by: int) -> None:
    for plan in (RunsPlan, DensePlan, EdgePlan):
        attend = plan.attend

        def spoilt(self: Any, *args: Any, attend: Any = attend) -> Tensor:
            query, key, value, scale, window, layer = args
            result: Tensor = attend(self, query, key, value, scale, None if window is None else window + by, layer)
            return result

        monkeypatch.setattr(plan, "attend", spoilt)


FAULTS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "positions": ("qwen3", spoil_positions),
    "positions under a window": ("gemma3", spoil_positions),
    "a sibling": ("llama", leak_a_sibling),
    "a sibling beside experts": ("qwen3-moe", leak_a_sibling),
    "a window too long": ("mistral", lambda patch: move_windows(patch, 1)),
    "a window too short": ("qwen2-window", lambda patch: move_windows(patch, -1)),
    "no window": ("gemma3", lambda patch: move_windows(patch, 10_000)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_it_sees_every_fault_in_every_dtype(
    fault: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, spoil = FAULTS[fault]
    policy = make_policy(FAMILIES[family], tmp_path, dtype, monkeypatch)
    spoil(monkeypatch)
    trial = Trial(policy, make_batch(0))
    for path in PATHS:
        result = trial.of(named(path))
        assert result.difference is not None, path
        assert result.refusal is not None, path
        if dtype == "bfloat16 alone":
            assert result.refusal.startswith(
                f"{path} in bfloat16 is {result.difference:.1e} from float32 on this model, and chains are "
            )
        else:
            assert result.refusal == f"{path} and chains differ by {result.difference:.1e} on this model"
    assert trial.of(named("chains")).refusal is None


@pytest.mark.parametrize("fault", [None, "a sibling", "a window too long"])
def test_a_model_whose_forward_takes_no_embeddings_is_compared_at_a_weight(
    fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Decoder._call

    def from_tokens(self: Decoder, token_ids: Tensor, positions: Any, embeds: Any, *args: Any, **kwargs: Any) -> Tensor:
        if embeds is not None:
            raise TypeError("give tokens")
        return call(self, token_ids, positions, embeds, *args, **kwargs)

    monkeypatch.setattr(Decoder, "_call", from_tokens)
    policy = make_policy(FAMILIES[FAULTS[fault][0] if fault else "qwen3"], tmp_path, "float32", monkeypatch)
    if fault:
        FAULTS[fault][1](monkeypatch)
    trial = Trial(policy, make_batch(0))
    assert trial._distance(trial._on(named("depth-first"), torch.float32), trial._alone)[1] > (1e-3 if fault else 0)
    for path in PATHS:
        assert (trial.of(named(path)).refusal is not None) == bool(fault)
    assert trial.of(named("chains")).refusal is None


@pytest.mark.parametrize("family", ["gemma4_text", "mamba", "rwkv", "doge", "phimoe"])
def test_families_of_other_kinds_are_honest(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of several shapes, states, keys that are chosen, routers that round in a way of their own."""
    policy = make_policy(tiny_config(family, {}), tmp_path, "float32", monkeypatch)
    trial = Trial(policy, make_batch(0))
    paths = ["chains", *(PATHS if tree_refusal(policy.network) is None else [])]
    assert len(paths) == (4 if family in ("gemma4_text", "phimoe") else 1)
    assert [trial.of(named(path)).refusal for path in paths] == [None] * len(paths)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_agrees_with_nothing(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(FAMILIES["qwen3"], tmp_path, dtype, monkeypatch)
    with torch.no_grad():
        policy.model.model.norm.weight[0] = float("nan")
    result = check(policy, make_batch(0), named("runs"))
    assert result.difference == float("inf")
    assert result.refusal is not None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("keyword", FOREIGN_ATTENTION)
def test_attention_that_no_plan_computes_is_refused(
    keyword: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(FOREIGN_ATTENTION[keyword], tmp_path, "float32", monkeypatch)
    result = check(policy, make_batch(0), named(path))
    assert result.difference is None
    assert result.refusal is not None
    assert result.refusal.endswith(f"Attention attends with {keyword}")


@pytest.mark.parametrize(
    "error", [ImportError("no kernels\nhere"), TypeError("it"), RuntimeError("CUDA"), KeyError("x")]
)
def test_whatever_a_path_raises_is_why_it_is_not_taken(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise error

    policy = make_policy(FAMILIES["qwen3"], tmp_path, "bfloat16", monkeypatch)
    monkeypatch.setattr(RunsPlan, "attend", fail)
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert check(policy, make_batch(0), named("runs")) == Disagreement(None, reason, 64)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError(), KeyboardInterrupt()])
def test_memory_that_runs_out_and_a_stopped_run_say_nothing_of_a_path(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Tensor:
        raise error

    policy = make_policy(FAMILIES["qwen3"], tmp_path, "float32", monkeypatch)
    monkeypatch.setattr(RunsPlan, "attend", fail)
    with pytest.raises(type(error)):
        check(policy, make_batch(0), named("runs"))


def test_a_kernel_without_float32_is_judged_in_bfloat16_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = RunsPlan.attend

    def narrow(self: RunsPlan, query: Tensor, *rest: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            raise RuntimeError("out of shared memory")
        return attend(self, query, *rest)

    monkeypatch.setattr(RunsPlan, "attend", narrow)
    result = check(make_policy(FAMILIES["qwen3"], tmp_path, "bfloat16", monkeypatch), make_batch(0), named("runs"))
    assert result.refusal is None
    assert result.difference is not None
    assert 1e-3 < result.difference < 0.1
    result = check(make_policy(FAMILIES["qwen3"], tmp_path, "float32", monkeypatch), make_batch(0), named("runs"))
    assert result.refusal == "RuntimeError: out of shared memory"


@pytest.mark.parametrize("fault", [None, "positions"])
def test_adapters_on_a_bfloat16_base_are_compared_in_float32(
    fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"lora_rank": 2, "lora_dropout": 0.5, "dtype": "bfloat16"}
    policy = make_trainer(save_model(FAMILIES["qwen3"], tmp_path), "chains", {}, model=lora).policy
    monkeypatch.setattr(Runs, "refusal", lambda *_: None)  # of the dropout
    trial = Trial(policy, make_batch(0))
    assert trial.of(named("chains")) == Disagreement(pytest.approx(0, abs=1e-6), None, 64)
    if fault:
        FAULTS[fault][1](monkeypatch)
    result = trial.of(named("runs"))
    assert (result.refusal is not None) == bool(fault)
    assert result.difference is not None
    assert (result.difference > 1e-2) if fault else (0 < result.difference < 1e-5)
    assert all("forward" not in vars(module) for module in policy.network.modules())
    trained = policy.trained_parameters()
    assert len(trained) == 28
    assert all(weight.grad is None for weight in trained.values())
    assert any(isinstance(module, torch.nn.Dropout) and module.training for module in policy.network.modules())
