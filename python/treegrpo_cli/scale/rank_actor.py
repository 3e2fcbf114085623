"""One trainer rank, in a process of its own: what `rank_actors` asks of it.

Every rank gets the same calls in the same order; what it keeps and computes of them is its own. Rank 0 speaks for all.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treegrpo_cli.models.chunks import CHUNK_BYTES, Chunk
from treegrpo_cli.models.devices import choose_device
from treegrpo_cli.models.weights import Adapter
from treegrpo_cli.run.local_trainer import LocalTrainer
from treegrpo_cli.samplers.vllm_engine import prepare_import
from treegrpo_cli.scale.cluster import Environment, enter_environment
from treegrpo_cli.train.arriving import check_merged
from treegrpo_cli.train.path_errors import PathFailedError
from treegrpo_cli.train.ranks import join, open_store
from treegrpo_cli.train.self_check import Disagreement

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.scale.columns import StepColumns
    from treegrpo_cli.scale.transfer import Sender

LOOPBACK = "127.0.0.1"

Refusals = dict[str, Disagreement]
"""What was found against attention paths, by their names."""


class PathRefusedError(Exception):
    """An attention path failed in a step: ranks that wait for this one must be started again without it."""

    def __init__(self, refusals: Refusals) -> None:
        self.refusals = refusals
        super().__init__(refusals)


@dataclass(frozen=True, slots=True)
class Opened:
    """What the driver knows of a trainer that has been loaded. `shapes`: of all weights that an engine takes."""

    dtype: str
    adapter: Adapter | None
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update leaves: its metrics, and the seconds that laying out took."""

    metrics: dict[str, float | str]
    packing_s: float


class Rank:
    """Rank `number` of `size`; made by `open`, which all ranks call at once."""

    def __init__(self, number: int, size: int, environment: Environment, log_path: Path | None) -> None:
        enter_environment(environment)
        _write_to(log_path)
        self._number, self._size = number, size
        self._lines: list[str] = []
        self._store: Any = None
        self._weights: Iterator[tuple[str, torch.Tensor]] = iter(())
        self._sender: Sender | None = None
        self._trainer: LocalTrainer

    def meeting_place(self) -> tuple[str, int]:
        """Of rank 0: open a store on this machine, at a port that the system chooses; return where it is."""
        import ray

        host = ray.util.get_node_ip_address()
        self._store = open_store(host)
        return host, int(self._store.port)

    def node(self) -> str:
        """The machine that it is on, as Ray names it."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def open(self, place: tuple[str, int], turns: list[tuple[int, int]], config: Config, tokenizer: Any) -> None:
        """Meet the others and load the policy; `turns`: each rank's place among those of its machine, of how many."""
        if place[0] == LOOPBACK and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        device = choose_device(config.model.device)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        turn, of = turns[self._number]
        ranks = join(self._number, self._size, self._store or place, device, turn=turn, turns=of)
        self._trainer = LocalTrainer(config, self._lines.append, tokenizer, ranks=ranks)

    def opening(self) -> Opened:
        """What there is."""
        weights = self._trainer.state_dict_for_sampler()
        shapes = {name: tuple(shape) for name, shape in weights.shapes.items()}
        return Opened(self._trainer.dtype, self.adapter(), shapes)

    def take_lines(self) -> list[str]:
        """What the trainer said since the last call."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def check_merged(self) -> None:
        """Raise UserError where rounding keeps too little of adapters that are merged."""
        check_merged(self._trainer.policy, self._trainer.config)

    def refuse(self, refusals: Refusals) -> None:
        """Take these paths no more."""
        self._trainer.paths.checks.found.update(refusals)

    def update(self, step: StepColumns) -> Updated:
        """Train on a step. Raises UserError, and PathRefusedError where a path failed on this rank."""
        try:
            metrics = self._trainer.update(*step.build(), step.prompts)
        except PathFailedError as error:
            path = self._trainer.paths.path.name
            self._trainer.paths.give_up(str(error))
            raise PathRefusedError({path: self._trainer.paths.checks.found[path]}) from None
        return Updated(metrics, self._trainer.packing_s)

    def is_whole(self) -> bool:
        """Whether the weights are those of a whole step."""
        return self._trainer.is_whole

    def adapter(self) -> Adapter | None:
        """The adapter, whole and on the host."""
        adapter = self._trainer.policy.adapter()
        if adapter is None or self._number:
            return None
        layers = {name: (down.detach().cpu(), up.detach().cpu()) for name, (down, up) in adapter.layers.items()}
        return Adapter(adapter.rank, adapter.alpha, layers)

    def empty_cache(self) -> None:
        """Give the card back what no tensor holds any more: an engine that shares it wakes next."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def address(self) -> tuple[str, int]:
        """This machine, and a port that is free on it."""
        import ray

        with socket.socket() as listening:
            listening.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(listening.getsockname()[1])

    def send_to_cards(
        self, backend: str, engines: list[Any], tensor_parallel: int, address: tuple[str, int], policy_version: int
    ) -> None:
        """Send all weights to engines by vLLM's weight-transfer API, together with the other ranks."""
        if self._sender is None:
            prepare_import()
            from treegrpo_cli.scale.transfer import PolicySource, Sender

            source = PolicySource(self._trainer.state_dict_for_sampler())
            self._sender = Sender(backend, self._number, source, tensor_parallel)
        self._sender.send(engines, address, policy_version)

    def begin_weights(self) -> None:
        """Begin a pass over the weights."""
        self._weights = iter(self._trainer.state_dict_for_sampler())

    def next_chunk(self) -> tuple[bool, Chunk | None]:
        """Gather the next weights, of about 64 MiB: whether there are any, and rank 0 has them.

        Every rank reads as far as the others, which gather with it.
        """
        held: list[tuple[str, torch.Tensor]] = []
        size = 0
        for name, tensor in self._weights:
            size += tensor.nbytes
            if self._number == 0:
                held.append((name, tensor.cpu()))
            if size >= CHUNK_BYTES:
                break
        return size > 0, Chunk.of(held) if held else None

    def save(self, output_dir: Path, state: dict[str, Any]) -> Path:
        """Write this rank's share of a checkpoint."""
        return self._trainer.save(output_dir, state)

    def load(self, path: Path) -> tuple[int, dict[str, Any]]:
        """Go on from a checkpoint; return its step and the run's own state."""
        state = self._trainer.load(path)
        return self._trainer.step, state


def _write_to(log_path: Path | None) -> None:
    """Let what libraries print go to a file of the run, where this machine has its folder."""
    if log_path is None or not log_path.parent.is_dir():
        return
    with log_path.open("ab") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
