"""Random forests and scorings for hypothesis, and the way from the reference's dicts to the core's columns."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from treegrpo_cli._core import NO_PARENT, Forest
from treegrpo_cli.types import NodeStatus

from tests.reference import Node, Tree, in_call

REWARDS = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32))


def make_node(children: list[Node] | None = None, reward: float | None = None, entropy: float = 0.5) -> Node:
    return {"children": children or [], "reward": reward, "entropy": entropy, "tokens": []}


@st.composite
def trees(
    draw: st.DrawFn,
    rewards: st.SearchStrategy[float] = REWARDS,
    max_nodes: int = 14,
    vocabulary: int = 10,
    shared_prompts: bool = False,
) -> list[Tree]:
    """One to five trees of one to three prompts: random shapes, some leaves unscored, only children likely.

    With a small vocabulary turns often begin alike; with `shared_prompts` all roots of a prompt hold the same tokens.
    """
    forest = []
    for _ in range(draw(st.integers(1, 5))):
        nodes = [make_node()]
        for _ in range(draw(st.integers(0, max_nodes))):
            parent = nodes[draw(st.integers(max(0, len(nodes) - 4), len(nodes) - 1))]
            parent["children"].append(make_node(entropy=draw(st.floats(0, 3, width=32))))
            nodes.append(parent["children"][-1])
        for number, node in enumerate(nodes):
            node["tokens"] = [
                (draw(st.integers(0, vocabulary - 1)), number > 0 and draw(st.booleans()), -draw(st.integers(0, 8)) / 4)
                for _ in range(draw(st.integers(0, 3)))
            ]
            node["tokens"] = [
                (token, sampled, logprob if sampled else 0.0) for token, sampled, logprob in node["tokens"]
            ]
            if number and not node["children"] and draw(st.integers(0, 4)):
                node["reward"] = draw(rewards)
        forest.append({"prompt": draw(st.integers(0, 2)), "root": nodes[0]})
    if shared_prompts:
        tokens: dict[int, Any] = {}
        for tree in forest:
            tree["root"]["tokens"] = tokens.setdefault(tree["prompt"], tree["root"]["tokens"])
    return forest


def columns_of(forest: list[Tree], shuffle: Any = None) -> tuple[dict[str, Any], list[Node]]:
    """The core's columns of these trees, and the node of each row; `shuffle` interleaves the trees at random."""
    waiting = [(tree["root"], NO_PARENT, number, 0) for number, tree in enumerate(forest)]
    parent, tree_of, rounds, nodes = [], [], [], []
    while waiting:
        place = shuffle.randrange(len(waiting)) if shuffle else 0
        node, above, number, round_ = waiting.pop(place)
        waiting += [(child, len(nodes), number, round_ + (turn > 0)) for turn, child in enumerate(node["children"])]
        parent.append(above)
        rounds.append(round_)
        tree_of.append(number)
        nodes.append(node)
    tokens = [token for node in nodes for token in node["tokens"]]
    is_open = [bool(node["children"]) or above == NO_PARENT for node, above in zip(nodes, parent, strict=True)]
    columns = {
        "prompt": np.array([tree["prompt"] for tree in forest], dtype=np.uint32),
        "parent": np.array(parent, dtype=np.uint32),
        "tree": np.array(tree_of, dtype=np.uint32),
        "status": np.array([NodeStatus.OPEN if inner else NodeStatus.DONE for inner in is_open], dtype=np.uint8),
        "reward": np.array([np.nan if node["reward"] is None else node["reward"] for node in nodes], dtype=np.float64),
        "entropy": np.array([node["entropy"] for node in nodes], dtype=np.float64),
        "round": np.array(rounds, dtype=np.uint32),
        "confidence": np.array([-node["entropy"] for node in nodes], dtype=np.float64),
        "state_key": np.array([node.get("state_key", 0) for node in nodes], dtype=np.uint64),
        "token_start": np.cumsum([0] + [len(node["tokens"]) for node in nodes], dtype=np.uint64),
        "token_ids": np.array([token for token, _, _ in tokens], dtype=np.uint32),
        "sampled": np.array([sampled for _, sampled, _ in tokens], dtype=np.bool_),
        "tool_call": np.array([in_call(token) for token in tokens], dtype=np.bool_),
        "logprobs": np.array([logprob for _, _, logprob in tokens], dtype=np.float32),
        "entropies": np.array([token % 4 if sampled else np.nan for token, sampled, _ in tokens], dtype=np.float32),
    }
    return columns, nodes


def forest_of(forest: list[Tree], shuffle: Any = None) -> tuple[Forest, list[Node]]:
    columns, nodes = columns_of(forest, shuffle)
    return Forest.from_columns(**columns), nodes


NORMALISER = st.fixed_dictionaries(
    {
        "center": st.sampled_from(["mean", "loo"]),
        "scale": st.sampled_from(["none", "std", "bernoulli", 0.5]),
        "ddof": st.sampled_from([0, 1]),
        "eps": st.sampled_from([0.0, 1e-6, 0.1]),
    }
)
SINGLETON = st.sampled_from(["zero", "raw"])
VALUE = st.one_of(
    st.sampled_from([{"value": rule} for rule in ("leaf-mean", "child-mean", "max")]),
    st.builds(lambda kappa: {"value": "smoothed", "kappa": kappa}, st.sampled_from([0.0, 0.5, 3.0])),
    st.builds(lambda tau: {"value": "child-softmax", "tau": tau}, st.sampled_from([0.3, 1.0])),
)
ESTIMATORS = ["grpo", "tree-grpo", "ancestor", "redistribute", "parent", "sibling", "global-local", "depth"]
"""Those that compare rewards alone: neither tokens nor rounds."""

ROOTS = st.sampled_from(["shared", "tree"])


@st.composite
def scorings(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """An estimator with all its options."""
    estimator = draw(st.sampled_from(ESTIMATORS))
    if estimator == "ancestor":
        return estimator, {"weight": draw(st.sampled_from(["equal", "leaves"]))}
    if estimator == "redistribute":
        base = draw(st.sampled_from(["grpo", "tree-grpo"]))
        return estimator, {"base": base} | draw(leaf_options(base))
    if estimator in ("grpo", "tree-grpo"):
        return estimator, draw(leaf_options(estimator))
    common = {"roots": draw(ROOTS)} | draw(VALUE)
    if estimator in ("sibling", "depth"):
        return estimator, common | draw(NORMALISER)
    if estimator == "global-local":
        weights = st.sampled_from([0.0, 1.0, 0.3])
        return estimator, common | {"global": draw(weights), "local": draw(weights), "q": draw(weights)}
    return estimator, common | {
        "scale": draw(st.sampled_from(["none", "std"])),
        "ddof": draw(st.sampled_from([0, 1])),
        "eps": draw(st.sampled_from([0.0, 1e-6])),
    }


@st.composite
def leaf_options(draw: st.DrawFn, estimator: str) -> dict[str, Any]:
    """All options of `grpo` or `tree-grpo`."""
    options = draw(NORMALISER) | {"singleton": draw(SINGLETON)}
    if estimator == "grpo":
        return options
    variants = ["sum", "intra_only"] + ["two_norm"] * (options["scale"] != "bernoulli")  # its input is normalised
    return options | {
        "variant": draw(st.sampled_from(variants)),
        "inter": draw(st.sampled_from([0.0, 1.0, 0.3])),
        "intra": draw(st.sampled_from([1.0, 2.0])),
    }
