"""The folder of a probe: what it was asked, and every repeat of every arm that is done, so that it can go on.

probe.json                     the settings of each arm, the prompts, the length of vectors
repeats.jsonl                  a line a repeat of an arm: what each prompt took and said, seconds
vectors/ARM-NNNNN.npy          [learned prompts, D] float32: what each adds to the gradient
engine.log                     the engine's own messages
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from treegrpo_cli.compare.probe_bench import PromptRow, RepeatResult
from treegrpo_cli.config import Config
from treegrpo_cli.config.effects import CANNOT_CHANGE_THE_RESULT
from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.config.values import flat
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, said

FORMAT = 1


class ProbeStore:
    """Repeats on disk. Raises FileError where the folder holds another probe, or cannot be read or written."""

    def __init__(self, folder: Path, configs: Mapping[str, Config], asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lines: dict[tuple[str, int], dict[str, Any]] = {}
        arms = {name: _lasting(config) for name, config in configs.items()}
        self._head = {"format": FORMAT, **asked, "arms": arms}
        try:
            (folder / "vectors").mkdir(parents=True, exist_ok=True)
            self._read()
        except OSError as error:
            raise FileError(error.filename or folder, said(error)) from None

    def is_done(self, arm: str, repeat: int) -> bool:
        """Whether a repeat is there, whole."""
        return (arm, repeat) in self._lines

    def num_done(self, arms: Iterable[str], num_repeats: int) -> int:
        """Return how many of the first repeats every arm has done."""
        names = list(arms)
        return next((i for i in range(num_repeats) if not all(self.is_done(arm, i) for arm in names)), num_repeats)

    def add(self, arm: str, repeat: int, result: RepeatResult) -> None:
        """Keep a repeat: its vectors first, then the line that says they are there."""
        content = io.BytesIO()
        np.save(content, result.vectors, allow_pickle=False)
        line = {
            "arm": arm,
            "repeat": repeat,
            "rollout_s": result.rollout_s,
            "update_s": result.update_s,
            "prompts": [asdict(row) for row in result.rows],
        }
        try:
            write_whole(self._vectors(arm, repeat), content.getvalue())
            with open(self.folder / "repeats.jsonl", "ab") as file:
                file.write(orjson.dumps(line) + b"\n")
        except OSError as error:
            raise FileError(error.filename or self.folder, said(error)) from None
        self._lines[arm, repeat] = line

    def load(self, arm: str, repeat: int) -> RepeatResult:
        """Read a repeat that is done."""
        line, path = self._lines[arm, repeat], self._vectors(arm, repeat)
        result = _result_of(line, self._load_vectors(path))
        if len(result.vectors) != sum(row.learned for row in result.rows):
            raise FileError(path, "does not belong to its line in repeats.jsonl; remove both")
        return result

    @staticmethod
    def _load_vectors(path: Path) -> NDArray[np.float32]:
        try:
            vectors: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FileError(path, said(error)) from None
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise FileError(path, f"expected a table of float32, got {vectors.dtype} {vectors.shape}")
        return vectors

    def _vectors(self, arm: str, repeat: int) -> Path:
        return self.folder / "vectors" / f"{arm}-{repeat:05d}.npy"

    def _read(self) -> None:
        head = self.folder / "probe.json"
        if head.exists():
            saved = self._parsed(head, head.read_bytes())
            self._check(head, saved)
            self._head["arms"] = saved["arms"] | self._head["arms"]  # arms of an earlier call stay
        write_whole(head, orjson.dumps(self._head, option=orjson.OPT_INDENT_2) + b"\n")
        lines = self.folder / "repeats.jsonl"
        content = lines.read_bytes() if lines.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a kill left a part of a line
            write_whole(lines, whole)
        for number, line in enumerate(whole.splitlines(), 1):
            record = self._parsed(lines, line, number)
            try:
                arm, repeat = str(record["arm"]), int(record["repeat"])
                _result_of(record, np.zeros((0, 0), dtype=np.float32))
            except (KeyError, TypeError, ValueError):
                raise FileError(lines, "is not what a probe wrote", number) from None
            if self._vectors(arm, repeat).exists():
                self._lines[arm, repeat] = record

    def _check(self, head: Path, saved: dict[str, Any]) -> None:
        """Raise FileError where what is there was asked otherwise: repeats of two questions do not mix."""
        asked = {key: value for key, value in self._head.items() if key != "arms"}
        pairs = [(key, saved.get(key), value) for key, value in asked.items()]
        defaults, arms = _lasting(Config()), saved.get("arms")
        if not isinstance(arms, dict) or not all(isinstance(settings, dict) for settings in arms.values()):
            raise FileError(head, "is not what a probe wrote: it has no arms")
        for name, settings in self._head["arms"].items():
            newer = {key: defaults[key] for key in settings if key in defaults}  # the version that wrote it had fewer
            before = newer | arms.get(name, settings)
            keys = sorted(before.keys() | settings.keys())
            pairs += [(f"arm {name}: {key}", before.get(key), settings.get(key)) for key in keys]
        for what, before, now in pairs:
            if before != now:
                raise FileError(head, f"holds a probe with {what} = {before!r}, now {now!r}; give another --output")

    @staticmethod
    def _parsed(path: Path, content: bytes, line: int | None = None) -> dict[str, Any]:
        try:
            record = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise FileError(path, f"is no JSON: {error}", line) from None
        if not isinstance(record, dict):
            raise FileError(path, "expected an object", line)
        return record


def _result_of(line: Mapping[str, Any], vectors: NDArray[np.float32]) -> RepeatResult:
    """Put a line together with its vectors. Raises KeyError, TypeError or ValueError for a line that is none."""
    rows = [PromptRow(**row) for row in line["prompts"]]
    return RepeatResult(rows, vectors, float(line["rollout_s"]), float(line["update_s"]))


def _lasting(config: Config) -> dict[str, Any]:
    """Settings that change what a repeat yields, by dotted key, as they come back from JSON."""
    settings = flat(without_passwords(config.model_dump(mode="json")))
    kept = {key: value for key, value in settings.items() if key not in CANNOT_CHANGE_THE_RESULT}
    parsed: dict[str, Any] = orjson.loads(orjson.dumps(kept))
    return parsed
