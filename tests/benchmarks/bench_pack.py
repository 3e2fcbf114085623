"""The training layout of a million tokens: the Rust core against a trie of dictionaries, a token at a time.

    python tests/benchmarks/bench_pack.py

Trees as a rollout makes them: M first chains, then L rounds of N more from random turns. The plain Python builds the
four columns over tokens alone, without targets or micro-batches, and they are compared. The copy of as many bytes as
the layout's and all micro-batches' columns hold says what memory alone would take.
"""

import argparse
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_core import time_in_turns
from treegrpo_cli._core import NO_PARENT, ChainRows, Forest, Layout
from treegrpo_cli.types import NodeStatus

Trie = dict[int, "Trie"]

COLUMNS = ("token_ids", "positions", "parent_token", "subtree_end")
MICRO_COLUMNS = (*COLUMNS, "predictors", "target_row", "target_ids", "logprobs", "gain", "penalty", "weights", "turn")
VOCABULARY, TURNS = 50_000, 4


def rollouts(num_prompts: int, m: int, n: int, rounds: int, seed: int = 0) -> Forest:
    """M trees a prompt, a chain each and then N chains a round; a turn has 100 to 300 tokens, half of them sampled."""
    draw = np.random.default_rng(seed)
    forest = Forest()

    def add_chain(node: int, depth: int, turns: list[tuple[int, int]]) -> None:
        while depth < TURNS:
            depth += 1
            num = int(draw.integers(100, 301))
            sampled = np.arange(num) < num // 2
            logprobs = np.where(sampled, -draw.random(num), 0).astype(np.float32)
            token_ids = draw.integers(0, VOCABULARY, num, dtype=np.uint32)
            status = NodeStatus.DONE if depth == TURNS else NodeStatus.OPEN
            node = forest.add_node(node, token_ids, sampled, logprobs, status, 0)
            turns.append((node, depth))
        forest.set_reward(node, float(draw.integers(0, 2)))

    for prompt in range(num_prompts):
        question = draw.integers(0, VOCABULARY, 200, dtype=np.uint32)
        for _ in range(m):
            turns = [(forest.add_tree(prompt, question), 0)]
            add_chain(*turns[0], turns)
            for _ in range(rounds):
                open_turns = [turn for turn in turns if turn[1] < TURNS]
                for place in draw.choice(len(open_turns), min(n, len(open_turns)), replace=False):
                    add_chain(*open_turns[place], turns)
    return forest


def plain_python(forest: Forest) -> dict[str, list[int]]:
    """A dictionary a token; every path here is scored."""
    columns = forest.columns()
    parent, start = columns["parent"].tolist(), columns["token_start"].tolist()
    token_ids = columns["token_ids"].tolist()
    top: Trie = {}
    below: list[Trie] = []  # behind each node's last token
    for node, above in enumerate(parent):
        children = top if above == NO_PARENT else below[above]
        for token in token_ids[start[node] : start[node + 1]]:
            if token not in children:
                children[token] = {}
            children = children[token]
        below.append(children)
    layout: dict[str, list[int]] = {name: [] for name in COLUMNS}
    ids, positions, parents, ends = layout.values()
    stack = [(token, children, 0, NO_PARENT) for token, children in reversed(top.items())]
    while stack:
        token, children, position, above = stack.pop()
        place = len(ids)
        ids.append(token)
        positions.append(position)
        parents.append(above)
        stack.extend((child, under, position + 1, place) for child, under in reversed(children.items()))
    ends.extend(range(1, len(ids) + 1))
    for place in range(len(ids) - 1, -1, -1):
        above = parents[place]
        if above != NO_PARENT and ends[above] < ends[place]:
            ends[above] = ends[place]
    return layout


def chains_of(rows: ChainRows) -> dict[str, Any]:
    """The rows of a forest as somebody else would bring them."""
    return {
        "row_start": rows.row_start,
        "token_ids": rows.input_ids,
        "sampled": rows.loss_mask,
        "logprobs": rows.logprobs,
        "prompt": rows.group,
        "reward": rows.reward,
    }


def num_bytes(layout: Layout, max_tokens: int) -> int:
    """What the columns over tokens and targets hold."""
    micro_batches = layout.micro_batches(max_tokens)
    written = [getattr(layout, name) for name in COLUMNS]
    return sum(column.nbytes for column in written) + sum(
        getattr(micro, name).nbytes for micro in micro_batches for name in MICRO_COLUMNS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=330)
    parser.add_argument("--max-tokens", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    forest = rollouts(arguments.prompts, m=2, n=2, rounds=1)
    scores = forest.score("tree-grpo", {})
    layout = forest.pack(scores)
    for name, column in plain_python(forest).items():
        np.testing.assert_array_equal(getattr(layout, name), column)

    order, chains = np.arange(forest.num_nodes, dtype=np.uint32), chains_of(forest.chain_rows(scores))
    source = np.ones(num_bytes(layout, arguments.max_tokens), dtype=np.uint8)
    written = np.empty_like(source)
    methods: dict[str, Callable[[], object]] = {
        "Rust core: pack, micro_batches": lambda: forest.pack(scores).micro_batches(arguments.max_tokens),
        "of it: pack": lambda: forest.pack(scores),
        "of it: micro_batches": lambda: layout.micro_batches(arguments.max_tokens),
        "rows (shared=False): pack, micro_batches": lambda: forest.pack(scores, shared=False).micro_batches(
            arguments.max_tokens
        ),
        "Forest.concat, nodes in an order": lambda: Forest.concat([forest], [order]),
        "Forest.leaf_columns": forest.leaf_columns,
        "Forest.from_chains of its rows": lambda: Forest.from_chains(**chains),
        "plain Python: four columns, no targets": lambda: plain_python(forest),
        "copy of the same bytes": lambda: np.copyto(written, source),
    }
    median = time_in_turns(methods, arguments.repeats)
    print(
        f"{forest.num_tokens:,} tokens in {forest.num_nodes:,} turns; {len(layout.token_ids):,} in the layout, "
        f"{layout.num_targets:,} targets, {sum(layout.path_tokens):,} in rows; {len(source) / 2**20:.0f} MiB written; "
        f"{platform.machine()}, one thread, median of {arguments.repeats}\n"
    )
    print("| method | ms | M tokens/s | times the Rust core |")
    print("|---|---|---|---|")
    for name, seconds in median.items():
        rate, ratio = forest.num_tokens / seconds / 1e6, seconds / next(iter(median.values()))
        print(f"| {name} | {seconds * 1e3:.1f} | {rate:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
