"""vLLM as it is started and driven on CUDA, held to the installed source by its signatures: no card is here."""

import asyncio
import gc
import importlib
import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from transformers import MixtralConfig
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.pretrained import load_causal_lm
from treegrpo_cli.samplers import make_sampler, vllm_settings
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.samplers.stepping import Request
from treegrpo_cli.samplers.vllm_engine import quietly
from treegrpo_cli.samplers.vllm_entropies import entropies_in, return_entropies
from treegrpo_cli.samplers.vllm_settings import check_free_memory, gpu_settings, has_experts
from treegrpo_cli.train.policy import Policy
from treegrpo_cli.types import SamplingParams

GIB = 1 << 30


@pytest.fixture(scope="module", autouse=True)
def vllm() -> Iterator[None]:
    """Its import warns, and needs an environment; its objects are left out of the collections that closing makes."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM has no build for this machine")
    with quietly(Path(os.devnull), "cpu"):
        importlib.import_module("vllm.v1.engine.llm_engine")
    gc.freeze()
    yield
    gc.unfreeze()


class Card:
    """A card of 80 GiB and what is free on it, whoever asks."""

    def __init__(self, free: int = 60 * GIB, total: int = 80 * GIB) -> None:
        self.free, self.total, self.asked = free, total, []

    def memory(self, index: int) -> tuple[int, int]:
        self.asked.append(index)
        return self.free, self.total


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    for module in ("vllm_settings", "vllm_sleep"):
        monkeypatch.setattr(f"treegrpo_cli.samplers.{module}.free_memory", card.memory)
    return card


class Started:
    """A sampler over an engine that is not there; `calls` are the engine's, in order."""

    def __init__(self, model: Path, card: Card, trained: Trained | None, **config: Any) -> None:
        from treegrpo_cli.samplers.vllm import VllmSampler
        from vllm.v1.engine.llm_engine import LLMEngine

        self.calls: list[tuple[str, Any]] = []
        self.lines: list[str] = []
        self.engine = create_autospec(LLMEngine, instance=True)
        self.engine.engine_core = create_autospec(object)
        self.engine.engine_core.shutdown = lambda: self.calls.append(("shutdown", None))
        self.engine.collective_rpc.side_effect = self._rpc
        self.engine.sleep.side_effect = self._asleep(card)
        self.engine.wake_up.side_effect = lambda tags=None: self.calls.append(("wake", tags))
        self.engine.add_lora.side_effect = lambda request: self.calls.append(("add", request.lora_int_id)) or True
        self.engine.remove_lora.side_effect = lambda number: self.calls.append(("remove", number))
        self.engine.reset_prefix_cache.side_effect = lambda: self.calls.append(("reset", None)) or True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("treegrpo_cli.samplers.vllm.start_engine", self._start)
            self.sampler = VllmSampler(
                str(model),
                SamplerConfig(**config),
                dtype="bfloat16",
                device="cuda:1",
                max_model_len=128,
                seed=0,
                log_path=None,
                trained=trained,
                say=self.lines.append,
            )

    def _start(self, _: Any, device: str, **settings: Any) -> Any:
        self.device, self.settings = device, settings
        return self.engine

    def _rpc(self, method: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> list[Any]:
        if method == "reload_weights":
            self.calls.append(("load", len(list(kwargs["weights_iterator"]))))
            return [None]
        return [set(args[0])]  # every layer that is asked for is adapted

    def _asleep(self, card: Card) -> Callable[[int], None]:
        def sleep(level: int = 1) -> None:
            self.calls.append(("sleep", level))
            card.free += 30 * GIB

        return sleep


@pytest.fixture
def weights(tiny_model_dir: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_causal_lm(tiny_model_dir, torch.float32).state_dict()
    return state


def test_the_engine_sleeps_through_the_update_and_wakes_its_weights_before_its_cache(
    tiny_model_dir: Path, card: Card, weights: dict[str, torch.Tensor]
) -> None:
    started = Started(tiny_model_dir, card, Trained())
    sampler = started.sampler
    sampler.update_weights(weights.items(), 0)
    sampler.sleep()
    sampler.sleep()  # sleeping twice is sleeping
    with pytest.raises(RuntimeError, match="sleeps"):
        asyncio.run(sampler.sample([1], SamplingParams(4), 0))
    sampler.update_weights(weights.items(), 1)
    load = ("load", len(weights))
    assert started.calls == [
        load,
        ("reset", None),
        ("sleep", 2),
        ("wake", ["weights"]),
        load,
        ("reset", None),
        ("wake", ["kv_cache"]),
    ]
    assert sampler.policy_version == 1
    sampler.close()
    assert started.calls[-1] == ("shutdown", None)


def test_an_engine_with_adapters_keeps_its_weights_on_the_host_while_it_sleeps(
    tiny_model_dir: Path, card: Card
) -> None:
    settings = {"path": str(tiny_model_dir), "lora_rank": 12, "device": "cpu"}
    adapter = Policy(make_config({"model": settings})).adapter()
    assert adapter is not None
    started = Started(tiny_model_dir, card, Trained(adapter))
    sampler = started.sampler
    sampler.update_adapter(adapter, 0)
    folder = Path(sampler._adapter.request.lora_path)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    sampler.sleep()
    sampler.update_adapter(adapter, 1)
    assert started.calls == [
        ("add", 1),
        ("reset", None),
        ("sleep", 1),
        ("wake", ["weights"]),
        ("remove", 1),
        ("add", 2),
        ("reset", None),
        ("wake", ["kv_cache"]),
    ]
    assert started.settings["max_lora_rank"] == 16
    assert started.settings["lora_target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    sampler.close()
    assert not folder.exists()


def test_an_engine_that_is_closed_asleep_is_woken_first(tiny_model_dir: Path, card: Card) -> None:
    started = Started(tiny_model_dir, card, Trained())
    started.sampler.sleep()
    started.sampler.close()
    assert started.calls == [("sleep", 2), ("wake", None), ("shutdown", None)]
    full = Started(tiny_model_dir, card, Trained())
    full.engine.wake_up.side_effect = RuntimeError("CUDA Error: out of memory")
    full.sampler.sleep()
    full.sampler.close()
    assert full.calls == [("sleep", 2), ("shutdown", None)]


def test_memory_that_does_not_come_back_behind_the_update_is_one_line(
    tiny_model_dir: Path, card: Card, weights: dict[str, torch.Tensor]
) -> None:
    started = Started(tiny_model_dir, card, Trained())
    started.sampler.sleep()
    card.free = 12 * GIB
    with pytest.raises(UserError, match=r"sampler\.gpu_memory_utilization: .*30\.0 GiB.*12\.0 GiB are free on cuda:1"):
        started.sampler.update_weights(weights.items(), 1)
    started.sampler.close()


@pytest.mark.parametrize(
    ("trained", "sleep", "sleeps"), [(Trained(), "auto", True), (Trained(), False, False), (None, "auto", False)]
)
def test_only_an_engine_that_is_trained_beside_sleeps(
    tiny_model_dir: Path, card: Card, trained: Trained | None, sleep: Any, sleeps: bool
) -> None:
    started = Started(tiny_model_dir, card, trained, sleep=sleep)
    started.sampler.sleep()
    assert started.settings["enable_sleep_mode"] is sleeps
    assert started.calls == ([("sleep", 2)] if sleeps else [])
    started.sampler.close()


def test_the_engine_is_started_with_settings_that_it_knows_on_the_card_that_is_named(
    tiny_model_dir: Path, card: Card
) -> None:
    from vllm import EngineArgs

    started = Started(tiny_model_dir, card, Trained(), max_num_seqs=64)
    arguments = EngineArgs(**started.settings)
    assert set(started.settings) <= {field.name for field in fields(EngineArgs)}
    assert (started.device, arguments.device_ids, set(card.asked)) == ("cuda:1", [1], {1})
    assert (arguments.max_num_batched_tokens, arguments.max_num_seqs) == (16384, 64)
    assert arguments.hf_overrides == {"head_dtype": "float32"}
    card.total, card.free = 24 * GIB, 20 * GIB
    assert Started(tiny_model_dir, card, Trained()).settings["max_num_batched_tokens"] == 8192
    chosen = Started(tiny_model_dir, card, None, max_num_batched_tokens=4096, enforce_eager=True).settings
    assert (chosen["max_num_batched_tokens"], chosen["enforce_eager"]) == (4096, True)


def test_a_mixture_of_experts_that_gets_new_weights_runs_eagerly_and_it_is_said(tmp_path: Path, card: Card) -> None:
    MixtralConfig(num_local_experts=4).save_pretrained(tmp_path)
    lines: list[str] = []
    for reloads in (True, False):
        settings = gpu_settings(str(tmp_path), SamplerConfig(), "cuda:0", reloads=reloads, say=lines.append)
        assert settings["enforce_eager"] is reloads
    assert len(lines) == 1
    assert "experts" in lines[0]
    assert not has_experts(MixtralConfig(num_local_experts=1))


def test_a_card_that_is_too_full_is_one_line_with_what_is_free() -> None:
    check_free_memory(0.45, 36 * GIB, 80 * GIB, 0)
    with pytest.raises(UserError) as raised:
        check_free_memory(0.45, 20 * GIB, 80 * GIB, 1)
    assert str(raised.value) == (
        "sampler.gpu_memory_utilization: the engine would take 0.45 of 80.0 GiB, and 20.0 GiB are free on cuda:1 "
        "beside the trainer and others; set it to 0.25 or less"
    )
    with pytest.raises(UserError, match="free the card"):
        check_free_memory(0.45, 0, 80 * GIB, 0)


def test_a_cache_of_a_size_that_is_set_needs_no_share_of_the_card(tiny_model_dir: Path, card: Card) -> None:
    card.free = 20 * GIB
    for size, possible in ((0, False), (GIB, True)):
        config = SamplerConfig(kv_cache_bytes=size)
        with nullcontext() if possible else pytest.raises(UserError, match=r"set it to 0\.25 or less"):
            settings = gpu_settings(str(tiny_model_dir), config, "cuda:0", reloads=True, say=print)
    assert settings["kv_cache_memory_bytes"] == GIB
    assert 0 < settings["gpu_memory_utilization"] * card.total < card.free
    card.free = 0
    with pytest.raises(UserError, match="free the card"):
        gpu_settings(str(tiny_model_dir), config, "cuda:0", reloads=True, say=print)


def test_an_engine_that_does_not_start_leaves_its_log_closed(
    tiny_model_dir: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UserError("vLLM does not start")

    before = list(logging.getLogger("vllm").handlers)
    monkeypatch.setattr(Started, "_start", refuse)
    with pytest.raises(UserError, match="does not start"):
        Started(tiny_model_dir, card, Trained())
    assert logging.getLogger("vllm").handlers == before


def test_free_memory_is_asked_of_the_card_after_torch_gave_its_own_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: calls.append(index) or (1, 2))
    assert vllm_settings.free_memory(3) == (1, 2)
    assert calls == ["empty", 3]


@pytest.mark.usefixtures("vllm_on_cpu")
def test_sleep_that_cannot_be_had_is_refused(tiny_model_dir: Path) -> None:
    for engine in ("transformers", "vllm"):
        with pytest.raises(UserError, match=r"sampler\.sleep: "):
            make_sampler(
                SamplerConfig(engine=engine, sleep=True),
                str(tiny_model_dir),
                dtype="float32",
                device="cpu",
                max_model_len=64,
                seed=0,
                log_path=None,
            )


def test_the_sampler_of_cuda_returns_entropies_in_the_place_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.worker.gpu.sample.output import SamplerOutput
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    source = inspect.getsource(Sampler.__call__)
    assert "processed_logits = self.sample(" in source
    assert "logprobs_tensors=logprobs_tensors" in source
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 2.0, 2.0]])

    def sample(self: Any, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits.argmax(dim=-1), logits

    def call(self: Any, logits: torch.Tensor, wanted: bool) -> SamplerOutput:
        tokens, _ = self.sample(logits)
        ranks, none = torch.ones(2, dtype=torch.int64), torch.empty(0)
        tensors = LogprobsTensors(tokens[:, None], logits.gather(1, tokens[:, None]), ranks) if wanted else None
        return SamplerOutput(tokens[:, None], tensors, None, none, none)

    monkeypatch.setattr(Sampler, "sample", sample)
    monkeypatch.setattr(Sampler, "__call__", call)
    sampler: Any = object.__new__(Sampler)
    return_entropies(SimpleNamespace(model_runner=SimpleNamespace(sampler=sampler)))
    assert isinstance(sampler, Sampler)
    tensors = sampler(logits, True).logprobs_tensors
    assert tensors.selected_token_ranks.dtype == torch.int64
    assert tensors.logprob_token_ids.tolist() == [[1], [0]]
    expected = [-sum(p * math.log(p) for p in (1 / (1 + math.e), math.e / (1 + math.e))), math.log(3)]
    assert entropies_in(tensors.selected_token_ranks.tolist()) == pytest.approx(expected, abs=1e-6)
    assert sampler(logits, False).logprobs_tensors is None


def test_entropies_are_switched_on_once_and_turns_come_step_by_step_only_where_they_may_be_cut(
    tiny_model_dir: Path, card: Card
) -> None:
    started = Started(tiny_model_dir, card, None)
    params = SamplingParams(max_tokens=4)
    hooks: list[Any] = []
    started.engine.collective_rpc.side_effect = hooks.append
    started.sampler.end_ids = frozenset({2})
    kinds = []
    for number, asked in enumerate((params, replace(params, entropies=True), replace(params, stop_below=-1.0))):
        started.sampler.add(Request(str(number), [1, 2], asked, 0))
        kinds.append(started.engine.add_request.call_args.args[2].output_kind.name)
    started.sampler.add(Request("9", [1, 2], replace(params, entropies=True), 0))
    assert hooks == [return_entropies]
    assert kinds == ["FINAL_ONLY", "FINAL_ONLY", "DELTA"]
    started.sampler.close()
