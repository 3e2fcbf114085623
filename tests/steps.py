"""Made-up rollout steps: the scored forest that the trainer is handed, without a rollout."""

from pathlib import Path
from typing import Any

import numpy as np
from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.config import Config

from tests.forests import forest_of, make_node
from tests.reference import Node, Tree, scored_leaves, walk

VOCABULARY = 300
THINK = 7
"""The token that every turn begins with, so that siblings share it."""


def make_trees(seed: int, num_prompts: int = 4, trees_a_prompt: int = 2, turn_tokens: int = 8) -> list[Tree]:
    """Return small random trees: turns of sampled tokens and an observation, which branch, of unequal length.

    In each tree a chain of three turns, another from its first turn, and short ones from its root; now and then a leaf
    has no reward. Sampling log-probabilities are about those of a random model, so that ratios lie around 1.
    """
    return [tree for prompt in range(num_prompts) for tree in _prompt_trees(seed, prompt, trees_a_prompt, turn_tokens)]


def _prompt_trees(seed: int, prompt: int, num_trees: int, turn_tokens: int) -> list[Tree]:
    draw = np.random.default_rng([seed, prompt])
    question = [(int(token), False, 0.0) for token in draw.integers(8, VOCABULARY, 4 + prompt)]
    trees = []
    for _ in range(num_trees):
        root = make_node() | {"tokens": list(question)}
        first = _add_turn(draw, root, turn_tokens)
        _add_turn(draw, _add_turn(draw, first, turn_tokens), turn_tokens)
        _add_turn(draw, first, turn_tokens)
        for _ in range(int(draw.integers(1, 3))):
            _add_turn(draw, root, turn_tokens)
        trees.append({"prompt": prompt, "root": root})
    for number, leaf in enumerate(leaf for tree in trees for leaf in _leaves(tree["root"])):
        # the first two differ, so that every prompt has advantages of both signs
        leaf["reward"] = float(number) if number < 2 else float(draw.choice([0.0, 0.25, 1.0]))
    if prompt % 2:
        _leaves(trees[-1]["root"])[-1]["reward"] = None
    return trees


def _add_turn(draw: np.random.Generator, parent: Node, turn_tokens: int) -> Node:
    count = int(draw.integers(turn_tokens // 2, turn_tokens * 3 // 2))
    ids = [THINK, *draw.integers(8, VOCABULARY, count).tolist()]
    logprobs = -np.clip(draw.normal(draw.uniform(5.0, 10.0), 2.0, count + 1), 0.1, None)  # a turn's ratio varies too
    num_sampled = count - count // 3  # the rest is the observation
    node = make_node() | {
        "tokens": [
            (token, position <= num_sampled, float(np.float32(logprob)) if position <= num_sampled else 0.0)
            for position, (token, logprob) in enumerate(zip(ids, logprobs, strict=True))
        ]
    }
    parent["children"].append(node)
    return node


def _leaves(node: Node) -> list[Node]:
    return [leaf for child in node["children"] for leaf in _leaves(child)] if node["children"] else [node]


def step_of(trees: list[Tree], estimator: str = "tree-grpo") -> tuple[Forest, Scores]:
    """Return the trees as the core holds them, and their advantages."""
    forest, _ = forest_of(trees)
    return forest, forest.score(estimator, {})


def make_step(seed: int, num_prompts: int = 4, **shape: int) -> tuple[Forest, Scores]:
    """Return a scored forest of random trees; `shape` as in `make_trees`."""
    return step_of(make_trees(seed, num_prompts, **shape))


def make_chains(seed: int, num_chains: int = 4) -> tuple[Forest, Scores]:
    """Return chains of equal length, two a prompt, that share nothing: the first path of trees, each turn cut short."""
    trees = make_trees(seed, num_chains, 1)
    for number, tree in enumerate(trees):
        del tree["root"]["children"][1:], tree["root"]["children"][0]["children"][1:]
        for node in walk(tree["root"]):
            del node["tokens"][4:]
        tree["root"]["tokens"][0] = (20 + number, False, 0.0)
        tree["prompt"] = number // 2
        _leaves(tree["root"])[0]["reward"] = float(number % 2)
    return step_of(trees)


def make_comb(seed: int, num_turns: int = 8) -> list[Tree]:
    """Return one tree, a trunk of turns each of which has a leaf beside it: cut up, its trunk is computed again."""
    draw = np.random.default_rng(seed)
    trunk = root = make_node() | {"tokens": [(int(token), False, 0.0) for token in draw.integers(8, VOCABULARY, 4)]}
    for number in range(num_turns):
        _add_turn(draw, trunk, 8)["reward"] = float(number % 2)
        trunk = _add_turn(draw, trunk, 8)
    trunk["reward"] = 1.0
    return [{"prompt": 1000, "root": root}]


def set_rewards(tree: Tree, reward: float | None) -> None:
    """Give all scored leaves of a tree the same reward, or none."""
    for leaf in scored_leaves(tree["root"]):
        leaf["reward"] = reward


def make_config(model_dir: Path, **sections: dict[str, Any]) -> Config:
    """Return a config that trains the model on the CPU; `sections` override its tables."""
    tables: dict[str, dict[str, Any]] = {
        "model": {"path": str(model_dir), "device": "cpu"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"num_steps": 10, "prompts_per_step": 4},
    }
    for name, table in sections.items():
        tables[name] = tables.get(name, {}) | table
    return Config.model_validate(tables)
