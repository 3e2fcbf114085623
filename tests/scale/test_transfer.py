"""Weights from card to card: our side of vLLM's weight-transfer API against the real engine.

NCCL and IPC need cards. Here a backend of the test's own takes their place: it hands tensors over in this process.
"""

import asyncio
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from treegrpo_cli.config import Config, SamplerConfig
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.scale.ways import choose_way, way_of
from treegrpo_cli.types import Completion, SamplingParams

PARAMS = SamplingParams(max_tokens=16, temperature=1.0)
PROMPTS = [list(range(20, 20 + length)) for length in (40, 70, 5)]
"""Two of them fill a block of the prefix cache, where old weights would be remembered."""


@pytest.mark.parametrize(
    ("trainers", "engines", "cards", "way"),
    [
        ("local", "local", "cpu", "direct"),
        ("local", "local", "separate", "direct"),
        ("local", "ray", "cpu", "store"),
        ("local", "ray", "separate", "store"),
        ("ranks", "local", "cpu", "store"),
        ("ranks", "local", "separate", "store"),
        ("ranks", "ray", "cpu", "store"),
        ("ranks", "ray", "separate", "nccl"),
        ("ranks", "ray", "colocated", "ipc"),
        ("local", "server", "cpu", "server"),
        ("local", "server", "separate", "server"),
        ("ranks", "server", "cpu", "server"),
        ("ranks", "server", "separate", "server"),
    ],
)
def test_the_way_of_weights_follows_from_who_trains_and_who_samples(
    trainers: Any, engines: Any, cards: Any, way: str
) -> None:
    assert choose_way(trainers, engines, cards) == way


@pytest.mark.parametrize(
    ("scale", "device", "engine", "way"),
    [
        ({}, "cuda", "vllm", "direct"),
        ({"engines": 2}, "cuda", "vllm", "store"),
        ({"engines": 2, "trainer_ranks": 2}, "cuda", "vllm", "nccl"),
        ({"engines": 2, "trainer_ranks": 2, "placement": "colocated"}, "cuda", "vllm", "ipc"),
        ({"engines": 2, "trainer_ranks": 2}, "cpu", "vllm", "store"),
        ({"engines": 2, "trainer_ranks": 2}, "cuda", "transformers", "store"),
        ({"trainer_ranks": 2}, "cuda", "server", "server"),
    ],
)
def test_the_way_is_read_off_the_settings(scale: dict[str, Any], device: str, engine: str, way: str) -> None:
    assert way_of(Config.model_validate({"scale": scale}), device, engine) == way


class Handle:
    """An actor's handle in this process: a call runs at once."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any) -> Any:
            answer = getattr(self._actor, name)(*args)
            return asyncio.run(answer) if inspect.iscoroutine(answer) else answer

        return SimpleNamespace(remote=remote)


class Recorder:
    """An engine's actor that only remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.told.append((name, *args))


@pytest.fixture
def calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda answers: answers))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def memory(vllm_on_cpu: None) -> Iterator[str]:
    """Register a backend `memory` with vLLM, as anybody may."""
    from treegrpo_cli.scale import transfer
    from vllm.distributed.weight_transfer import base, factory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class Meeting(base.WeightTransferInitInfo):
        rank_offset: int

    @dataclass
    class Delivery(base.WeightTransferUpdateInfo):
        tensors: list[tuple[str, torch.Tensor]]

    class Worker(base.WeightTransferEngine[Meeting, Delivery]):
        init_info_cls, update_info_cls = Meeting, Delivery

        def init_transfer_engine(self, init_info: Meeting) -> None:
            assert init_info.rank_offset == 1

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Delivery) -> None:
            self.model.load_weights(update_info.tensors)

        def shutdown(self) -> None:
            pass

    @dataclass
    class Info(base.TrainerInitInfo):
        backend: ClassVar[str] = "memory"

    class Trainer(base.TrainerWeightTransferEngine[Info]):
        init_info_cls = Info

        @classmethod
        def trainer_init(cls, init_info: Info, *, client: Any, source: Any = None) -> Any:
            engine = cls(client=client, source=source, is_sender=init_info.is_sender)
            if engine.is_sender:
                client.init_weight_transfer_engine({"rank_offset": 1})
            return engine

        def send_weights(self) -> None:
            """One update for each layer, as `iter_groups` cuts them; who is not the sender gathers along."""
            assert self.source is not None
            if self.is_sender:
                self.client.start_weight_update()
            for names, tensors in self.source.iter_groups():
                if self.is_sender:
                    self.client.update_weights({"tensors": list(zip(names, tensors, strict=True))})
            if self.is_sender:
                self.client.finish_weight_update()

    factory.WeightTransferEngineFactory.register_engine("memory", Worker)
    factory.WeightTransferTrainerFactory.register_engine("memory", Trainer)
    transfer.INFOS["memory"] = lambda rank, address, world_size: Info(rank=rank)
    yield "memory"
    del transfer.INFOS["memory"]
    del factory.WeightTransferEngineFactory._registry["memory"]
    del factory.WeightTransferTrainerFactory._registry["memory"]


def start(model_dir: Path, trained: Trained, tensor_parallel: int = 1) -> Any:
    return make_sampler(
        SamplerConfig(engine="vllm", max_num_seqs=8),
        str(model_dir),
        dtype="float32",
        device="cpu",
        max_model_len=128,
        seed=0,
        log_path=None,
        trained=trained,
        tensor_parallel=tensor_parallel,
    )


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path, memory: str) -> Iterator[Any]:
    sampler = start(tiny_model_dir, Trained(transfer=memory))
    yield sampler
    sampler.close()


def sampled(sampler: Any, params: SamplingParams = PARAMS) -> list[Completion]:
    async def ask() -> list[Completion]:
        return list(await asyncio.gather(*(sampler.sample(p, params, n) for n, p in enumerate(PROMPTS))))

    return asyncio.run(ask())


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def weights_of(model_dir: Path, factor: float, order: list[str] | None = None) -> Weights:
    """The model's weights, matrices times a factor, made one by one."""
    own = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in own.items():
            if order is not None:
                order.append(name)
            yield name, tensor * (factor if tensor.dim() > 1 else 1.0)

    shapes = {name: tensor.shape for name, tensor in own.items()}
    return Weights(shapes, stream, {name: tensor.dtype for name, tensor in own.items()})


@pytest.fixture(scope="module")
def as_loaded(engine: Any, tiny_model_dir: Path) -> list[list[int]]:
    """What the engine samples by the changed weights where it got them as it always does."""
    engine.update_weights(weights_of(tiny_model_dir, 0.9), 1)
    found = sampled(engine)
    assert {completion.policy_version for completion in found} == {1}
    engine.update_weights(weights_of(tiny_model_dir, 1.0), 2)
    return tokens(found)


def test_an_engine_samples_by_what_it_was_sent_and_says_so(
    engine: Any, as_loaded: list[list[int]], tiny_model_dir: Path, calls_at_once: None
) -> None:
    from treegrpo_cli.scale.engine_actor import EngineActor
    from treegrpo_cli.scale.transfer import PolicySource, Sender

    before = sampled(engine)
    assert tokens(before) != as_loaded
    assert {completion.policy_version for completion in before} == {2}
    actor = EngineActor()
    actor.sampler = engine
    gathered: list[list[str]] = [[], []]
    ranks = [
        Sender("memory", rank, PolicySource(weights_of(tiny_model_dir, 0.9, gathered[rank])), 1) for rank in range(2)
    ]
    handles = [Handle(actor)]
    for rank in ranks:
        rank.send(handles, ("127.0.0.1", 1), 7)
    after = sampled(engine)
    assert tokens(after) == as_loaded
    assert {completion.policy_version for completion in after} == {engine.policy_version} == {7}
    assert engine.engine.get_weight_version() == "7"
    names = list(weights_of(tiny_model_dir, 0.9).shapes)
    assert gathered == [names, names]  # all ranks gather the same, in the same order

    ranks[0].send(handles, ("127.0.0.1", 1), 8)
    assert tokens(sampled(engine)) == as_loaded
    assert engine.policy_version == 8
    ranks[0].close()


def test_a_version_is_the_one_by_which_a_turn_began(engine: Any) -> None:
    from treegrpo_cli.samplers.stepping import Request
    from treegrpo_cli.samplers.vllm_turns import EngineTurn
    from vllm.outputs import CompletionOutput, WeightVersionSpan

    spans = [WeightVersionSpan("3", 0, 1), WeightVersionSpan("4", 1, 2)]
    output = CompletionOutput(
        0, "", [5], None, [{5: SimpleNamespace(logprob=-1.0, rank=1)}], None, finish_reason="stop"
    )
    output.weight_versions = spans
    turn = EngineTurn(Request("1", [1], PARAMS, 0), "engine-1", policy_version=4)
    turn.take(SimpleNamespace(outputs=[output], num_cached_tokens=0, finished=True))
    assert turn.completion(engine.tokenizer, engine.end_ids).policy_version == 3


def test_weights_do_not_come_while_a_turn_is_sampled(engine: Any, calls_at_once: None) -> None:
    async def ask() -> None:
        turn = asyncio.ensure_future(engine.sample(PROMPTS[0], PARAMS, 0))
        await asyncio.sleep(0)
        try:
            with pytest.raises(RuntimeError, match="still running"):
                engine.transfer.begin()
        finally:
            await turn

    asyncio.run(ask())


def test_every_engine_has_a_place_of_its_own_among_the_receivers(vllm_on_cpu: None, calls_at_once: None) -> None:
    from treegrpo_cli.scale.transfer import Engines, nccl_info

    actors = [Recorder() for _ in range(3)]
    engines = Engines([Handle(actor) for actor in actors], tensor_parallel=2)
    engines.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    assert [actor.told[0][1]["rank_offset"] for actor in actors] == [1, 3, 5]
    engines.policy_version = 4
    engines.start_weight_update()
    engines.update_weights({"names": []})
    engines.finish_weight_update()
    engines.leave()
    for actor in actors:
        assert [told[0] for told in actor.told[1:]] == [
            "transfer_begin",
            "transfer_take",
            "transfer_end",
            "transfer_close",
        ]
        assert actor.told[3] == ("transfer_end", 4)
    info = nccl_info(0, ("10.0.0.1", 2345), 7)
    assert (info.master_address, info.master_port, info.world_size, info.rank) == ("10.0.0.1", 2345, 7, 0)


def test_other_engines_than_last_time_meet_the_sender_anew(
    memory: str, tiny_model_dir: Path, calls_at_once: None
) -> None:
    from treegrpo_cli.scale.transfer import PolicySource, Sender

    first, second = Recorder(), Recorder()
    one, both = [Handle(first)], [Handle(second)]
    sender = Sender(memory, 0, PolicySource(weights_of(tiny_model_dir, 1.0)), 1)
    for handles in (one, one, both):
        sender.send(handles, ("127.0.0.1", 1), 1)
    names = [told[0] for told in first.told]
    assert (names.count("transfer_open"), names.count("transfer_end"), names[0]) == (1, 2, "transfer_close")
    assert [told[0] for told in second.told][:3] == ["transfer_close", "transfer_open", "transfer_begin"]


def test_a_source_says_before_what_it_will_yield(vllm_on_cpu: None, tiny_model_dir: Path) -> None:
    from treegrpo_cli.scale.transfer import PolicySource

    source = PolicySource(weights_of(tiny_model_dir, 1.0))
    told = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    assert told == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
    groups = [names for names, _ in source.iter_groups()]
    assert [name for group in groups for name in group] == [name for name, _, _ in told]
    assert len(groups) == 4  # embeddings, two layers, the rest


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_engine_over_two_processes_samples_as_one_and_takes_new_weights(
    engine: Any, as_loaded: list[list[int]], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")  # what is imported here need not be imported there
    engine.update_weights(weights_of(tiny_model_dir, 1.0), 0)
    params = dataclasses.replace(PARAMS, entropies=True)
    wanted = sampled(engine, params)
    engine.close()
    parallel = start(tiny_model_dir, Trained(), tensor_parallel=2)
    try:
        found = sampled(parallel, params)
        assert tokens(found) == tokens(wanted)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
            assert one.entropies is not None
            np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-4)
        parallel.update_weights(weights_of(tiny_model_dir, 0.9), 3)
        after = sampled(parallel)
        assert tokens(after) == as_loaded
        assert {completion.policy_version for completion in after} == {3}
    finally:
        parallel.close()
