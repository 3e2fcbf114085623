"""What cannot run without cards calls vLLM by names and signatures that the installed version has."""

import inspect
from typing import Any

import pytest
from treegrpo_cli.samplers import vllm_transfer_names
from treegrpo_cli.samplers.vllm_transfer_names import missing

pytest.importorskip("vllm")


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.fixture(autouse=True)
def installed(vllm_on_cpu: None) -> None:
    """Needs vLLM."""


def test_the_trainers_side_takes_what_we_give_it() -> None:
    from treegrpo_cli.scale.transfer import INFOS, Engines, ipc_info, nccl_info
    from vllm.distributed.weight_transfer import base, factory

    assert (nccl_info(0, ("h", 1), 3).backend, ipc_info(1, ("h", 1), 3).backend) == ("nccl", "ipc")
    assert not ipc_info(1, ("h", 1), 3).is_sender
    trainer = factory.WeightTransferTrainerFactory
    assert set(INFOS) <= set(trainer._registry)
    assert set(INFOS) <= set(factory.WeightTransferEngineFactory._registry)
    for name in ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"):
        assert parameters(getattr(Engines, name)) == parameters(getattr(base.VLLMWeightSyncClient, name))


def test_everything_that_is_called_or_set_is_there() -> None:
    assert missing() == []


def test_what_is_called_otherwise_or_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu_worker import Worker

    def update_weights(self: Any, update_info: Any, checksum: str) -> None: ...

    monkeypatch.setattr(Worker, "update_weights", update_weights)
    monkeypatch.delattr(Worker, "start_weight_update")
    monkeypatch.setitem(vllm_transfer_names.FIELDS, "vllm.config:WeightTransferConfig", ("backend", "colour"))
    monkeypatch.setitem(vllm_transfer_names.FIELDS, "vllm.nowhere:Nothing", ("at_all",))
    assert missing() == [
        "Worker.start_weight_update",
        "Worker.update_weights",
        "WeightTransferConfig.colour",
        "Nothing.at_all",
    ]


def test_every_engines_workers_are_counted_from_the_place_that_it_is_told() -> None:
    from vllm.distributed.weight_transfer import nccl_common

    source = inspect.getsource(nccl_common.worker_init_process_group)
    assert "rank = worker_rank + init_info.rank_offset" in source
    assert "worker_rank = dp_rank * world_size_per_dp + rank_within_dp" in source
    assert "rank_offset=1" in inspect.getsource(
        __import__("vllm.distributed.weight_transfer.nccl_engine", fromlist=["x"]).NCCLTrainerWeightTransferEngine
    )
