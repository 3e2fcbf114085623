"""Both samplers on one tiny model: the same entropies, and turns that are cut at the same token."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from treegrpo_cli.samplers.measures import cut_after, entropies_of
from treegrpo_cli.types import Completion, SamplingParams

from tests.samplers.test_samplers import ENGINES, FILTERED, TOLERANCE, each, sample, start, tokens

PLAIN = SamplingParams(max_tokens=24)
CONTEXTS = [list(range(5 + i, 12 + 3 * i)) for i in range(12)]


@pytest.fixture(scope="module")
def engines(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, vllm_on_cpu: None
) -> Iterator[dict[str, Any]]:
    started = {name: start(name, tiny_model_dir, tmp_path_factory.mktemp("log") / "log") for name in ENGINES}
    yield started
    for sampler in started.values():
        sampler.close()


@pytest.fixture(params=ENGINES)
def sampler(request: pytest.FixtureRequest, engines: dict[str, Any]) -> Any:
    return engines[request.param]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


def asking(params: SamplingParams, **changes: Any) -> SamplingParams:
    return SamplingParams(**{name: getattr(params, name) for name in SamplingParams.__slots__} | changes)


def reference_entropies(model: Any, context: list[int], turn: list[int], params: SamplingParams) -> list[float]:
    """By definition, a token at a time: the k likeliest, the fewest of them that hold p; -sum p log p of these."""
    with torch.no_grad():
        logits = model(torch.tensor([context + turn])).logits[0].double()
    temperature = 1.0 if params.greedy else params.temperature
    result = []
    for position in range(len(context) - 1, len(context) + len(turn) - 1):
        chances = (logits[position] / temperature).softmax(dim=-1).tolist()
        ranked = sorted(chances, reverse=True)
        if not params.greedy:
            ranked = ranked[: params.top_k or None]
            total, mass, kept = math.fsum(ranked), 0.0, []
            for chance in ranked:
                if mass >= params.top_p:
                    break
                kept.append(chance)
                mass += chance / total
            ranked = kept
        total = math.fsum(ranked)
        result.append(-math.fsum(chance / total * math.log(chance / total) for chance in ranked))
    return result


PARAMS = {
    "plain": PLAIN,
    "hot": asking(PLAIN, temperature=1.7),
    "top k": asking(PLAIN, top_k=5),
    "top p": asking(PLAIN, top_p=0.8),
    "all": FILTERED,
    "greedy": asking(PLAIN, greedy=True),
}


@pytest.mark.parametrize("name", PARAMS)
def test_entropies_are_those_of_the_distributions_that_tokens_were_sampled_from(
    sampler: Any, model: Any, name: str
) -> None:
    params = asking(PARAMS[name], entropies=True)
    for context, completion in zip(CONTEXTS, sample(sampler, each(CONTEXTS, params)), strict=True):
        expected = reference_entropies(model, context, completion.token_ids, params)
        assert completion.entropies == pytest.approx(expected, abs=TOLERANCE)


def test_entropies_agree_between_samplers_on_the_same_tokens(engines: dict[str, Any]) -> None:
    for params in (asking(PARAMS["greedy"], entropies=True), asking(FILTERED, top_k=1, entropies=True)):
        ours, *others = (sample(engines[name], each(CONTEXTS, params)) for name in ENGINES)
        for theirs in others:
            assert tokens(ours) == tokens(theirs)
            for one, other in zip(ours, theirs, strict=True):
                assert one.entropies == pytest.approx(other.entropies, abs=TOLERANCE)


def test_turns_that_are_sampled_together_know_entropies_only_where_they_are_asked_for(sampler: Any) -> None:
    asked = [asking(PLAIN, entropies=i % 2 == 0, greedy=i % 3 == 0) for i in range(len(CONTEXTS))]
    items = [(context, params, i) for i, (context, params) in enumerate(zip(CONTEXTS, asked, strict=True))]
    together = sample(sampler, items)
    assert [c.entropies is None for c in together] == [not params.entropies for params in asked]
    for item, completion in zip(items, together, strict=True):
        (alone,) = sample(sampler, [item])
        assert completion.token_ids == alone.token_ids
        if alone.entropies:
            assert completion.entropies == pytest.approx(alone.entropies, abs=TOLERANCE)


def cut_by_definition(completion: Completion, params: SamplingParams) -> int | None:
    """Behind the first full window whose mean is lower; a turn that ends there of itself is whole."""
    assert params.stop_below is not None
    for end in range(params.window, len(completion.logprobs)):
        if sum(completion.logprobs[end - params.window : end]) / params.window < params.stop_below:
            return end
    return None


def lowest_mean(completion: Completion, window: int) -> float:
    """Of the windows behind which a turn can be cut."""
    ends = range(window, len(completion.logprobs))
    return min((sum(completion.logprobs[end - window : end]) / window for end in ends), default=0.0)


@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_turn_is_cut_behind_the_first_window_that_is_unsure(sampler: Any, window: int) -> None:
    whole = sample(sampler, each(CONTEXTS, PLAIN))
    lowest = sorted(lowest_mean(completion, window) for completion in whole)
    stop_below = (lowest[5] + lowest[6]) / 2
    params = asking(PLAIN, stop_below=stop_below, window=window, entropies=True)
    cut = sample(sampler, each(CONTEXTS, params), delays=[0.003 * (i % 3) for i in range(len(CONTEXTS))])
    ends = [cut_by_definition(completion, params) for completion in whole]
    assert None in ends
    assert any(ends)
    for before, after, end in zip(whole, cut, ends, strict=True):
        assert after.token_ids == before.token_ids[:end]
        assert after.logprobs == pytest.approx(before.logprobs[:end], abs=TOLERANCE)
        assert after.finish_reason == (before.finish_reason if end is None else "pruned")
        assert after.entropies is not None
        assert len(after.entropies) == len(after.token_ids)
    assert tokens(sample(sampler, each(CONTEXTS, PLAIN))) == tokens(whole)


def test_both_samplers_cut_the_same_turns(engines: dict[str, Any]) -> None:
    whole = sample(engines["vllm"], each(CONTEXTS, PARAMS["greedy"]))
    lowest = sorted(lowest_mean(completion, 3) for completion in whole)
    params = asking(PARAMS["greedy"], stop_below=(lowest[5] + lowest[6]) / 2, window=3)
    ours, *others = (sample(engines[name], each(CONTEXTS, params)) for name in ENGINES)
    reasons = [c.finish_reason for c in ours]
    for theirs in others:
        assert tokens(ours) == tokens(theirs)
        assert [c.text for c in ours] == [c.text for c in theirs]
        assert reasons == [c.finish_reason for c in theirs]
    assert {"pruned", "length"} <= set(reasons)


def test_only_full_windows_cut_and_only_behind_what_is_known() -> None:
    params = asking(PLAIN, stop_below=-2.0, window=3)
    assert cut_after([-9.0, -9.0], params) is None
    assert cut_after([-3.0, -2.0, -1.0, -3.0], params) is None
    assert cut_after([-3.0, -2.0, -1.0, -3.1], params) == 4
    assert cut_after([-9.0] * 5, params) == 3
    assert cut_after([-9.0] * 5, params, known=4) == 5
    assert cut_after([-9.0] * 5, PLAIN) is None


def test_entropies_of_large_batches_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    logits[:, 3] = -torch.inf
    whole = entropies_of(logits)
    monkeypatch.setattr("treegrpo_cli.samplers.measures.CHUNK_ENTRIES", 22)
    assert torch.equal(entropies_of(logits), whole)
