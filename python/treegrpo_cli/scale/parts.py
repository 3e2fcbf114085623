"""`[scale]` -> the parts of a run as Ray actors."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from treegrpo_cli.run.parts import Parts, Say, StepTrainer
from treegrpo_cli.run.preflight import check_ray
from treegrpo_cli.samplers import why_no_vllm
from treegrpo_cli.scale.cluster import open_cluster

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.samplers.base import Sampler, Trained
    from treegrpo_cli.scale.placement import Placement


class RayParts(Parts):
    """Engines and ranks under Ray, which is joined when the first part is opened and left with this context.

    Raises UserError at once where Ray is not installed.
    """

    def __init__(self) -> None:
        check_ray()
        self._stack = ExitStack()
        self._placement: Placement | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open_trainer(self, config: Config, say: Say, tokenizer: Any) -> StepTrainer:
        """Load the policy in `scale.trainer_ranks` ranks; without any, in this process, on the GPU left to it."""
        placement = self._placed(config, say)
        if config.scale.trainer_ranks:
            from treegrpo_cli.scale.trainer import open_ranks
            from treegrpo_cli.scale.ways import way_of

            engine = "transformers" if config.sampler.engine == "auto" and why_no_vllm(placement.device) else ""
            way = way_of(config, placement.device, engine or config.sampler.engine)
            return open_ranks(config, say, tokenizer, placement.rank, way)
        return super().open_trainer(self._on_drivers_gpu(config), say, tokenizer)

    def open_sampler(self, config: Config, log_path: Path | None, say: Say, trained: Trained | None = None) -> Sampler:
        """Start `scale.engines` engines; without any, one in this process, on the GPU left to it, or by address."""
        if not config.scale.engines:
            return super().open_sampler(self._on_drivers_gpu(config), log_path, say, trained)
        from treegrpo_cli.scale.engines import open_engines

        return open_engines(config, self._placed(config, say), log_path, say, trained)

    def _on_drivers_gpu(self, config: Config) -> Config:
        """The settings of a part in this process, where others have GPUs of this machine too."""
        device = None if self._placement is None else self._placement.driver_device
        if device is None:
            return config
        return config.model_copy(update={"model": config.model.model_copy(update={"device": device})})

    def _placed(self, config: Config, say: Say) -> Placement:
        """Where everything lives, on the cluster that is joined when this is first asked."""
        if self._placement is None:
            self._stack.enter_context(open_cluster(config, say))
            from treegrpo_cli.scale.placement import place

            self._placement = place(config, say)
            self._stack.callback(self._placement.close)
        return self._placement
