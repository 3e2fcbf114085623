"""Adapters beside an engine's weights: its log-probabilities against those of the network that is trained."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch.nn import functional
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.models.weights import Adapter
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.samplers.vllm_adapter import write_adapter
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.types import Completion, SamplingParams

CONTEXTS = [[20 + (7 * number + i) % 250 for i in range(30 + 17 * number)] for number in range(8)]
PARAMS = SamplingParams(max_tokens=24, greedy=True)


def start(engine: str, model: Path, dtype: str, adapter: Adapter | None, **settings: Any) -> Any:
    return make_sampler(
        SamplerConfig(engine=engine, max_num_seqs=16, **settings),
        str(model),
        dtype=dtype,
        device="cpu",
        max_model_len=256,
        seed=0,
        log_path=None,
        say=lambda _: None,
        trained=Trained(adapter),
    )


def make_policy(model: Path, dtype: str, **settings: Any) -> Policy:
    lora = {"lora_rank": 4, "lora_alpha": 8.0} | settings
    return Policy(make_config({"model": {"path": str(model), "dtype": dtype, "device": "cpu"} | lora}))


def move(policy: Policy, seed: int, size: float = 0.05) -> None:
    """What an update does to adapters: both factors change."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.trained_parameters().values():
            weight += size * torch.randn(weight.shape, generator=generator)


def sample(sampler: Any) -> list[Completion]:
    async def everything() -> list[Completion]:
        return await asyncio.gather(*(sampler.sample(context, PARAMS, 0) for context in CONTEXTS))

    return asyncio.run(everything())


def logprobs(completions: list[Completion]) -> torch.Tensor:
    return torch.tensor([value for completion in completions for value in completion.logprobs])


@torch.no_grad()
def network_logprobs(policy: Policy, completions: list[Completion], *, adapted: bool = True) -> torch.Tensor:
    """The network that is trained, in the precision that it is trained in, a row at a time."""
    found = []
    with torch.autocast("cpu", torch.bfloat16, enabled=policy.dtype == torch.bfloat16):
        for context, completion in zip(CONTEXTS, completions, strict=True):
            ids = torch.tensor([context + completion.token_ids])
            if adapted:
                logits = policy.network(input_ids=ids).logits[0].float()
            else:
                with policy.network.disable_adapter():
                    logits = policy.network(input_ids=ids).logits[0].float()
            at = torch.arange(len(context) - 1, ids.shape[1] - 1)
            found.append(functional.log_softmax(logits, -1)[at, ids[0, at + 1]])
    return torch.cat(found)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def pair(dtype: str, request: pytest.FixtureRequest, tiny_model_dir: Path) -> Iterator[tuple[Any, Policy]]:
    """An engine that takes adapters as they are, and the policy whose adapter it gets."""
    if request.param == "vllm":
        request.getfixturevalue("vllm_on_cpu")
    policy = make_policy(tiny_model_dir, dtype)
    sampler = start(request.param, tiny_model_dir, dtype, policy.adapter(), lora="adapter")
    yield sampler, policy
    sampler.close()


def test_an_engine_with_an_adapter_beside_its_weights_agrees_with_the_network_that_is_trained(
    pair: tuple[Any, Policy], dtype: str
) -> None:
    sampler, policy = pair
    assert sampler.takes_adapter
    for version in range(3):
        if version:
            move(policy, version)
        sampler.update_adapter(policy.adapter(), version)
        completions = sample(sampler)
        again = sample(sampler)
        assert [each.policy_version for each in completions] == [version] * len(CONTEXTS)
        assert [each.token_ids for each in again] == [each.token_ids for each in completions]
        apart = (logprobs(completions) - network_logprobs(policy, completions)).abs()
        moved = (network_logprobs(policy, completions, adapted=False) - network_logprobs(policy, completions)).abs()
        assert moved.mean() > 0.2 or version == 0
        # in bfloat16 each rounds at places of its own
        assert apart.max() < 2e-4 if dtype == "float32" else apart.mean() < 0.04 and apart.max() < 0.4
        # the old adapter's keys and values are not reused, the new one's are
        assert all(each.num_cached_tokens == 0 for each in completions)
        if sampler.name == "vllm":
            assert sum(each.num_cached_tokens for each in again) > 0


def test_an_unchanged_adapter_changes_nothing(pair: tuple[Any, Policy]) -> None:
    sampler, policy = pair
    sampler.update_adapter(policy.adapter(), 8)
    before = sample(sampler)
    sampler.update_adapter(policy.adapter(), 9)
    after = sample(sampler)
    assert [each.token_ids for each in after] == [each.token_ids for each in before]
    torch.testing.assert_close(logprobs(after), logprobs(before), atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_are_computed_in_float32_whatever_the_model_computes_in(pair: tuple[Any, Policy]) -> None:
    """What goes into the engine's head and what comes out, held against the product in float32."""
    sampler, _ = pair
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    if sampler.name == "vllm":
        (model,) = sampler.engine.collective_rpc("get_model")
        head = model.get_submodule("logits_processor")
        original = head._apply_head

        def watched(lm_head: Any, states: torch.Tensor, bias: Any) -> torch.Tensor:
            logits: torch.Tensor = original(lm_head, states, bias)
            seen.append((states, lm_head.weight, logits))
            return logits
    else:
        head = sampler.model.get_output_embeddings()
        original = head.forward

        def watched(states: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = original(states)
            seen.append((states, head.weight, logits))
            return logits

    name = "_apply_head" if sampler.name == "vllm" else "forward"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, name, watched)
        sample(sampler)
    for states, weight, logits in seen:
        exact = states.float() @ weight.float().T
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits[..., : exact.shape[-1]], exact, atol=1e-4, rtol=1e-5)
        rounded = (exact.bfloat16().float() - exact).abs().max()
        assert rounded > 1e-2  # a head in bfloat16 would have been seen


def test_adapters_are_merged_where_the_engine_computes_in_float32_or_is_told_to(tiny_model_dir: Path) -> None:
    adapter = make_policy(tiny_model_dir, "float32").adapter()
    for dtype, lora, beside in [
        ("float32", "auto", False),
        ("bfloat16", "auto", True),
        ("bfloat16", "merged", False),
        ("float32", "adapter", True),
    ]:
        sampler = start("transformers", tiny_model_dir, dtype, adapter, lora=lora)
        assert sampler.takes_adapter == beside
        if not beside:
            with pytest.raises(ValueError, match="merged into the weights"):
                sampler.update_adapter(adapter, 1)
        sampler.close()


def test_a_closed_engine_keeps_no_weight_alive(tiny_model_dir: Path) -> None:
    sampler = start("transformers", tiny_model_dir, "bfloat16", make_policy(tiny_model_dir, "bfloat16").adapter())
    weights = WeakSet(sampler.model.parameters())
    sampler.close()
    gc.collect()
    assert not list(weights)


def test_an_adapter_that_finds_no_room_is_one_line(tmp_path: Path) -> None:
    adapter = Adapter(1, 1.0, {"q_proj": (torch.zeros(1, 4), torch.zeros(4, 1))})
    folder = tmp_path / "full"
    with pytest.raises(FileError, match=r"full: the engine's adapter cannot be written: .*; TMPDIR names another"):
        write_adapter(folder, adapter, "bfloat16")


@pytest.mark.usefixtures("vllm_on_cpu")
def test_what_vllm_cannot_adapt_is_said_before_it_starts(tiny_model_dir: Path) -> None:
    from treegrpo_cli.samplers.vllm_adapter import engine_rank, why_merged

    adapter = make_policy(tiny_model_dir, "bfloat16").adapter()
    assert adapter is not None
    assert why_merged(str(tiny_model_dir), adapter, "bfloat16", "cpu") is None
    assert "float32" in (why_merged(str(tiny_model_dir), adapter, "float32", "cuda") or "")
    assert [engine_rank(rank) for rank in (1, 2, 8, 9, 64, 512, 513)] == [1, 8, 8, 16, 64, 512, None]
    wide = Adapter(1000, 1.0, adapter.layers)
    with pytest.raises(UserError, match=r"sampler\.lora: vLLM takes no adapter of rank 1000"):
        start("vllm", tiny_model_dir, "bfloat16", wide, lora="adapter")
