"""`[scale]` + what the machines of a cluster have -> which GPUs engines and ranks get, before anything starts.

    separate    a bundle of `tensor_parallel` GPUs for each engine, one of a GPU for each rank
    colocated   a bundle of `tensor_parallel` GPUs for each engine and its ranks together
    one more bundle, where trainer or engine is in the driver: the GPU on the driver's machine that it computes on

A bundle lies on one machine. There is no Ray in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers import runs_here

PROCESS_BYTES = 200 << 20
"""Of a process's own, when it has loaded its libraries."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the cluster: its address, and all GPUs and bytes of memory that Ray deals out there."""

    address: str
    num_gpus: int
    is_drivers: bool = False
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Bundle:
    """GPUs of one machine, for these engines and ranks; `is_drivers`: for the trainer in the driver."""

    num_gpus: int
    engines: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    is_drivers: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The bundles; none where engines and ranks run on CPUs."""

    bundles: tuple[Bundle, ...]

    @property
    def device(self) -> str:
        """What engines and ranks compute on; each sees its own GPUs alone."""
        return "cuda" if self.bundles else "cpu"

    @property
    def num_gpus(self) -> int:
        """Of all bundles."""
        return sum(bundle.num_gpus for bundle in self.bundles)

    def of_engine(self, number: int) -> int:
        """Return the place of an engine's bundle."""
        return next(place for place, bundle in enumerate(self.bundles) if number in bundle.engines)

    def of_rank(self, number: int) -> int:
        """Return the place of a rank's bundle."""
        return next(place for place, bundle in enumerate(self.bundles) if number in bundle.ranks)

    @property
    def drivers(self) -> int | None:
        """The place of the driver's bundle, None without one."""
        return next((place for place, bundle in enumerate(self.bundles) if bundle.is_drivers), None)


def plan(config: Config, machines: Sequence[Machine]) -> Plan:
    """Deal GPUs where the cluster has any, unless `model.device` is a CPU.

    Raises UserError, in one line, where there are too few: Ray itself would wait for ever.
    """
    device, there = config.model.device, sum(machine.num_gpus for machine in machines)
    if device.startswith("cpu") or (device == "auto" and not there):
        _check_memory(config, machines)
        return Plan(())
    if device not in ("auto", "cuda"):
        raise UserError(
            f'model.device: {device!r} names one card, and [scale] gives each process its own; set it to "cuda"'
        )
    bundles = _bundles(config)
    _check(config, bundles, machines)
    return Plan(bundles)


def asked(config: Config) -> str:
    """What the settings ask for, in words.

    >>> asked(Config.model_validate({"scale": {"engines": 2, "tensor_parallel": 4, "trainer_ranks": 8}}))
    '2 engines of 4 GPUs and 8 trainer ranks'
    """
    scale = config.scale
    engines = f"{scale.engines} engine{'s' if scale.engines > 1 else ''}"
    if scale.tensor_parallel > 1:
        engines += f" of {scale.tensor_parallel} GPUs"
    ranks = f"{scale.trainer_ranks} trainer rank{'s' if scale.trainer_ranks > 1 else ''}"
    if scale.placement == "colocated":
        return f"{engines} that share their GPUs with {ranks}"
    if not scale.trainer_ranks:
        return f"{engines} and the trainer in the driver"
    if scale.engines:
        return f"{engines} and {ranks}"
    return f"{ranks} and the engine in the driver" if runs_here(config.sampler.engine) else ranks


def _bundles(config: Config) -> tuple[Bundle, ...]:
    scale, size = config.scale, config.scale.tensor_parallel
    if scale.placement == "colocated":
        return tuple(
            Bundle(size, (number,), tuple(range(number * size, (number + 1) * size))) for number in range(scale.engines)
        )
    is_in_driver = not scale.trainer_ranks or (not scale.engines and runs_here(config.sampler.engine))
    driver = (Bundle(1, is_drivers=True),) if is_in_driver else ()
    engines = (Bundle(size, engines=(number,)) for number in range(scale.engines))
    ranks = (Bundle(1, ranks=(number,)) for number in range(scale.trainer_ranks))
    return (*driver, *engines, *ranks)


def _check_memory(config: Config, machines: Sequence[Machine]) -> None:
    """Raise UserError where so many processes cannot even start on CPUs; Ray counts no GPUs then, and starts them."""
    scale = config.scale
    number, there = scale.engines * scale.tensor_parallel + scale.trainer_ranks, sum(m.memory for m in machines)
    if all(machine.memory for machine in machines) and number * PROCESS_BYTES > there:
        raise UserError(
            f"[scale] asks for {number:,} processes ({asked(config)}) without GPUs, each of {PROCESS_BYTES >> 20} MiB "
            f"before it loads a model, and the Ray cluster has {there / 2**30:,.1f} GiB for them"
        )


def _check(config: Config, bundles: Sequence[Bundle], machines: Sequence[Machine]) -> None:
    wanted, there = sum(bundle.num_gpus for bundle in bundles), sum(machine.num_gpus for machine in machines)
    if wanted > there:
        raise UserError(f"[scale] asks for {_gpus(wanted)} ({asked(config)}), and the Ray cluster has {_number(there)}")
    if any(bundle.is_drivers for bundle in bundles) and not any(m.is_drivers and m.num_gpus for m in machines):
        what, name = ("engine", "engines") if config.scale.trainer_ranks else ("trainer", "trainer_ranks")
        raise UserError(
            f"[scale]: the {what} runs in the driver, whose machine has no GPU; set scale.{name} = 1, or start "
            "the run on a machine with one"
        )
    if not _fits(bundles, machines):
        sizes = ", ".join(str(machine.num_gpus) for machine in machines)
        raise UserError(
            f"[scale]: {asked(config)} do not fit the machines of the Ray cluster, which have {sizes} GPUs: an "
            "engine's GPUs are on one machine"
        )


def _fits(bundles: Sequence[Bundle], machines: Sequence[Machine]) -> bool:
    """Whether bundles, the driver's and then the largest first, find room; they have two sizes, one of them 1."""
    free = {machine: machine.num_gpus for machine in machines}
    for bundle in sorted(bundles, key=lambda bundle: (not bundle.is_drivers, -bundle.num_gpus)):
        homes = [m for m in machines if free[m] >= bundle.num_gpus and (m.is_drivers or not bundle.is_drivers)]
        if not homes:
            return False
        free[min(homes, key=lambda machine: free[machine])] -= bundle.num_gpus
    return True


def _gpus(number: int) -> str:
    return f"{number} GPU{'s' if number != 1 else ''}"


def _number(number: int) -> str:
    return str(number) if number else "none"
