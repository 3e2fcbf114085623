"""Ends rollouts and trainings at any moment, goes on with them, and compares what is left with a run that nobody ended.

    python -m tests.attacks.kill                              rollouts and trainings, each kind of signal
    python -m tests.attacks.kill rollout --count 200 --ending .jsonl.zst --signals kill term,term
    python -m tests.attacks.kill train --count 50 --engine vllm --cold

A run is ended again and again, and resumed with the same command and `--resume`, until it comes to its end. Wrong
are: a traceback, another exit code than the signal's, a process that stays, a whole tree or the last checkpoint gone,
and at the end another tree, metric or weight than the undisturbed run has.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson
import tomli_w

from tests.runs import small_run
from tests.zygote import zygote

SIGNALS = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}
MAX_ENDINGS = 12
"""So many times a run is ended, then it is left alone."""
PATIENCE_S = 90.0
LOGPROB_ROUNDING = 1e-4


class Process(Protocol):
    """A started command."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...


@dataclass
class Arena:
    """A folder with a model, questions and settings, and how commands are started in it."""

    folder: Path
    engine: str
    cold: bool
    lora_rank: int = 0
    dtype: str = "float32"
    num_questions: int = 8
    findings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        from tests.tiny import make_tiny_model

        model = make_tiny_model(self.folder / "model")
        settings = small_run(self.folder, model, sampler={"engine": self.engine})
        rows = [{"question": f"capital number {n}", "answer": "Lisbon"} for n in range(self.num_questions)]
        (self.folder / "questions.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        del settings["output_dir"]
        settings["train"] |= {"num_steps": 5, "save_steps": 1}
        settings["model"] |= {"lora_rank": self.lora_rank, "dtype": self.dtype}
        (self.folder / "c.toml").write_text(tomli_w.dumps(settings))

    def start(self, arguments: Sequence[str]) -> Any:
        """Start `treegrpo` with these arguments."""
        if not self.cold:
            return zygote().start(arguments, cwd=self.folder)
        command = [sys.executable, "-m", "treegrpo_cli", *arguments]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, arguments: Sequence[str]) -> tuple[int, str, float]:
        """Run a command to its end: exit code, standard error, seconds."""
        begin = time.monotonic()
        process = self.start(arguments)
        errors = _errors(process)
        return process.returncode, errors, time.monotonic() - begin

    def found(self, what: str) -> None:
        """Keep and print a finding."""
        self.findings.append(what)
        print(f"  {what}", flush=True)


def _errors(process: Any) -> str:
    done = process.communicate(timeout=PATIENCE_S)
    return str(done[1] if isinstance(done, tuple) else done.stderr)


class Victim(Protocol):
    """A command that can be ended and resumed."""

    def arguments(self, name: str, *, resume: bool) -> list[str]:
        """The command line of the run called `name`."""
        ...

    def kept(self, name: str) -> dict[Any, Any]:
        """What must not get lost any more: each tree, or each step that a checkpoint holds."""
        ...

    def difference(self, name: str, whole: str) -> str:
        """How a run that came to its end differs from the undisturbed one, or nothing."""
        ...


class Rollout:
    """`treegrpo rollout`."""

    def __init__(self, arena: Arena, ending: str) -> None:
        self.arena, self.ending = arena, ending

    def arguments(self, name: str, *, resume: bool) -> list[str]:
        return ["rollout", "c.toml", "--output", f"{name}{self.ending}", *(["--resume"] if resume else [])]

    def kept(self, name: str) -> dict[Any, Any]:
        output = self.arena.folder / f"{name}{self.ending}"
        journal = output.with_name(f"{output.name}.journal")
        return dict(_trees(output)) | dict(_trees(journal, plain=True))

    def difference(self, name: str, whole: str) -> str:
        ours, theirs = self.kept(name), self.kept(whole)
        if ours.keys() != theirs.keys():
            return f"{len(ours)} trees for {len(theirs)}"
        return next((f"tree {key} differs" for key in ours if not _same_tree(ours[key], theirs[key])), "")


class Training:
    """`treegrpo train`."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    def arguments(self, name: str, *, resume: bool) -> list[str]:
        resume = resume and (self.arena.folder / name / "config.toml").exists()  # else there is no run yet
        return ["train", "c.toml", "--output-dir", name, *(["--resume"] if resume else [])]

    def kept(self, name: str) -> dict[Any, Any]:
        steps = sorted(int(path.name.rpartition("-")[2]) for path in (self.arena.folder / name).glob("checkpoint-*"))
        return {"newest whole checkpoint": True} if steps else {}

    def difference(self, name: str, whole: str) -> str:
        ours, theirs = self._metrics(name), self._metrics(whole)
        if ours != theirs:
            return f"other metrics: {_first_difference(ours, theirs)}"
        return "" if self._weights(name) == self._weights(whole) else "other weights"

    def _metrics(self, name: str) -> list[dict[str, Any]]:
        lines = (self.arena.folder / name / "metrics.jsonl").read_bytes().splitlines()
        timed = ("time", "second", "memory", "busy")
        return [
            {key: value for key, value in orjson.loads(line).items() if not any(word in key for word in timed)}
            for line in lines
        ]

    def _weights(self, name: str) -> bytes:
        return (self.arena.folder / name / "checkpoint-5" / "model.safetensors").read_bytes()


def _first_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    for one, other in zip(ours, theirs, strict=False):
        for key in one.keys() | other.keys():
            if one.get(key) != other.get(key):
                return f"step {one.get('step')}: {key} is {one.get(key)}, not {other.get(key)}"
    return f"{len(ours)} lines for {len(theirs)}"


def _trees(path: Path, *, plain: bool = False) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """The whole trees of a file that a kill may have left; half a line at its end is none."""
    if not path.exists():
        return
    content = path.read_bytes()
    if path.suffix == ".zst" and not plain:
        content = _unpacked(content)
    for line in content.split(b"\n"):
        try:
            tree = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        yield (tree["prompt_id"], tree["tree_id"]), tree


def _unpacked(content: bytes) -> bytes:
    import zstandard

    unpacked = b""
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            unpacked += frame.decompress(content)
        except zstandard.ZstdError:
            break
        content = frame.unused_data if frame.eof else b""
    return unpacked


def _same_tree(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """The same nodes to the token and the reward; log-probabilities to the rounding of another batch."""
    if len(ours["nodes"]) != len(theirs["nodes"]):
        return False
    for one, other in zip(ours["nodes"], theirs["nodes"], strict=True):
        if any(one.get(name) != other.get(name) for name in ("parent", "token_ids", "status", "reward", "sampled")):
            return False
        pairs = zip(one.get("logprobs") or (), other.get("logprobs") or (), strict=True)
        if any(abs(a - b) > LOGPROB_ROUNDING for a, b in pairs):
            return False
    return True


def attack(arena: Arena, victim: Victim, kinds: Sequence[str], count: int, seed: int) -> int:
    """End runs `count` times in all and compare each with the undisturbed one; return how many were ended."""
    code, errors, seconds = arena.run(victim.arguments("whole", resume=False))
    assert code == 0, errors
    ended = number = 0
    while ended < count:
        number += 1
        draws = random.Random(f"{seed} {number}")
        name = f"run-{number}"
        ended += _end_again_and_again(arena, victim, name, kinds, seconds, draws)
        if difference := victim.difference(name, "whole"):
            arena.found(f"{name}: {difference}")
            continue
        for leftover in arena.folder.glob(f"{name}*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return ended


def _end_again_and_again(
    arena: Arena, victim: Victim, name: str, kinds: Sequence[str], seconds: float, draws: random.Random
) -> int:
    """Run `name` to its end in spite of the signals; return how often it was ended."""
    ended, before = 0, dict[Any, Any]()
    while True:
        process = arena.start(victim.arguments(name, resume=ended > 0))
        kind = draws.choice(list(kinds)) if ended < MAX_ENDINGS else ""
        if kind:
            _signal_within(process, kind.split(","), seconds, draws)
        try:
            errors = _errors(process)
        except subprocess.TimeoutExpired:
            arena.found(f"{name}: still there {PATIENCE_S:g} s after {kind or 'its start'}")
            process.send_signal(signal.SIGKILL)
            return ended
        if "Traceback" in errors:
            arena.found(f"{name}: after {kind}: a traceback:\n{errors}")
        if process.returncode == 0:
            return ended
        allowed = {-SIGNALS[one] for one in kind.split(",") if one} | {
            128 + SIGNALS[one] for one in kind.split(",") if one
        }
        if process.returncode not in allowed:
            arena.found(f"{name}: after {kind}: exit code {process.returncode}: {errors.strip().splitlines()[-1:]}")
            return ended
        ended += 1
        after = victim.kept(name)
        if lost := before.keys() - after.keys():
            arena.found(f"{name}: after {kind}: lost {sorted(lost)[:3]}")
        before = after


def _signal_within(process: Process, names: Sequence[str], seconds: float, draws: random.Random) -> None:
    """Send signals at a random moment of the run, the second one shortly behind the first."""
    wait = draws.random() ** 2 * seconds
    for name in names:
        end = time.monotonic() + wait
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(SIGNALS[name])
        wait = draws.choice((0.0, 0.01, 0.1, 0.5))


def main() -> int:
    """Run the command line; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victims", nargs="*", choices=[[], "rollout", "train"], help="default: both")
    parser.add_argument("--count", type=int, default=30, help="endings of each")
    parser.add_argument("--signals", nargs="+", default=["kill", "int", "term", "int,int", "term,term"])
    parser.add_argument("--ending", choices=[".jsonl", ".jsonl.zst"], nargs="+", default=[".jsonl", ".jsonl.zst"])
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cold", action="store_true", help="real starts, imports included")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="treegrpo-kill-") as folder:
        found = 0
        for place, (what, victim_of) in enumerate(_victims(given)):
            (Path(folder) / str(place)).mkdir()
            arena = Arena(Path(folder) / str(place), given.engine, given.cold, given.lora_rank, given.dtype)
            ended = attack(arena, victim_of(arena), given.signals, given.count, given.seed)
            print(f"{what}: ended {ended} times, {len(arena.findings)} findings", flush=True)
            found += len(arena.findings)
    return int(found > 0)


def _victims(given: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    for victim in given.victims or ("rollout", "train"):
        if victim == "train":
            yield "train", Training
        else:
            for ending in given.ending:
                yield f"rollout {ending}", lambda arena, ending=ending: Rollout(arena, ending)


if __name__ == "__main__":
    sys.exit(main())
