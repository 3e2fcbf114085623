"""The register of engines: what one says of itself before it starts, and how it is started.

An engine is an object that registers itself under the name by which `sampler.engine` asks for it, in a file of
`samplers/engines/` that has the same name. The settings know engines by these files' names, the rest by these methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from treegrpo_cli.config import SamplerConfig
    from treegrpo_cli.models.weights import Adapter
    from treegrpo_cli.samplers.base import Sampler, Trained


@dataclass(frozen=True, slots=True)
class Start:
    """What an engine is started with, as `make_sampler` has it; `dtype` and `device` are resolved."""

    model_path: str
    config: SamplerConfig
    dtype: str
    device: str
    max_model_len: int
    seed: int
    log_path: Path | None
    say: Callable[[str], None]
    trained: Trained | None
    tensor_parallel: int = 1

    @property
    def adapter_beside(self) -> Adapter | None:
        """The adapter that is to stand beside the engine's weights: by `auto`, where merging would round it away."""
        wanted = self.config.lora
        if self.trained is None or wanted == "merged" or (wanted == "auto" and self.dtype == "float32"):
            return None
        return self.trained.adapter


class Engine(ABC):
    """One kind of engine. It holds no state, and its file imports nothing that the engine needs."""

    name: ClassVar[str]
    preference: ClassVar[int] = 0
    """Where `sampler.engine = "auto"` chooses: the highest that can run; 0 is never chosen."""
    is_here: ClassVar[bool] = True
    """Whether its weights and caches take memory of our device."""

    def why_not(self, device: str) -> str | None:
        """Say why it cannot run on a device, and what to install; None where it can."""
        return None

    def why_no_sleep(self, device: str) -> str | None:
        """Say why it cannot give memory back there; None where it can. So below."""
        return "sampler.sleep: only vLLM gives memory back; set sampler.sleep = false"

    def why_no_distinct(self, device: str) -> str | None:
        """Say why it cannot draw siblings that differ."""
        return None

    def why_no_entropies(self) -> str | None:
        """Say why it cannot tell the entropies of what it draws from."""
        return None

    def why_not_parallel(self) -> str | None:
        """Say why it cannot spread a model over several processes."""
        return "scale.tensor_parallel: only vLLM spreads a model over GPUs; set scale.tensor_parallel = 1"

    def why_no_adapter(self) -> str | None:
        """Say why adapters cannot stand beside its weights, where that is known before it starts."""
        return None

    @abstractmethod
    def start(self, given: Start) -> Sampler:
        """Start it. Raises UserError where it cannot do what is asked of it."""


_engines: dict[str, Engine] = {}
Kind = TypeVar("Kind", bound=type[Engine])


def register(kind: Kind) -> Kind:
    """Offer an engine under its name."""
    _engines[kind.name] = kind()
    return kind


def named(name: str) -> Engine:
    """Return the engine of a name; its file is read now."""
    import_module(f"treegrpo_cli.samplers.engines.{name}")
    return _engines[name]


def names() -> tuple[str, ...]:
    """Return the names of all engines, in alphabetical order."""
    from treegrpo_cli.config.sections.sampler import ENGINES

    return ENGINES
