"""Metrics of a step -> `metrics.jsonl` and the loggers that the user asked for.

Names are TRL's where the thing is the same; ours stand under `tree/`. Lengths are in tokens, times in
seconds, log-probabilities, KL and entropy in nats.

    reward, reward_std, frac_reward_zero_std        mean, deviation in a prompt, share of dead prompts
    completions/mean_length, /clipped_ratio         generated tokens of a leaf, share that ran into the limit
    loss, grad_norm                                 mean over the step's optimizer steps
    learning_rate                                   of the last of them
    kl, entropy                                     k3 against the reference; of the sampled distribution
    clip_ratio/low_mean, /high_mean                 share of tokens beyond the clip on either side
    sampling/sampling_logp_difference/mean, /max    |policy - sampling| before any update: engine mismatch
    num_tokens, step_time                           tokens trained on so far, duration of the step
    tree/num_nodes, tree/num_leaves, tree/depth_mean, tree/sharing_ratio, tree/frac_zero_advantage_nodes,
    tree/intra_reward_std, tree/prefix_cache_hit_ratio, and signal by depth
    tree/computed_tokens, tree/chain_tokens         tokens that an epoch forwards, and those of one row a leaf
    tree/attention_path, tree/self_check            how (see planner), and how far from chains at the first step
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import orjson

from treegrpo_cli.errors import FileError, UserError

Metrics = Mapping[str, float | str]


class Logger(Protocol):
    """A place beside `metrics.jsonl` where metrics go."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of one step."""
        ...

    def close(self) -> None:
        """Write what is pending."""
        ...


class MetricsLog:
    """Writes one JSON object a step to `output_dir/metrics.jsonl`, and the same to the loggers.

    `resumed_step` is the step that a resumed run goes on from (None: a new run). Raises FileError where the file
    cannot be written, UserError for a logger whose package is missing.
    """

    def __init__(
        self,
        output_dir: str | Path,
        report_to: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        resumed_step: int | None = None,
    ) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self._loggers = [make_logger(name, self.path.parent, config or {}, resumed_step) for name in report_to]
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115  open as long as the run
        except OSError as error:
            raise FileError(self.path, error.strerror or str(error)) from None

    def log(self, step: int, metrics: Metrics) -> None:
        """Append a step's metrics, flushed. A value that is not finite becomes null."""
        try:
            self._file.write(orjson.dumps({"step": step, **metrics}, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        except OSError as error:
            raise FileError(self.path, error.strerror or str(error)) from None
        for logger in self._loggers:
            logger.log(step, metrics)

    def close(self) -> None:
        """Close file and loggers."""
        self._file.close()
        for logger in self._loggers:
            logger.close()


def make_logger(name: str, output_dir: Path, config: Mapping[str, Any], resumed_step: int | None = None) -> Logger:
    """Return the logger of this name; UserError says what to install where its package is missing."""
    if name == "tensorboard":
        return TensorBoardLogger(output_dir, resumed_step)
    return RunLogger(_import_logger(name), output_dir, config)


class TensorBoardLogger:
    """Event files under `output_dir/tensorboard`; on resume, events behind the resumed step are hidden."""

    def __init__(self, output_dir: Path, resumed_step: int | None) -> None:
        _import_logger("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=purge_step)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if not isinstance(value, str):  # scalars are all that it takes
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class RunLogger:
    """A run of wandb or of trackio, which speaks wandb's language; named like the output directory."""

    def __init__(self, package: ModuleType, output_dir: Path, config: Mapping[str, Any]) -> None:
        self._package = package
        package.init(project="treegrpo", name=output_dir.resolve().name, config=dict(config))

    def log(self, step: int, metrics: Metrics) -> None:
        self._package.log(dict(metrics), step=step)

    def close(self) -> None:
        self._package.finish()


def _import_logger(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"report_to: {name} is not installed; pip install {name}") from None
