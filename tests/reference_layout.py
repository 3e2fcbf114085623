"""The training layout the naive way: a dictionary a token, recursion, lists. Kept for ever beside `rust/pack.rs`.

A *vertex* is one computed token. Paths that begin with the same tokens share vertices; depth-first order, children
in the order in which they were made. A *turn* keeps its targets: the vertices of its sampled tokens, which the
vertex above each predicts, however many turns share those vertices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.reference import Node, Tree, in_call


@dataclass(eq=False)
class Vertex:
    token: int
    parent: Vertex | None
    position: int
    children: dict[Any, Vertex] = field(default_factory=dict)
    index: int = -1
    end: int = -1  # first index behind the tokens below


class Credit(NamedTuple):
    gain: float
    penalty: float
    weight: float
    gain_weight: float  # the part of the weight of leaves with A > 0, and of those with A < 0
    penalty_weight: float


Target = tuple[Vertex, float, bool]
"""A sampled token's vertex, its sampling log-probability, whether it is part of a tool call."""


@dataclass(eq=False)
class Turn:
    end: Vertex | None
    targets: list[Target]
    inside: Credit  # of the tokens of tool calls, and of the others
    outside: Credit
    row: int | None = None

    @property
    def weight(self) -> float:
        assert self.inside.weight == self.outside.weight
        return self.inside.weight


@dataclass
class Layout:
    vertices: list[Vertex]
    turns: list[Turn]
    path_tokens: list[int]
    shared: bool


def scored_leaves(node: Node) -> list[Node]:
    if node["reward"] is not None:
        return [node]
    return [leaf for child in node["children"] for leaf in scored_leaves(child)]


def path_of(node: Node, target: Node) -> list[Node] | None:
    if node is target:
        return [node]
    for child in node["children"]:
        below = path_of(child, target)
        if below is not None:
            return [node, *below]
    return None


def num_trained(path: list[Node]) -> int:
    """The sampled tokens of a row, but for one at its very start, which nothing predicts."""
    sampled = [sampled for node in path for _, sampled, _ in node["tokens"]]
    return sum(sampled[1:])


def layout(
    forest: list[Tree],
    nodes: list[Node],
    advantage: Any,
    p: float,
    shared: bool,
    row_mean: bool = False,
    weight: Any = None,
    unmasked: Any = None,
) -> Layout:
    """Lay out the trees of `forest`; `nodes` is the order of node ids, `advantage(node, leaf)` is A(l) + a(n).

    `unmasked(node, leaf)` is the same for tokens that are part of no tool call, where that is something else.
    With `row_mean` a token of a row of T trained tokens counts 1/T. `weight(node)` stands in place of |L|^p.
    """
    top: dict[Any, Vertex] = {}
    parent_of = {id(child): node for node in nodes for child in node["children"]}
    turns: list[Turn] = []

    def walk(node: Node, above: Vertex | None, key: Any) -> tuple[Vertex | None, list[Target]]:
        """Put a node's tokens below `above`; vertices are shared where `key` and token are equal."""
        at, targets = above, []
        for token, sampled, logprob in node["tokens"]:
            children = top if at is None else at.children
            place = (key, token)
            if place not in children:
                children[place] = Vertex(token, at, 0 if at is None else at.position + 1)
            at = children[place]
            if sampled and at.parent is not None:
                targets.append((at, logprob, in_call((token, sampled, logprob))))
        return at, targets

    def parts(node: Node, of: list[Node]) -> tuple[Credit, Credit]:
        """Of tool calls, and of the rest."""
        return credit(node, of, advantage), credit(node, of, unmasked or advantage)

    def credit(node: Node, of: list[Node], advantage: Any) -> Credit:
        """S+ and S- over these leaves, and |L|^p, all as the rows of these leaves share them."""
        whole = len(scored_leaves(node)) ** p if weight is None else weight(node)
        share = whole / len(scored_leaves(node))
        rows = [(share / (num_trained(path(leaf)) or math.inf) if row_mean else share, leaf) for leaf in of]
        values = [(part, advantage(node, leaf)) for part, leaf in rows]
        return Credit(
            sum(part * max(a, 0.0) for part, a in values),
            sum(part * min(a, 0.0) for part, a in values),
            sum(part for part, _ in values),
            sum(part for part, a in values if a > 0),
            sum(part for part, a in values if a < 0),
        )

    path_tokens = []
    leaves = [node for node in nodes if node["reward"] is not None]
    roots = {id(tree["root"]): tree["root"] for tree in forest}

    def path(node: Node) -> list[Node]:
        return [node] if id(node) in roots else [*path(parent_of[id(node)]), node]

    for leaf in leaves:
        path_tokens.append(sum(len(node["tokens"]) for node in path(leaf)))
    if shared:
        ends: dict[int, Vertex | None] = {}
        for node in nodes:
            of = scored_leaves(node)
            if not of:
                continue
            above = None if id(node) in roots else ends[id(parent_of[id(node)])]
            ends[id(node)], targets = walk(node, above, None)
            if targets:
                turns.append(Turn(ends[id(node)], targets, *parts(node, of)))
    else:
        longest_first = sorted(range(len(leaves)), key=lambda i: -path_tokens[i])
        for row, number in enumerate(longest_first):
            at = None
            for node in path(leaves[number]):
                at, targets = walk(node, at, row)
                if targets:
                    turns.append(Turn(at, targets, *parts(node, [leaves[number]]), row=row))
    vertices: list[Vertex] = []

    def flatten(vertex: Vertex) -> None:
        vertex.index = len(vertices)
        vertices.append(vertex)
        for child in vertex.children.values():
            flatten(child)
        vertex.end = len(vertices)

    for vertex in top.values():
        flatten(vertex)
    return Layout(vertices, turns, path_tokens, shared)


def run_starts(layout: Layout) -> list[int]:
    """Where a maximal root-down run begins: the token's parent is not the one in front of it."""
    return [v.index for v in layout.vertices if v.parent is None or v.parent.index != v.index - 1]


def micro_batch_ranges(layout: Layout, max_tokens: int) -> list[tuple[int, int]]:
    """Which tokens each micro-batch owns, [first, behind): whole runs in depth-first order.

    Shared: a run is added while the batch, the path above its first run included, holds `max_tokens`; a batch is
    closed early where the subtree that begins at the next run fits a batch of its own but not this one.
    Rows: as many as fit with their padding. A run or row that is longer than `max_tokens` goes alone.
    """
    vertices = layout.vertices
    if not vertices:
        return []
    starts = run_starts(layout)
    ranges: list[tuple[int, int]] = []
    first = 0
    for start, end in zip(starts, [*starts[1:], len(vertices)], strict=True):
        if start > first:
            if layout.shared:
                used = vertices[first].position + start - first
                subtree = vertices[start].end - start
                alone = vertices[start].position + subtree
                full = used + (end - start) > max_tokens or used + subtree > max_tokens >= alone
            else:
                longest = vertices[first].end - first
                rows = sum(first <= other <= start for other in starts)
                full = longest * rows > max_tokens
            if full:
                ranges.append((first, start))
                first = start
    return [*ranges, (first, len(vertices))]


def micro_batch(layout: Layout, first: int, behind: int) -> dict[str, Any]:
    """The columns of one micro-batch: the path above its first token computed again, then the tokens it owns.

    A turn is trained in the batch that owns its last token, where all of its path is present.
    """
    vertices = layout.vertices
    context: list[Vertex] = []
    above = vertices[first].parent
    while above is not None:
        context.insert(0, above)
        above = above.parent
    tokens = [*context, *vertices[first:behind]]
    local = {vertex.index: number for number, vertex in enumerate(tokens)}
    turns = [turn for turn in layout.turns if turn.end is not None and first <= turn.end.index < behind]
    targets = sorted(
        (local[vertex.parent.index], number, t)
        for number, turn in enumerate(turns)
        for t, (vertex, *_) in enumerate(turn.targets)
    )
    predictors = sorted({predictor for predictor, _, _ in targets})
    trained = [(number, *turns[number].targets[t]) for _, number, t in targets]
    credits = [turns[number].inside if is_call else turns[number].outside for number, _, _, is_call in trained]
    return {
        "num_context": len(context),
        "token_ids": [v.token for v in tokens],
        "positions": [v.position for v in tokens],
        "parent_token": [None if v.parent is None else local[v.parent.index] for v in tokens],
        "subtree_end": [len(context) + min(v.end, behind) - first for v in tokens],
        "predictors": predictors,
        "target_row": [predictors.index(predictor) for predictor, _, _ in targets],
        "target_ids": [vertex.token for _, vertex, _, _ in trained],
        "logprobs": [logprob for _, _, logprob, _ in trained],
        "gain": [credit.gain for credit in credits],
        "penalty": [credit.penalty for credit in credits],
        "weights": [credit.weight for credit in credits],
        "gain_weights": [credit.gain_weight for credit in credits],
        "penalty_weights": [credit.penalty_weight for credit in credits],
        "turn": [number for number, *_ in trained],
        "row": None if layout.shared else [turns[number].row for number, *_ in trained],
    }


def visible(batch: dict[str, Any]) -> list[list[bool]]:
    """Whether query q sees key k: k lies on q's path, q included."""

    def path(token: int | None) -> set[int]:
        return set() if token is None else {token} | path(batch["parent_token"][token])

    num = len(batch["token_ids"])
    paths = [path(q) for q in range(num)]
    return [[k in paths[q] for k in range(num)] for q in range(num)]
