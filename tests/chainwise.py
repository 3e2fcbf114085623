"""Random trees -> the loss of their rows the naive way: every scored leaf alone through the whole model.

It reads the trees' own dictionaries, the library's logits and Python's idea of a turn, and shares nothing with the
code under test but the advantages. Kept for ever beside the trainer.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.train.resolved_loss import ResolvedLoss

from tests.forests import forest_of, make_node
from tests.reference import Node, Tree, in_call
from tests.reference_layout import path_of, scored_leaves

THINK, OPENING = 3, [3, 4, 5]
"""What turns often begin with: a token, or three."""


def random_trees(seed: int, vocabulary: int, num_turns: int = 8) -> list[Tree]:
    """Return four trees of three prompts, of up to `num_turns` turns each.

    Two share their root, one begins like them and goes on otherwise. Shapes are unbalanced; some turns are single
    tokens, some begin alike or with three equal tokens; observations lie between turns; a leaf has no reward.
    """
    draw = np.random.default_rng(seed)
    question, other = (draw.integers(6, vocabulary, count).tolist() for count in (6, 4))
    prompts = [(0, question), (0, question), (1, question[:4] + other), (2, other)]
    trees: list[Tree] = []
    for prompt, tokens in prompts:
        nodes = [make_node() | {"tokens": [(token, False, 0.0) for token in tokens]}]
        for number in range(num_turns - prompt):
            parent = nodes[-1 if number == 0 or draw.random() < 0.5 else int(draw.integers(len(nodes)))]
            nodes.append(_turn(draw, vocabulary))
            parent["children"].append(nodes[-1])
        trees.append({"prompt": prompt, "root": nodes[0]})
        leaves = [node for node in nodes if not node["children"]]
        for place, leaf in enumerate(leaves):
            leaf["reward"] = float(place % 2) if place < 2 else float(draw.random())
        if prompt == 1:
            leaves[-1]["reward"] = None
    return trees


def _turn(draw: np.random.Generator, vocabulary: int) -> Node:
    count = int(draw.choice([1, 2, 4, 7, 9]))
    opening = [[], [THINK], OPENING][int(draw.integers(3))][:count]
    ids = [*opening, *draw.integers(6, vocabulary, count - len(opening)).tolist()]
    num_sampled = max(1, count * 2 // 3)
    surprise = np.log(vocabulary) + draw.normal(1.0, 2.5) + draw.normal(0.0, 1.5, count)
    logprobs = -np.abs(surprise).astype(np.float32)  # turns and tokens far from the policy's, on both sides
    tokens = [
        (token, place < num_sampled, float(logprob) if place < num_sampled else 0.0)
        for place, (token, logprob) in enumerate(zip(ids, logprobs, strict=True))
    ]
    return make_node() | {"tokens": tokens}


@dataclass
class Rows:
    """Trees, the core's forest of them, its scores, and the node of each of its ids."""

    trees: list[Tree]
    forest: Forest
    nodes: list[Node]
    scores: Scores

    @classmethod
    def of(cls, trees: list[Tree], estimator: str, **options: Any) -> "Rows":
        """With advantages by an estimator, or by the `terms` of a sum, or drawn at random with weights of their own."""
        forest, nodes = forest_of(trees)
        if estimator == "own weights":
            advantage, weight = np.random.default_rng(len(nodes)).normal(size=(2, len(nodes)))
            return cls(trees, forest, nodes, forest.given_scores(advantage, leaf_level=False, weight=abs(weight)))
        terms = options.pop("terms", None)
        return cls(trees, forest, nodes, forest.score(terms or estimator, options))

    def advantages(self, node: Node, leaf: Node) -> list[float]:
        """A(l) + a(n) of each sampled token of the node."""
        whole = self._on_the_way(node, leaf, "")
        rest = whole if self.scores.unmasked_advantage is None else self._on_the_way(node, leaf, "unmasked_")
        return [whole if in_call(token) else rest for token in node["tokens"] if token[1]]

    def advantage(self, node: Node, leaf: Node) -> float:
        """A(l) + a(n) of all its sampled tokens, where no term is masked."""
        return self._on_the_way(node, leaf, "")

    def _on_the_way(self, node: Node, leaf: Node, of: str) -> float:
        ids = {id(node): number for number, node in enumerate(self.nodes)}
        of_leaf, own = (getattr(self.scores, f"{of}{level}_advantage") for level in ("leaf", "node"))
        total = 0.0 if of_leaf is None else float(of_leaf[ids[id(leaf)]])
        return total + (0.0 if own is None else float(own[ids[id(node)]]))

    def weight(self, node: Node, prefix_weight: float) -> float:
        """|L|^p, or the weight of the node's own, shared out to the rows that it stands in."""
        num_leaves, own = len(scored_leaves(node)), self.scores.weight
        if own is None:
            return num_leaves ** (prefix_weight - 1)
        return float(own[next(number for number, other in enumerate(self.nodes) if other is node)]) / num_leaves

    def paths(self) -> list[list[Node]]:
        """The nodes from the root to each scored leaf."""
        found = [path_of(tree["root"], leaf) for tree in self.trees for leaf in scored_leaves(tree["root"])]
        return [path for path in found if path is not None]


@dataclass
class ChainLoss:
    """loss: with a graph to the model's weights · size: the same with every term taken for its absolute value.

    clipped: how many terms of each kind the clip has stopped.
    """

    loss: Tensor
    size: float = 0.0
    clipped: dict[str, int] = field(default_factory=lambda: {"low": 0, "high": 0, "dual": 0})


def chain_loss(model: Any, reference: Any, rows: Rows, settings: ResolvedLoss, temperature: float = 1.0) -> ChainLoss:
    """-(1/Z) sum over rows, turns, tokens of w [v min(rho A, c A) - beta k3 + eta H], as estimators define it.

    A recomputed old policy is the model itself: the update is a step's first.
    """
    result = ChainLoss(torch.zeros(()))
    objective, z = torch.zeros(()), 0.0
    paths = rows.paths()
    for path in paths:
        num_trained = sum(sampled for node in path for _, sampled, _ in node["tokens"])
        ids = torch.tensor([[token for node in path for token, _, _ in node["tokens"]]])
        log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0] / temperature, dim=-1)
        log_ref = None
        if reference is not None:
            with torch.no_grad():
                log_ref = torch.log_softmax(reference(input_ids=ids, use_cache=False).logits[0] / temperature, dim=-1)
        end = 0
        for node in path:
            start, end = end, end + len(node["tokens"])
            at = [start + place for place, (_, sampled, _) in enumerate(node["tokens"]) if sampled]
            if not at:
                continue
            weight = rows.weight(node, settings.prefix_weight)
            weight /= num_trained if settings.denominator == "sequence-mean" else 1
            terms = _turn_terms(log_p, log_ref, ids[0], at, node, rows.advantages(node, path[-1]), settings, result)
            objective = objective + weight * terms.sum()
            result.size += float(weight * terms.detach().abs().sum())
            z += weight * len(at)
    if settings.denominator != "token-mean":
        z = len(paths) * (settings.denominator_constant if settings.denominator == "constant" else 1)
    result.loss, result.size = -objective / z, result.size / z
    return result


def _turn_terms(
    log_p: Tensor,
    log_ref: Tensor | None,
    ids: Tensor,
    at: list[int],
    node: Node,
    advantages: list[float],
    settings: ResolvedLoss,
    result: ChainLoss,
) -> Tensor:
    """The terms of one turn's sampled tokens, which stand at the places `at` of the row."""
    before = [place - 1 for place in at]
    logprobs = log_p[before, ids[at]]
    sampling = torch.tensor([logprob for _, sampled, logprob in node["tokens"] if sampled], dtype=logprobs.dtype)
    old = logprobs.detach() if settings.recomputes else sampling
    log_ratio = logprobs - old
    if settings.ratio == "turn":
        log_ratio = log_ratio.mean().expand_as(log_ratio)
    terms = []
    for place, (rho, advantage) in enumerate(zip(log_ratio.exp(), advantages, strict=True)):
        ratio = float(rho.detach())
        clipped = min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high)
        if clipped * advantage < ratio * advantage:
            result.clipped["high" if advantage > 0 else "low"] += 1
            value = torch.tensor(clipped * advantage, dtype=logprobs.dtype)
        elif settings.dual_clip is not None and advantage < 0 and ratio > settings.dual_clip:
            result.clipped["dual"] += 1
            value = torch.tensor(settings.dual_clip * advantage, dtype=logprobs.dtype)
        else:
            value = rho * advantage
        if settings.importance_clip is not None:
            value = value * min(float((old - sampling)[place].exp()), settings.importance_clip)
        if log_ref is not None:
            d = log_ref[before[place], ids[at[place]]] - logprobs[place]
            value = value - settings.kl_coef * (rho if settings.kl_ratio else 1) * (torch.exp(d) - d - 1)
        if settings.entropy_coef:
            distribution = log_p[before[place]]
            value = value - settings.entropy_coef * (distribution.exp() * distribution).sum()
        terms.append(value)
    return torch.stack(terms)
