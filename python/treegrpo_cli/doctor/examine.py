"""Everything that the doctor looks at, in order: versions, settings, engines, attention paths."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from treegrpo_cli.config import Config
from treegrpo_cli.doctor import versions
from treegrpo_cli.doctor.finding import Check, Finding
from treegrpo_cli.errors import UserError

if TYPE_CHECKING:
    import torch

LOG_LINES = 60


class Examination:
    """What is looked at; `findings` are those so far, `config` the settings where they can be read.

    `read` reads the settings, None where none were given; `say` is told before what takes a while. Close it behind the
    last check.
    """

    def __init__(self, read: Callable[[], Config] | None, say: Callable[[str], None]) -> None:
        self.findings: list[Finding] = []
        self.config: Config | None = None
        self._read, self._say = read, say
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="treegrpo-doctor-")))

    def __enter__(self) -> Examination:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was made to be looked at."""
        self._stack.close()

    def checks(self) -> list[Check]:
        """Read the settings and return all checks."""
        first = list(versions.checks())
        if self._read is not None:
            first.append(self._read_settings())
        return first if not versions.is_complete() else [*first, *self._checks()]

    def run(self, check: Check) -> list[Finding]:
        """Look at one thing, and remember what was found."""
        found = check.find()
        self.findings += found
        return found

    @property
    def engine_log(self) -> list[str]:
        """The last lines that vLLM logged."""
        path = self._folder / "engine.log"
        return path.read_text(errors="replace").splitlines()[-LOG_LINES:] if path.is_file() else []

    def _read_settings(self) -> Check:
        """Read the settings now, since they decide what else is looked at, and say later how that went."""
        assert self._read is not None
        try:
            self.config = self._read()
        except UserError as error:
            return Check("settings", "file", partial(_raise, error))
        return Check("settings", "file", lambda: "every key and value is known")

    def _checks(self) -> Iterator[Check]:
        from treegrpo_cli.doctor import attention, engines, settings
        from treegrpo_cli.doctor.tiny_model import make_tiny_model

        config = self.config or Config()
        if self.config is not None:
            yield from settings.checks(self.config)
        device, dtype = _device_and_dtype(config)
        model = self._folder / "model"
        yield Check("engines", "a tiny random model", partial(make_tiny_model, model))
        log_path = self._folder / "engine.log"
        yield from engines.checks(model, config, device, dtype, log_path, self._say)
        yield from attention.checks(model, device)


def _device_and_dtype(config: Config) -> tuple[torch.device, torch.dtype]:
    """Those of the settings, or what is there where they cannot be had: another line says so."""
    import torch

    from treegrpo_cli.models.devices import choose_device, choose_dtype

    try:
        device = choose_device(config.model.device)
    except UserError:
        device = torch.device("cpu")
    try:
        return device, choose_dtype(config.model.dtype, device)
    except UserError:
        return device, torch.float32


def _raise(error: Exception) -> str:
    raise error
