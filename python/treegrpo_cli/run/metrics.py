"""Metrics of a step -> `metrics.jsonl` and the loggers that the user asked for.

What each name means stands in `metric_names.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli.errors import FileError, said
from treegrpo_cli.run.loggers import Metrics, make_logger
from treegrpo_cli.run.samples import Sample


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
            raise FileError(self.path, said(error)) from None

    def log(self, step: int, metrics: Metrics) -> None:
        """Append a step's metrics, flushed. A value that is not finite becomes null."""
        try:
            self._file.write(orjson.dumps({"step": step, **metrics}, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        except OSError as error:
            raise FileError(self.path, said(error)) from None
        for logger in self._loggers:
            logger.log(step, metrics)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Hand some of a step's completions to the loggers; the step's tree file has all of them."""
        for logger in self._loggers:
            logger.log_samples(step, samples)

    def close(self) -> None:
        """Close file and loggers."""
        self._file.close()
        for logger in self._loggers:
            logger.close()
