"""Checkpoints of ranks in processes of their own; `tests.train.test_sharded_checkpoint` looks at what they leave.

`python -m tests.checkpoint_processes FOLDER` imports the trainer once and forks two ranks, then three, all of which
have ended when it does. Two train, save `two/` and go on; both groups go on from `one/`, three from `two/`, and save
`three/`. What a group has behind a step lies in `FOLDER/CASE/after-SIZE-FROM.*`.
"""

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from treegrpo_cli.config import Config
from treegrpo_cli.errors import FileError
from treegrpo_cli.train import sharding  # noqa: F401  each rank would import it
from treegrpo_cli.train.checkpoint import load_checkpoint, save_checkpoint
from treegrpo_cli.train.ranks import Ranks, join, leave, open_store
from treegrpo_cli.train.trainer import Trainer

from tests.steps import make_config, make_step

LONGEST_S = 200
"""After so many seconds a rank ends, whatever it waits for."""

NUM_STEPS = 2
"""Before a checkpoint is saved."""

MODELS = {"weights": "tiny", "adapters": "tiny", "adapters of bfloat16": "tiny", "experts": "moe"}
TABLES: dict[str, dict[str, Any]] = {
    "weights": {"optimizer": {"weight_decay": 0.1, "schedule": "cosine", "warmup_ratio": 0.3, "learning_rate": 1e-3}},
    "adapters": {"model": {"lora_rank": 4, "lora_dropout": 0.0}, "loss": {"kl_coef": 0.01}},
    "adapters of bfloat16": {"model": {"lora_rank": 4, "dtype": "bfloat16"}},
    "experts": {},
}


class NoTokenizer:
    """What a model without one is saved with."""

    def save_pretrained(self, folder: Path) -> None:
        """It has no files."""


def trainer_of(case: str, folder: Path, ranks: Ranks) -> Trainer:
    config: Config = make_config(folder / MODELS[case], **TABLES[case])
    return Trainer(config, tokenizer=NoTokenizer(), ranks=ranks)


def main(folder: Path) -> None:
    codes = [code for size, work in ((2, two_ranks), (3, three_ranks)) for code in _run(size, folder, work)]
    sys.exit(any(codes))


def two_ranks(folder: Path, ranks: Ranks) -> None:
    for case in TABLES:
        trainer = trainer_of(case, folder, ranks)
        for step in range(NUM_STEPS):
            trainer.update(*make_step(step))
        save_checkpoint(folder / case / "two", trainer, {"saved by": 2})
        take_a_step(trainer, {"saved by": 2}, folder / case / "after-2-two")
        go_on(case, folder, "one", ranks)
    disk_is_full_from_the_first_file_on(trainer, folder / "full-at-once", ranks)
    disk_of_one_rank_is_full(trainer, folder / "full", ranks)


def three_ranks(folder: Path, ranks: Ranks) -> None:
    for case in TABLES:
        go_on(case, folder, "one", ranks)
        trainer = go_on(case, folder, "two", ranks)
        save_checkpoint(folder / case / "three", trainer, {"saved by": 3})
    damage_in_the_rows_of_one_rank(trainer_of("weights", folder, ranks), folder, ranks)


def go_on(case: str, folder: Path, written_by: str, ranks: Ranks) -> Trainer:
    """Take the next step in a trainer of its own, and leave metrics and weights."""
    trainer = trainer_of(case, folder, ranks)
    state = load_checkpoint(folder / case / written_by / f"checkpoint-{NUM_STEPS}", trainer)
    take_a_step(trainer, state, folder / case / f"after-{ranks.size}-{written_by}")
    return trainer


def take_a_step(trainer: Trainer, state: dict[str, Any], place: Path) -> None:
    metrics = trainer.update(*make_step(NUM_STEPS))
    weights = {name: tensor.clone() for name, tensor in trainer.state_dict_for_sampler()}
    if trainer.ranks.is_first:
        save_file(weights, place.with_suffix(".safetensors"))
        place.with_suffix(".json").write_text(json.dumps({"metrics": metrics, "state": state}))


def disk_is_full_from_the_first_file_on(trainer: Trainer, folder: Path, ranks: Ranks) -> None:
    """The first rank's, which writes what is not gathered alone."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.is_first:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    said = what_is_raised(lambda: save_checkpoint(folder, trainer, {}))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (folder.parent / f"full-at-once-{ranks.rank}.json").write_text(json.dumps(said))


def disk_of_one_rank_is_full(trainer: Trainer, folder: Path, ranks: Ranks) -> None:
    """A limit on the size of the last rank's files stands for it."""
    save_checkpoint(folder, trainer, {})
    trainer.step += 1
    if ranks.rank == ranks.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    said = what_is_raised(lambda: save_checkpoint(folder, trainer, {}))
    told = ranks.gather(torch.tensor([float(said is not None)]))
    if ranks.is_first:
        left = sorted(path.name for path in folder.iterdir())
        (folder.parent / "full.json").write_text(
            json.dumps({"told": told.flatten().tolist(), "left": left, "said": said})
        )


def damage_in_the_rows_of_one_rank(trainer: Trainer, folder: Path, ranks: Ranks) -> None:
    """The last row of a moment is no number: the last rank alone reads it."""
    path = folder / "damaged" / f"checkpoint-{NUM_STEPS}"
    if ranks.is_first:
        shutil.copytree(folder / "weights" / "two" / path.name, path)
        for file in path.glob("training_state*.tensors"):
            tensors = load_file(file)
            if "exp_avg.model.norm.weight" in tensors:
                tensors["exp_avg.model.norm.weight"][-1] = float("nan")
                save_file(tensors, file)
    ranks.gather(torch.zeros(1))
    said = what_is_raised(lambda: load_checkpoint(path, trainer))
    (folder / f"damaged-{ranks.rank}.json").write_text(json.dumps({"said": said, "step": trainer.step}))


def what_is_raised(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except FileError as error:
        return f"{type(error).__name__}: {error}"
    return None


def _run(size: int, folder: Path, work: Callable[[Path, Ranks], None]) -> list[int]:
    """Fork ranks, the first of which tells the others where they meet; return their exit codes."""
    reading, writing = os.pipe()
    pids = []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            os._exit(_rank(rank, size, reading, writing, folder, work))
        pids.append(pid)
    os.close(reading)
    os.close(writing)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _rank(rank: int, size: int, reading: int, writing: int, folder: Path, work: Callable[[Path, Ranks], None]) -> int:
    signal.alarm(LONGEST_S)
    try:
        if rank == 0:
            store = open_store(timeout_s=60.0)
            os.write(writing, f"{store.port:6d}".encode() * (size - 1))
            ranks: Ranks = join(rank, size, store, timeout_s=60.0)
        else:
            ranks = join(rank, size, ("127.0.0.1", int(os.read(reading, 6))), timeout_s=60.0)
        work(folder, ranks)
        leave()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
