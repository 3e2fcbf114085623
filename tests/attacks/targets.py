"""What is attacked: for each kind of input the valid files to start from, and the program's way of reading them."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import zstandard

from tests.attacks.answers import AnsweringServer
from tests.attacks.mutate import dump, mutated

ROOT = Path(__file__).parents[2]

Attack = Callable[[int], None]
"""Makes input `number` and lets the program read it."""


@dataclass
class Bench:
    """A folder to attack in, and the seed that all inputs follow from."""

    folder: Path
    seed: int

    def draws(self, number: int) -> random.Random:
        """The random draws of one input."""
        return random.Random(f"{self.seed} {number}")

    def damaged_copy(self, source: Path, number: int) -> Path:
        """Copy a folder and damage one of its files."""
        copy = self.folder / f"input-{number}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        draws = self.draws(number)
        victim = draws.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
        victim.write_bytes(mutated(victim.read_bytes(), draws))
        return copy


def trees(bench: Bench) -> Attack:
    """Tree files, plain and compressed: read, scored, drawn, explained, counted, and made rows of."""
    from treegrpo_cli.trees.draw import draw_tree
    from treegrpo_cli.trees.explain import explain
    from treegrpo_cli.trees.rows import training_rows
    from treegrpo_cli.trees.scoring import keep_or_score, score_group
    from treegrpo_cli.trees.summary import Summary
    from treegrpo_cli.trees.summary_lines import lines_of_summary
    from treegrpo_cli.trees.tree_file import read_groups

    valid = (ROOT / "examples" / "trees.jsonl").read_bytes()
    estimators = ("tree-grpo", "grpo", "ancestor", "redistribute", "parent", "sibling", "global-local", "depth")

    def attack(number: int) -> None:
        draws = bench.draws(number)
        packed = draws.random() < 0.3
        path = bench.folder / f"{number}.jsonl{'.zst' if packed else ''}"
        pack = zstandard.ZstdCompressor().compress
        if packed and draws.random() < 0.5:
            path.write_bytes(mutated(pack(valid), draws))
        else:
            path.write_bytes(pack(mutated(valid, draws)) if packed else mutated(valid, draws))
        summary = Summary()
        try:
            for group in read_groups(path):
                keep = draws.random() < 0.5
                scored = keep_or_score(group) if keep else score_group(group, draws.choice(estimators), {})
                summary.add_group(scored)
                for tree in scored:
                    tree.to_json()
                    for line in draw_tree(tree, 80, full=draws.random() < 0.5):
                        line.plain.encode("utf-8")
                node = draws.randrange(len(scored[-1].nodes))
                "\n".join(explain(scored, len(scored) - 1, node)).encode("utf-8")
                training_rows(scored)
        finally:
            path.unlink()
        list(lines_of_summary(summary))

    return attack


def settings(bench: Bench) -> Attack:
    """Settings files and overrides: read, written, read again."""
    from treegrpo_cli.config.files import dump_config, load_config

    default = load_config(None).model_dump(mode="json", exclude_none=True)
    valid = [tomli_w.dumps(default).encode(), (ROOT / "examples" / "geography" / "tree.toml").read_bytes()]
    keys = [f"{section}.{name}" for section, table in default.items() if isinstance(table, dict) for name in table]
    odd = ["", "1e999", "nan", "9" * 5000, "[" * 500, "{a=1}", "1979-05-27", "'x'", "2**70", "-1", str(2**70), "\ud800"]

    def attack(number: int) -> None:
        draws = bench.draws(number)
        path = bench.folder / f"{number}{draws.choice(('.toml', '.yaml', '.toml'))}"
        text = draws.choice(valid) if path.suffix == ".toml" else dump(default)
        path.write_bytes(mutated(text, draws) if draws.random() < 0.7 else text)
        overrides = [f"{draws.choice(keys)}={draws.choice(odd)}" for _ in range(draws.randrange(3))]
        try:
            config = load_config(path, overrides)
            again = bench.folder / f"{number}.again.toml"
            again.write_text(dump_config(config))
            assert load_config(again) == config, "what is written is not what was read"
        finally:
            path.unlink()

    return attack


def data(bench: Bench) -> Attack:
    """Questions in JSON Lines, JSON and Parquet."""
    from treegrpo_cli.data.tasks import load_tasks

    rows = [
        {"question": "What is the capital of Portugal?", "answer": "Lisbon"},
        {"prompt": [{"role": "user", "content": "Capital?"}], "reward_model": {"ground_truth": ["a", "b"]}},
        {"prompt": "Capital of France?", "answer": ["Paris"], "extra_info": {"split": "x", "index": 3}},
    ]
    lines = b"".join(dump(row) + b"\n" for row in rows)
    parquet = _parquet(bench.folder, rows[:1] * 50)

    def attack(number: int) -> None:
        draws = bench.draws(number)
        suffix, valid = draws.choice([(".jsonl", lines), (".json", dump(rows)), (".parquet", parquet)])
        path = bench.folder / f"{number}{suffix}"
        path.write_bytes(mutated(valid, draws))
        try:
            for task in load_tasks(str(path)):
                dump([task.question, str(task.columns)])
        finally:
            path.unlink()

    return attack


def _parquet(folder: Path, rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    path = folder / "valid.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


def models(bench: Bench) -> Attack:
    """Model folders: configuration, tokenizer, weights."""
    import torch
    from treegrpo_cli.models.pretrained import load_causal_lm, load_tokenizer

    from tests.tiny import make_tiny_model

    _quiet()
    valid = make_tiny_model(bench.folder / "valid-model")

    def attack(number: int) -> None:
        copy = bench.damaged_copy(valid, number)
        try:
            tokenizer = load_tokenizer(copy)
            tokenizer.encode("What is the capital?")
            load_causal_lm(copy, torch.float32)
        finally:
            shutil.rmtree(copy)

    return attack


def checkpoints(bench: Bench) -> Attack:
    """Checkpoints of a training run."""
    from treegrpo_cli.config.files import make_config
    from treegrpo_cli.run.loop import train
    from treegrpo_cli.run.progress import Reporter
    from treegrpo_cli.train.checkpoint import load_checkpoint
    from treegrpo_cli.train.trainer import Trainer

    from tests.runs import small_run
    from tests.tiny import make_tiny_model

    _quiet()
    config = make_config(
        small_run(bench.folder, make_tiny_model(bench.folder / "valid-model"), train={"num_steps": 1, "eval_steps": 0})
    )
    train(config, Reporter(quiet=True))
    trainer = Trainer(config, lambda _: None)
    valid = Path(config.output_dir) / "checkpoint-1"

    def attack(number: int) -> None:
        copy = bench.damaged_copy(valid, number)
        try:
            load_checkpoint(copy, trainer)
        finally:
            shutil.rmtree(copy)

    return attack


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def retriever(bench: Bench) -> Attack:
    """What a search server may answer."""
    from treegrpo_cli.envs.http_retriever import HTTPRetriever
    from treegrpo_cli.errors import ToolError, UserError

    server = AnsweringServer(bench)
    server.start()

    def attack(number: int) -> None:
        retriever = HTTPRetriever(f"{server.url}/{number}")
        try:
            [found] = asyncio.run(asyncio.wait_for(retriever.retrieve(["capital"], 3), 15))
        except ToolError as error:  # what closes the branch, and stands in the tree file
            raise UserError(str(error)) from error
        for passage in found:
            f"{passage.title}{passage.text}".encode()

    return attack


KINDS: dict[str, Callable[[Bench], Attack]] = {
    "trees": trees,
    "settings": settings,
    "data": data,
    "models": models,
    "checkpoints": checkpoints,
    "retriever": retriever,
}


def make_attack(kind: str, folder: Path, seed: int) -> Attack:
    """Return the attack of a kind; raises KeyError for another."""
    return partial(KINDS[kind])(Bench(folder, seed))
