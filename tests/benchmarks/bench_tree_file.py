"""A tree file read, scored and written, in times of what orjson takes to load and dump its lines.

    python tests/benchmarks/bench_tree_file.py

The file is what a rollout writes: M trees a prompt with texts and tokens, some text in place of a tokenizer's. Reading
is `read_trees`, scoring `score`, writing `to_json` to a file; orjson loads the same lines and dumps what it loaded.
Each step does the whole file before the next begins. Seconds are those that the process computed, so that other
work on the machine counts less.
"""

import argparse
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from treegrpo_cli import read_trees, score

WORDS = ["capital", "of", "the", "river", "a", "search", "found", "and", "answer", "首都", "town", "née"]
TURNS = 4


def node(draw: random.Random, place: int, parent: int | None, depth: int, tokens: int) -> dict[str, Any]:
    """A turn of `tokens` tokens on average, half of them sampled, as a rollout writes it; of 0, the least there is."""
    num_tokens = draw.randint(tokens // 2, tokens + tokens // 2)
    num_sampled = num_tokens // 2 if parent is not None else 0
    closed = depth == TURNS
    reward = float(draw.randint(0, 1)) if closed else None
    if not tokens:
        return {"id": place, "parent": parent, "reward": reward}
    logprobs = np.array([-draw.expovariate(2) for _ in range(num_sampled)], dtype=np.float32)
    fields: dict[str, Any] = {
        "id": place,
        "parent": parent,
        "status": "done" if closed else "open",
        "reward": reward,
        "token_ids": [draw.randrange(150_000) for _ in range(num_tokens)],
        "sampled": [[0, num_sampled]] if num_sampled else [],
        "logprobs": logprobs.tolist(),
        "text": " ".join(draw.choices(WORDS, k=num_sampled)),
        "observation": " ".join(draw.choices(WORDS, k=num_tokens - num_sampled)),
        "policy_version": 0,
        "num_tool_calls": 1,
    }
    return fields | ({"kept": True} if closed else {})


def line(draw: random.Random, prompt: int, tree_id: int, tokens: int) -> bytes:
    """A tree of one chain and two more from random turns of it, or a thousand more where turns hold nothing."""
    nodes = [node(draw, 0, None, 0, tokens)]
    path = [0]
    for _ in range(TURNS):
        nodes.append(node(draw, len(nodes), path[-1], len(path), tokens))
        path.append(len(nodes) - 1)
    for _ in range(2 if tokens else 1000):
        above = draw.randrange(TURNS)
        parent = path[above]
        for depth in range(above + 1, TURNS + 1):
            nodes.append(node(draw, len(nodes), parent, depth, tokens))
            parent = len(nodes) - 1
    tree = {"schema": "treegrpo.tree/1", "prompt_id": f"{prompt:08d}", "tree_id": tree_id, "nodes": nodes}
    return orjson.dumps(tree | {"task": {"question": "Which?", "ground_truth": "Chad"}, "meta": {"seed": 0}})


def make(path: Path, megabytes: int, tokens: int) -> None:
    """Write groups of two trees until the file has its size."""
    draw = random.Random(0)
    with open(path, "wb") as file:
        prompt = 0
        while file.tell() < megabytes * 1e6:
            file.writelines(line(draw, prompt, tree_id, tokens) + b"\n" for tree_id in range(2))
            prompt += 1


def median(times: list[float]) -> float:
    """The middle one of an odd number."""
    return sorted(times)[len(times) // 2]


def timed(times: dict[str, list[float]], name: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; its seconds go behind `name`."""
    start = time.process_time()
    result = work()
    times.setdefault(name, []).append(time.process_time() - start)
    return result


def with_orjson(path: Path, out: Path, times: dict[str, list[float]]) -> None:
    """Load all lines, then dump them."""
    with open(path, "rb") as file:
        values = timed(times, "orjson: load", lambda: [orjson.loads(text) for text in file])
    timed(times, "orjson: dump", lambda: write(out, (orjson.dumps(value) for value in values)))


def with_treegrpo(path: Path, out: Path, times: dict[str, list[float]]) -> None:
    """Read all trees, score them, and write them."""
    trees = timed(times, "treegrpo: read", lambda: list(read_trees(path)))
    scored = timed(times, "treegrpo: score", lambda: score(trees, "tree-grpo"))
    timed(times, "treegrpo: write", lambda: write(out, (tree.to_json() for tree in scored)))


def write(path: Path, lines: Iterable[bytes]) -> None:
    """Write lines to a file."""
    with open(path, "wb") as file:
        file.writelines(text + b"\n" for text in lines)


def report(megabytes: int, tokens: int, repeats: int, folder: Path) -> None:
    """Print the table of one file."""
    path, out, times = folder / "trees.jsonl", folder / "out.jsonl", dict[str, list[float]]()
    make(path, megabytes, tokens)
    for _ in range(repeats):
        with_orjson(path, out, times)
        with_treegrpo(path, out, times)
    medians = {name: median(each) for name, each in times.items()}
    whole = sum(spent for name, spent in medians.items() if name.startswith("orjson"))
    num_nodes = path.read_bytes().count(b'"parent"')
    print(f"\n{path.stat().st_size / 1e6:.0f} MB, {num_nodes:,} nodes; {platform.machine()}, median of {repeats}\n")
    print("| what | s | times orjson's load and dump |\n|---|---|---|")
    for name, spent in medians.items():
        print(f"| {name} | {spent:.2f} | {spent / whole:.2f} |")
    print(f"| treegrpo: all three | {sum(medians.values()) - whole:.2f} | {sum(medians.values()) / whole - 1:.2f} |")


def main() -> None:
    """Print a table a size of turns: those of a search agent, short ones, and none at all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=69)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[200, 40, 10, 0])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for tokens in given.tokens:
            report(given.megabytes, tokens, given.repeats, Path(folder))


if __name__ == "__main__":
    main()
