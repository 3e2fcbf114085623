"""New weights -> a folder that servers see too -> servers that sample with them, and say so.

The whole `state_dict()` is written, tied weights under every name: a server that read a checkpoint without
`lm_head.weight` would keep the old one without a word.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import FileError, UserError, said
from treegrpo_cli.samplers.server_client import FailedError, RefusedError, refused_by

if TYPE_CHECKING:
    import torch

    from treegrpo_cli.samplers.server_client import ServerClient

FILE_BYTES = 1 << 30
"""Of one file of weights, about: so much is held beside the model while it is written."""
TRAINED = "treegrpo"
CACHE_TRIES, CACHE_PAUSE_S = 50, 0.1
DEV_MODE = "VLLM_SERVER_DEV_MODE=1 in its environment, and vLLM 0.32 or newer"


class Labels:
    """What this run calls its weights on servers: no other run's are called so."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(8)

    def label(self, version: int) -> str:
        """Name a version."""
        return f"{TRAINED}-{self._run}-{version}"

    def version_of(self, label: str | None) -> int | None:
        """Return the version where the label is of this run, else None."""
        prefix, _, number = (label or "").rpartition("-")
        return int(number) if prefix == f"{TRAINED}-{self._run}" and number.isdecimal() else None

    def is_trained(self, label: str | None) -> bool:
        """Whether weights of this name came from a training run, this one or another."""
        return (label or "").startswith(f"{TRAINED}-")


@dataclass(frozen=True, slots=True)
class FolderUpdate:
    """Weights in a folder of safetensors, until the next ones are written."""

    folder: Path
    policy_version: int
    label: str
    lasts: bool = True


class WeightsFolder:
    """The folder below `parent` that has the current weights, and nothing once it is closed.

    Where `is_own`, no other run writes below `parent`, and what a killed one left there is removed.
    """

    def __init__(self, parent: Path, labels: Labels, *, is_own: bool) -> None:
        self._parent, self._labels, self._is_own = parent.absolute(), labels, is_own
        self.current: Path | None = None

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> FolderUpdate:
        """Write all weights, in the place of the last ones: whole under their name, or not at all.

        Raises FileError where they cannot be written.
        """
        label = self._labels.label(version)
        folder, partial = self._parent / label, self._parent / f"{label}.partial"
        self.clear()
        for left in self._parent.glob(f"{TRAINED}-*") if self._is_own else ():
            shutil.rmtree(left, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write_weights(weights, partial)
            partial.rename(folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise FileError(partial, f"the servers' weights cannot be written: {said(error)}") from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.current = folder
        return FolderUpdate(folder, version, label)

    def clear(self) -> None:
        """Remove what is there of this run."""
        current, self.current = self.current, None
        if current is not None:
            shutil.rmtree(current, ignore_errors=True)
            with suppress(OSError):  # others are in it
                self._parent.rmdir()


def write_weights(weights: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    """Write tensors as they come, a file for about each `FILE_BYTES` of them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held: dict[str, torch.Tensor] = {}
    size = number = 0

    def write() -> None:
        nonlocal size, number
        number += 1
        try:
            save_file(held, folder / f"model-{number:05d}.safetensors")
        except SafetensorError as error:
            raise OSError(said(error)) from error
        held.clear()
        size = 0

    for name, tensor in weights:
        own = tensor.detach().to("cpu", copy=True).contiguous()  # a tied one is stored under each of its names
        held[name] = own
        size += own.nbytes
        if size >= FILE_BYTES:
            write()
    if held:
        write()


async def read_label(client: ServerClient, **limits: Any) -> str:
    """Return what a server calls its weights. Raises UserError where it has no routes for weights."""
    try:
        answer = await client.get("/weight_info", **limits)
    except (RefusedError, FailedError) as error:
        if refused_by(error, (403, 404, 405)):
            raise UserError(
                f"{client.name}: cannot be trained: it takes no weights; start it with {DEV_MODE}"
            ) from None
        raise
    label = answer.get("weight_version") if isinstance(answer, dict) else None
    if not isinstance(label, str):
        raise client.wrong("/weight_info", "it names no weights")
    return label


async def set_going(client: ServerClient) -> None:
    """Resume a server that somebody paused and left: a run that was killed in an update, say."""
    await client.post("/resume")


async def load_weights(client: ServerClient, update: FolderUpdate, setting: str) -> None:
    """Have a server load a folder's weights and take their label, while no turn runs and behind empty caches.

    Behind the first, nothing is asked twice: a server that was started again in between must not get the label of
    weights that it has lost. `setting` is `sampler.weights_dir` as it was given. Raises UserError where it cannot read
    the folder.
    """
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(update.folder)}}
    try:
        await client.post("/pause?mode=wait")
        try:
            await client.post("/collective_rpc", body, retries=0)
        except FailedError:
            await client.get("/health")  # whether it is the server itself that has ended
            given = f"{setting!r}" if setting else "not set"
            raise UserError(
                f"{client.name}: could not load weights from {update.folder}; its log says why. sampler.weights_dir "
                f"({given}) must name a folder that it sees under the same path, and may read"
            ) from None
        await _forget_prefixes(client)
        await client.post("/update_weight_version", {"new_version": update.label}, retries=0)
        if (label := await read_label(client, retries=0)) != update.label:
            raise client.wrong("/weight_info", f"its weights are {label!r:.60} behind an update to {update.label!r}")
    finally:
        await client.post("/resume", retries=0)


async def _forget_prefixes(client: ServerClient) -> None:
    """Reset the prefix cache: the old weights made it. It is refused while a turn still ends."""
    for _ in range(CACHE_TRIES):
        answer = await client.post("/reset_prefix_cache", retries=0)
        if isinstance(answer, dict) and answer.get("success") is True:
            return
        await asyncio.sleep(CACHE_PAUSE_S)
    raise UserError(f"{client.name}: kept its prefix cache: does somebody else sample there?")
