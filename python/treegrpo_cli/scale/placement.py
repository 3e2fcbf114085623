"""`[scale]` + a Ray cluster -> where each engine and each rank lives, as options of its actor.

On GPUs the bundles of the plan are one placement group of Ray, reserved at once or not at all. Where engine and rank
share a GPU, the rank holds it in Ray's books and the engine asks for none: it is told by `CUDA_VISIBLE_DEVICES` which
ones it has. That an engine sleeps while ranks train is up to `Session`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treegrpo_cli.config import Config
from treegrpo_cli.errors import UserError
from treegrpo_cli.scale.plan import Machine, Plan, asked, plan

RESERVE_S = 60.0
"""Seconds that GPUs which others use may take to become free."""
ON_THIS_MACHINE = 0.001
"""Of the resource that Ray gives each machine in the name of its address."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Found:
    """What a look into a bundle found: the machine, the names of its GPUs there, and which paths are not there."""

    address: str
    gpus: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class Placement:
    """Where everything lives; `device` is what engines and ranks compute on, `cuda` or `cpu`."""

    plan: Plan
    group: Any = None
    found: Sequence[Found] = ()
    num_machines: int = 1

    @property
    def device(self) -> str:
        """What engines and ranks compute on: each sees its own GPUs alone."""
        return self.plan.device

    @property
    def driver_device(self) -> str | None:
        """The GPU that the driver computes on where a part of the run is in it, as torch names it there; else None."""
        place = self.plan.drivers
        return None if place is None else f"cuda:{visible_index(self.found[place].gpus[0], os.environ.get(VISIBLE))}"

    def engine(self, number: int) -> dict[str, Any]:
        """Return the options of an engine's actor."""
        if self.device == "cpu":
            return self._on_cpu()
        place = self.plan.of_engine(number)
        bundle = self.plan.bundles[place]
        if not bundle.ranks:
            return self._in_bundle(place, bundle.num_gpus)
        told = {VISIBLE: ",".join(self.found[place].gpus)}
        return self._in_bundle(place, 0) | {"runtime_env": {"env_vars": told}}

    def rank(self, number: int) -> dict[str, Any]:
        """Return the options of a rank's actor."""
        return self._on_cpu() if self.device == "cpu" else self._in_bundle(self.plan.of_rank(number), 1)

    def close(self) -> None:
        """Give the GPUs back; what still runs there ends."""
        if self.group is not None:
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(self.group)
            self.group = None

    def _on_cpu(self) -> dict[str, Any]:
        return {"num_cpus": 0, "num_gpus": 0} | ({"scheduling_strategy": "SPREAD"} if self.num_machines > 1 else {})

    def _in_bundle(self, place: int, num_gpus: int) -> dict[str, Any]:
        return {"num_cpus": 0, "num_gpus": num_gpus, "scheduling_strategy": _strategy(self.group, place)}


def place(config: Config, say: Callable[[str], None] = lambda _: None, *, reserve_s: float = RESERVE_S) -> Placement:
    """Reserve what `[scale]` asks for on the cluster that this process is connected to, and look at every machine.

    Raises UserError, in one line, where the cluster has too little, others hold it, or a machine does not see
    `model.path`.
    """
    machines = machines_of_cluster()
    planned = plan(config, machines)
    group = _reserve(planned, machines, config, reserve_s) if planned.bundles else None
    placement = Placement(planned, group, num_machines=len(machines))
    try:
        paths = _shared_paths(config) if len(machines) > 1 else ()
        placement.found = _look(placement, machines, paths)
        check_paths(placement.found)
    except BaseException:
        placement.close()
        raise
    if group is not None:
        homes = {found.address for found in placement.found}
        say(f"{asked(config)}: {planned.num_gpus} GPUs on {len(homes)} machine{'s' if len(homes) > 1 else ''}")
    return placement


def machines_of_cluster() -> list[Machine]:
    """Return the machines that Ray counts as alive."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return [
        Machine(
            node["NodeManagerAddress"],
            int(node["Resources"].get("GPU", 0)),
            node["NodeID"] == own,
            int(node["Resources"].get("memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_paths(found: Sequence[Found]) -> None:
    """Raise UserError where a machine does not see the model."""
    without = {one.address: one.missing[0] for one in found if one.missing}
    if without:
        raise UserError(
            f"model.path: {next(iter(without.values()))} is not on {', '.join(sorted(without))}; engines and ranks "
            "read it there: put it where all machines see it, or at the same place on each"
        )


def visible_index(gpu: str, visible: str | None) -> int:
    """Return the number by which a process that sees these GPUs knows one of them.

    >>> visible_index("3", None), visible_index("3", "1,3"), visible_index("GPU-7f", "GPU-2a, GPU-7f")
    (3, 1, 1)
    """
    if not visible:
        return int(gpu)
    names = [name.strip() for name in visible.split(",")]
    if gpu not in names:
        raise UserError(
            f"{VISIBLE} is {visible} in this process, and Ray's on this machine has GPU {gpu}: set it alike"
        )
    return names.index(gpu)


def _reserve(planned: Plan, machines: Sequence[Machine], config: Config, reserve_s: float) -> Any:
    """Reserve all bundles at once. Raises UserError where others hold them."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    own = next((machine.address for machine in machines if machine.is_drivers), "")
    bundles = [
        {"GPU": float(bundle.num_gpus)} | ({f"node:{own}": ON_THIS_MACHINE} if bundle.is_drivers else {})
        for bundle in planned.bundles
    ]
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(reserve_s):
        remove_placement_group(group)
        free = ray.available_resources().get("GPU", 0.0)
        raise UserError(
            f"[scale] asks for {planned.num_gpus} GPUs ({asked(config)}), and {free:g} of the Ray cluster's "
            f"{ray.cluster_resources().get('GPU', 0.0):g} are free; others hold the rest"
        )
    return group


def _look(placement: Placement, machines: Sequence[Machine], paths: Sequence[str]) -> list[Found]:
    """Look into every bundle, on CPUs at every machine of several; a cluster of one machine has nothing to tell."""
    import ray

    look = ray.remote(look_around)
    if placement.group is not None:
        asked_for = [
            look.options(num_cpus=0, num_gpus=bundle.num_gpus, scheduling_strategy=_strategy(placement.group, place))
            for place, bundle in enumerate(placement.plan.bundles)
        ]
    elif len(machines) > 1:
        asked_for = [
            look.options(num_cpus=0, resources={f"node:{machine.address}": ON_THIS_MACHINE}) for machine in machines
        ]
    else:
        return []
    return list(ray.get([one.remote(list(paths)) for one in asked_for]))


def look_around(paths: Sequence[str]) -> Found:
    """Say, in a process of the cluster, where it is and what it sees."""
    import ray

    gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    missing = tuple(path for path in paths if not Path(path).exists())
    return Found(ray.util.get_node_ip_address(), tuple(str(gpu) for gpu in gpus), missing)


def _shared_paths(config: Config) -> list[str]:
    """What every machine reads: the model."""
    folder = Path(config.model.path)
    return [str(folder.absolute())] if folder.is_dir() else []


def _strategy(group: Any, place: int) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=place)
