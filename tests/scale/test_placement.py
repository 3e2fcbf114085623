"""On a Ray with GPUs on paper: actors get the GPUs of the plan, chunks reach them, and nothing waits for ever."""

import gc
import os
import tempfile
import warnings
from collections.abc import Iterator

import pytest
import torch
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.scale.placement import VISIBLE, place
from treegrpo_cli.scale.weights import publish, send

from tests.scale_parts import Part

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One machine with four GPUs that are not there."""
    folder = tempfile.mkdtemp(prefix="tg-", dir="/tmp")
    given = {
        VISIBLE: "4,5,6,7",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    ray.init(
        "local",
        num_cpus=1,
        num_gpus=4,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    with warnings.catch_warnings():  # Ray leaves its processes to the collector
        warnings.simplefilter("ignore")
        ray.shutdown()
        gc.collect()
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


def settings(model_path: str = "", **scale: object) -> Config:
    return Config.model_validate({"model": {"path": model_path}, "scale": scale})


def test_colocated_ranks_and_their_engine_see_the_same_gpus_and_chunks_reach_it() -> None:
    said: list[str] = []
    wanted = settings(engines=1, tensor_parallel=2, trainer_ranks=2, placement="colocated")
    placement = place(wanted, said.append)
    assert said == ["1 engine of 2 GPUs that share their GPUs with 2 trainer ranks: 2 GPUs on 1 machine"]
    actor = ray.remote(Part)
    ranks = [actor.options(**placement.rank(number)).remote() for number in range(2)]
    engine = actor.options(**placement.engine(0)).remote()
    seen = ray.get([rank.visible.remote() for rank in ranks], timeout=100)
    assert sorted(seen) == sorted(ray.get(engine.visible.remote(), timeout=100).split(","))
    assert len(set(seen)) == 2

    generator = torch.Generator().manual_seed(0)
    weights = {str(number): torch.randn(256, 256, generator=generator).bfloat16() for number in range(12)}
    sums = {name: float(tensor.float().sum()) for name, tensor in weights.items()}
    send(publish(weights.items(), 1, lasts=False, chunk_bytes=300_000), engine)
    assert ray.get(engine.taken.remote()) == (1, sums)
    lasting = publish(weights.items(), 2, chunk_bytes=300_000)
    for tensor in weights.values():
        tensor.zero_()  # the trainer goes on, and an engine comes back later
    send(lasting, engine)
    assert ray.get(engine.taken.remote()) == (2, sums)

    with pytest.raises(UserError) as error:
        place(settings(engines=2, trainer_ranks=1), reserve_s=0.1)
    assert str(error.value) == (
        "[scale] asks for 3 GPUs (2 engines and 1 trainer rank), and 2 of the Ray cluster's 4 are free; others hold "
        "the rest"
    )
    placement.close()


def test_the_trainer_in_the_driver_has_a_gpu_that_no_engine_sees() -> None:
    placement = place(settings(engines=1))
    engine = ray.remote(Part).options(**placement.engine(0)).remote()
    seen = ray.get(engine.visible.remote(), timeout=100)
    assert seen in ("4", "5", "6", "7")
    assert placement.driver_device in {f"cuda:{number}" for number in range(4)} - {f"cuda:{int(seen) - 4}"}
    placement.close()


def test_more_gpus_than_there_are_is_said_at_once() -> None:
    with pytest.raises(
        UserError, match=r"asks for 8 GPUs \(4 engines and 4 trainer ranks\), and the Ray cluster has 4$"
    ):
        place(settings(engines=4, trainer_ranks=4))
