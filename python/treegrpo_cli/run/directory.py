"""Config -> the folder of a run: `config.toml`, `metrics.jsonl`, `trees/step-NNNNN.jsonl.zst`, `checkpoint-N/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from treegrpo_cli.config import Config
from treegrpo_cli.config.files import dump_config, load_config
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, UserError

FREE_TO_CHANGE = {
    "train.num_steps",
    "train.save_steps",
    "train.max_checkpoints",
    "train.save_trees",
    "report_to",
    "output_dir",
}
"""Settings that a resumed run may give anew; any other would make it another run."""


class RunDirectory:
    """The folder of one run. Two runs never share one: a folder that holds a run is refused unless it is resumed."""

    def __init__(self, config: Config, *, resume: bool) -> None:
        self.path, self._config = Path(config.output_dir), config
        saved = self.path / "config.toml"
        if resume:
            if not saved.exists():
                raise FileError(self.path, "holds no run to resume")
            _check_same_run(load_config(saved), config, saved)
        elif saved.exists():
            raise FileError(self.path, "holds another run; --resume goes on with it, or give another output_dir")
        self._is_claimed = False
        try:
            (self.path / "trees").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(self.path, error.strerror or str(error)) from None

    def claim(self) -> None:
        """Write `config.toml`: from now on the folder holds this run.

        Called when the first result is there to be kept, so that a run that could not start, for a wrong
        path say, does not stand in the way of the next try.
        """
        if self._is_claimed:
            return
        try:
            write_whole(self.path / "config.toml", dump_config(self._config).encode())
        except OSError as error:
            raise FileError(self.path / "config.toml", error.strerror or str(error)) from None
        self._is_claimed = True

    def trees(self, step: int) -> Path:
        """The tree file of a step, counted from 1."""
        return self.path / "trees" / f"step-{step:05d}.jsonl.zst"

    @property
    def engine_log(self) -> Path:
        """Where the engine's own messages go."""
        return self.path / "engine.log"


def _check_same_run(saved: Config, config: Config, path: Path) -> None:
    before, after = _flat(saved.model_dump()), _flat(config.model_dump())
    for key in sorted(before.keys() | after.keys()):
        if key not in FREE_TO_CHANGE and before.get(key) != after.get(key):
            raise UserError(
                f"{path}: the run has {key} = {before.get(key)!r}, --resume was asked with {after.get(key)!r}"
            )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
