"""GPUs are dealt before anything starts, and what cannot be is said in one line."""

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.parts import Parts
from treegrpo_cli.scale.parts import RayParts
from treegrpo_cli.scale.placement import Found, Placement, check_paths
from treegrpo_cli.scale.plan import Bundle, Machine, plan


def settings(device: str = "auto", **scale: object) -> Config:
    return Config.model_validate({"model": {"device": device}, "scale": scale})


def machines(*num_gpus: int) -> list[Machine]:
    """The first one is the driver's."""
    return [Machine(f"10.0.0.{place}", number, place == 0) for place, number in enumerate(num_gpus)]


def test_separate_engines_and_ranks_have_gpus_of_their_own() -> None:
    dealt = plan(settings(engines=2, tensor_parallel=2, trainer_ranks=4), machines(8))
    assert dealt.bundles == (
        Bundle(2, engines=(0,)),
        Bundle(2, engines=(1,)),
        Bundle(1, ranks=(0,)),
        Bundle(1, ranks=(1,)),
        Bundle(1, ranks=(2,)),
        Bundle(1, ranks=(3,)),
    )
    assert (dealt.device, dealt.num_gpus, dealt.drivers) == ("cuda", 8, None)
    assert [dealt.of_engine(number) for number in range(2)] == [0, 1]
    assert [dealt.of_rank(number) for number in range(4)] == [2, 3, 4, 5]


def test_a_colocated_engine_shares_its_gpus_with_as_many_ranks() -> None:
    wanted = settings(engines=2, tensor_parallel=2, trainer_ranks=4, placement="colocated")
    dealt = plan(wanted, machines(4))
    assert dealt.bundles == (Bundle(2, engines=(0,), ranks=(0, 1)), Bundle(2, engines=(1,), ranks=(2, 3)))
    assert [dealt.of_rank(number) for number in range(4)] == [0, 0, 1, 1]


@pytest.mark.parametrize("scale", [{"engines": 3}, {"trainer_ranks": 3}])
def test_what_stays_in_the_driver_has_a_gpu_of_the_drivers_machine(scale: dict[str, int]) -> None:
    dealt = plan(settings(**scale), machines(4))
    assert dealt.bundles[0] == Bundle(1, is_drivers=True)
    assert dealt.drivers == 0
    assert dealt.num_gpus == 4


def test_beside_servers_the_driver_needs_no_gpu() -> None:
    table = {"scale": {"trainer_ranks": 3}, "sampler": {"engine": "server", "urls": ["http://a"]}}
    dealt = plan(Config.model_validate(table), machines(3))
    assert dealt.bundles == tuple(Bundle(1, ranks=(number,)) for number in range(3))
    assert dealt.drivers is None


@pytest.mark.parametrize("scale", [{"engines": 3}, {"trainer_ranks": 3}])
def test_what_stays_in_the_driver_is_opened_on_its_own_gpu(
    scale: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    wanted, opened = settings(**scale), list[str]()
    monkeypatch.setattr(Parts, "open_trainer", lambda _, config, *rest: opened.append(config.model.device))
    monkeypatch.setattr(Parts, "open_sampler", lambda _, config, *rest: opened.append(config.model.device))
    parts = RayParts()
    parts._placement = Placement(plan(wanted, machines(4)), found=[Found("a", ("7",))])
    if "engines" in scale:
        parts.open_trainer(wanted, print, None)
    else:
        parts.open_sampler(wanted, None, print)
    assert opened == ["cuda:1"]


@pytest.mark.parametrize(("device", "gpus"), [("auto", 0), ("cpu", 8), ("cpu:0", 8)])
def test_on_cpus_nothing_is_reserved(device: str, gpus: int) -> None:
    dealt = plan(settings(device, engines=2, trainer_ranks=2), machines(gpus))
    assert dealt.bundles == ()
    assert dealt.device == "cpu"
    assert Placement(dealt).engine(1) == Placement(dealt).rank(0) == {"num_cpus": 0, "num_gpus": 0}
    assert Placement(dealt, num_machines=2).rank(0)["scheduling_strategy"] == "SPREAD"
    assert Placement(dealt).driver_device is None


def test_more_processes_than_memory_holds_are_refused_on_cpus() -> None:
    here = [Machine("10.0.0.1", 0, is_drivers=True, memory=8 << 30), Machine("10.0.0.2", 0, memory=8 << 30)]
    assert plan(settings(engines=40, trainer_ranks=41), here).device == "cpu"
    with pytest.raises(
        UserError, match=r"^\[scale\] asks for 82 processes .* each of 200 MiB .* has 16\.0 GiB for them$"
    ):
        plan(settings(engines=41, trainer_ranks=41), here)


@pytest.mark.parametrize(
    ("scale", "gpus", "said"),
    [
        (
            {"engines": 2, "trainer_ranks": 2},
            (3,),
            "[scale] asks for 4 GPUs (2 engines and 2 trainer ranks), and the Ray cluster has 3",
        ),
        (
            {"engines": 4},
            (4,),
            "[scale] asks for 5 GPUs (4 engines and the trainer in the driver), and the Ray cluster has 4",
        ),
        (
            {"engines": 1, "tensor_parallel": 4, "trainer_ranks": 4, "placement": "colocated"},
            (2, 2),
            "[scale]: 1 engine of 4 GPUs that share their GPUs with 4 trainer ranks do not fit the machines of the Ray "
            "cluster, which have 2, 2 GPUs: an engine's GPUs are on one machine",
        ),
        (
            {"engines": 1, "tensor_parallel": 4, "trainer_ranks": 2},
            (3, 3),
            "[scale]: 1 engine of 4 GPUs and 2 trainer ranks do not fit the machines of the Ray cluster, which have "
            "3, 3 GPUs: an engine's GPUs are on one machine",
        ),
        (
            {"engines": 2},
            (0, 8),
            "[scale]: the trainer runs in the driver, whose machine has no GPU; set scale.trainer_ranks = 1, or start "
            "the run on a machine with one",
        ),
    ],
)
def test_too_few_gpus_are_said_in_one_line(scale: dict[str, object], gpus: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError) as error:
        plan(settings("cuda" if not gpus[0] else "auto", **scale), machines(*gpus))
    assert str(error.value) == said


def test_a_cluster_without_gpus_is_no_place_for_cuda() -> None:
    with pytest.raises(UserError, match=r"asks for 2 GPUs .* and the Ray cluster has none$"):
        plan(settings("cuda", engines=1, trainer_ranks=1), machines(0, 0))


def test_a_card_by_its_number_is_refused() -> None:
    with pytest.raises(UserError, match="'cuda:1' names one card"):
        plan(settings("cuda:1", engines=1), machines(4))


def test_engines_of_several_gpus_are_placed_before_ranks_fill_the_machines() -> None:
    dealt = plan(settings(engines=3, tensor_parallel=4, trainer_ranks=4), machines(8, 8))
    assert dealt.num_gpus == 16


def test_a_machine_that_does_not_see_the_model_is_named() -> None:
    check_paths([Found("10.0.0.1"), Found("10.0.0.2")])
    with pytest.raises(UserError) as error:
        check_paths(
            [Found("10.0.0.1"), Found("10.0.0.3", missing=("/m/qwen",)), Found("10.0.0.2", missing=("/m/qwen",))]
        )
    assert str(error.value) == (
        "model.path: /m/qwen is not on 10.0.0.2, 10.0.0.3; engines and ranks read it there: put it where all machines "
        "see it, or at the same place on each"
    )
