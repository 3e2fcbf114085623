"""What cannot run without cards calls vLLM by names and signatures that the installed version has."""

import dataclasses
import inspect
from typing import Any

import pytest

pytest.importorskip("vllm")


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


@pytest.fixture(autouse=True)
def installed(vllm_on_cpu: None) -> None:
    """Needs vLLM."""


def test_the_trainers_side_takes_what_we_give_it() -> None:
    from treegrpo_cli.scale.transfer import INFOS, Engines, ipc_info, nccl_info
    from vllm.distributed.weight_transfer import base, factory, ipc_engine, nccl_engine

    assert {"master_address", "master_port", "world_size", "packed", "packed_buffer_size_bytes", "rank"} <= fields(
        nccl_engine.NCCLTrainerInitInfo
    )
    assert {"packed", "packed_buffer_size_bytes", "rank"} <= fields(ipc_engine.IPCTrainerInitInfo)
    assert (nccl_info(0, ("h", 1), 3).backend, ipc_info(1, ("h", 1), 3).backend) == ("nccl", "ipc")
    assert not ipc_info(1, ("h", 1), 3).is_sender
    trainer = factory.WeightTransferTrainerFactory
    assert parameters(trainer.trainer_init) == ["init_info", "client", "source"]
    assert set(INFOS) <= set(trainer._registry)
    assert set(INFOS) <= set(factory.WeightTransferEngineFactory._registry)
    for name in ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"):
        assert parameters(getattr(Engines, name)) == parameters(getattr(base.VLLMWeightSyncClient, name))
    assert parameters(base.TrainerWeightTransferEngine.send_weights) == []
    assert parameters(base.TrainerWeightTransferEngine.shutdown) == []


def test_the_worker_has_the_calls_that_we_make_of_it() -> None:
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.worker.gpu_worker import Worker

    assert parameters(Worker.init_weight_transfer_engine) == ["init_info"]
    assert parameters(Worker.update_weights) == ["update_info"]
    for name in ("start_weight_update", "finish_weight_update", "shutdown_weight_transfer_engine"):
        assert parameters(getattr(Worker, name)) == []
    assert parameters(LLMEngine.collective_rpc)[:1] == ["method"]
    assert parameters(LLMEngine.set_weight_version) == ["weight_version"]
    assert parameters(LLMEngine.sleep)[:1] == ["level"]
    assert parameters(LLMEngine.wake_up) == ["tags"]


def test_every_engines_workers_are_counted_from_the_place_that_it_is_told() -> None:
    from vllm.distributed.weight_transfer import nccl_common

    source = inspect.getsource(nccl_common.worker_init_process_group)
    assert "rank = worker_rank + init_info.rank_offset" in source
    assert "worker_rank = dp_rank * world_size_per_dp + rank_within_dp" in source
    assert "rank_offset" in fields(nccl_common.NCCLWeightTransferInitInfo)
    assert "rank_offset=1" in inspect.getsource(
        __import__("vllm.distributed.weight_transfer.nccl_engine", fromlist=["x"]).NCCLTrainerWeightTransferEngine
    )


def test_an_engine_is_started_with_a_backend_and_workers() -> None:
    from vllm import EngineArgs
    from vllm.config import WeightTransferConfig

    assert {"weight_transfer_config", "tensor_parallel_size", "distributed_executor_backend", "device_ids"} <= fields(
        EngineArgs
    )
    assert {"backend"} <= fields(WeightTransferConfig)
