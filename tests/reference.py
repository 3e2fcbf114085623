"""Tree-GRPO the naive way: dicts, recursion and Python floats, written from the definitions and kept for ever.

A tree is a dict: `prompt`, and `root`, a node. A node is a dict: `children` (list of nodes), `reward` (float or
None), `entropy` (float or None), `tokens` (list of (token_id, sampled, logprob)). `score` returns, for each
node by `id()`, what the tree file shows: depth, num_leaves, value, advantage; and A(l) of each scored leaf.
"""

import math
from typing import Any

Node = dict[str, Any]
Tree = dict[str, Any]
FLAT = 1e-8


def walk(node: Node) -> list[Node]:
    """A node and all nodes below it."""
    return [node] + [below for child in node["children"] for below in walk(child)]


def in_call(token: tuple[int, bool, float]) -> bool:
    """Whether a token of the test's forests is part of a tool call: sampled, and odd."""
    token_id, sampled, _ = token
    return sampled and token_id % 2 == 1


def scored_leaves(node: Node) -> list[Node]:
    """L(n)."""
    return [below for below in walk(node) if below["reward"] is not None]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def std(values: list[float], ddof: int) -> float:
    return math.sqrt(math.fsum((x - mean(values)) ** 2 for x in values) / (len(values) - ddof))


def normalise(
    values: list[float],
    center: str = "mean",
    scale: str | float = "std",
    ddof: int = 1,
    eps: float = 1e-6,
    singleton: str = "zero",
) -> list[float]:
    """N(x) of one group."""
    if scale == "bernoulli" and not all(0 <= x <= 1 for x in values):
        raise ValueError("bernoulli")
    k = len(values)
    if k < 2:
        return list(values) if singleton == "raw" else [0.0] * k
    if max(values) - min(values) <= FLAT:
        return [0.0] * k
    mu = mean(values)
    centred = [x - ((mu * k - x) / (k - 1) if center == "loo" else mu) for x in values]
    if scale == "none":
        divisor = 1.0
    elif scale == "std":
        divisor = std(values, ddof) + eps
    elif scale == "bernoulli":
        divisor = math.sqrt(mu * (1 - mu))
    else:
        divisor = float(scale)
    return [x / divisor for x in centred]


def siblings_below(node: Node, trees: list[Tree], roots: str) -> list[Node]:
    """C(n); the first turns of all the prompt's trees where n is a root and roots are shared."""
    if roots == "shared" and any(node is tree["root"] for tree in trees):
        return [child for tree in trees for child in tree["root"]["children"]]
    return node["children"]


def leaves_below(node: Node, trees: list[Tree], roots: str) -> list[Node]:
    if roots == "shared" and any(node is tree["root"] for tree in trees):
        return [leaf for tree in trees for leaf in scored_leaves(tree["root"])]
    return scored_leaves(node)


def value_of(node: Node, trees: list[Tree], options: dict[str, Any], above: float | None = None) -> float | None:
    """V(n) by the rule `options["value"]`; `above` is V(p(n)), which only `smoothed` needs."""
    rule, roots = options["value"], options["roots"]
    leaves = [leaf["reward"] for leaf in leaves_below(node, trees, roots)]
    if not leaves:
        return None
    if rule == "leaf-mean" or (rule == "smoothed" and above is None):
        return mean(leaves)
    if rule == "smoothed":
        return (math.fsum(leaves) + options["kappa"] * above) / (len(leaves) + options["kappa"])
    if node["reward"] is not None:
        return float(node["reward"])
    children = [child for child in siblings_below(node, trees, roots) if scored_leaves(child)]
    values = [value_of(child, trees, options) for child in children]
    if rule == "child-mean":
        return mean(values)  # type: ignore[arg-type]
    if rule == "max":
        return max(values)  # type: ignore[type-var]
    weights = [math.exp(child["entropy"] / options["tau"]) for child in children]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)  # type: ignore[operator]


def values_of(trees: list[Tree], options: dict[str, Any]) -> dict[int, float | None]:
    """V of every node; null where no scored leaf is below it, roots included."""
    values: dict[int, float | None] = {}

    def visit(node: Node, above: float | None) -> None:
        own = value_of(node, trees, options, above)
        values[id(node)] = own if scored_leaves(node) else None
        for child in node["children"]:
            visit(child, own)

    for tree in trees:
        visit(tree["root"], None)
    return values


def normalised(leaves: list[Node], x: dict[int, float], norm: dict[str, Any]) -> dict[int, float]:
    result = normalise([x[id(leaf)] for leaf in leaves], **norm)
    return {id(leaf): a for leaf, a in zip(leaves, result, strict=True)}


def leaf_advantages(trees: list[Tree], estimator: str, options: dict[str, Any]) -> dict[int, float]:
    """A(l) of `grpo`, `tree-grpo` and `ancestor` for one prompt's trees."""
    if estimator == "ancestor":
        return {key: a for tree in trees for key, a in against_ancestors(tree["root"], [], options["weight"]).items()}
    norm = {name: options[name] for name in ("center", "scale", "ddof", "eps", "singleton")}
    leaves = [leaf for tree in trees for leaf in scored_leaves(tree["root"])]
    rewards = {id(leaf): leaf["reward"] for leaf in leaves}
    if estimator == "grpo":
        return normalised(leaves, rewards, norm)

    def per_tree(x: dict[int, float]) -> dict[int, float]:
        result: dict[int, float] = {}
        for tree in trees:
            result |= normalised(scored_leaves(tree["root"]), x, norm)
        return result

    if options["variant"] == "intra_only":
        return per_tree(rewards)
    if options["variant"] == "two_norm":
        return per_tree(normalised(leaves, rewards, norm))
    inter, intra = normalised(leaves, rewards, norm), per_tree(rewards)
    return {key: options["inter"] * inter[key] + options["intra"] * intra[key] for key in inter}


def against_ancestors(node: Node, above: list[Node], weight: str) -> dict[int, float]:
    """A(l) of `ancestor` at and below a node."""
    if node["reward"] is not None:
        branching = [scored_leaves(ancestor) for ancestor in above if len(scored_leaves(ancestor)) > 1]
        weights = [len(leaves) if weight == "leaves" else 1 for leaves in branching]
        against = [node["reward"] - mean([leaf["reward"] for leaf in leaves]) for leaves in branching]
        total = math.fsum(w * a for w, a in zip(weights, against, strict=True))
        return {id(node): total / sum(weights) if weights else 0.0}
    below = [against_ancestors(child, [*above, node], weight) for child in node["children"]]
    return {key: a for advantages in below for key, a in advantages.items()}


def redistributed(trees: list[Tree], options: dict[str, Any]) -> dict[int, float]:
    """A(n) of `redistribute`."""
    of_leaf = leaf_advantages(trees, options["base"], options)
    nodes = [node for tree in trees for node in walk(tree["root"]) if scored_leaves(node)]
    return {id(node): mean([of_leaf[id(leaf)] for leaf in scored_leaves(node)]) for node in nodes}


def global_local(trees: list[Tree], options: dict[str, Any]) -> dict[int, float]:
    values, advantages = values_of(trees, options), {}

    def visit(node: Node, root: float, above: float) -> None:
        own, num_leaves = values[id(node)], len(scored_leaves(node))
        if own is not None:
            whole = options["global"] * (own - root) + options["local"] * (own - above)
            advantages[id(node)] = whole / num_leaves ** options["q"]
            for child in node["children"]:
                visit(child, root, own)

    for tree in trees:
        root = values[id(tree["root"])]
        for child in tree["root"]["children"] if root is not None else []:
            visit(child, root, root)
    return advantages


def by_depth(trees: list[Tree], options: dict[str, Any]) -> dict[int, float]:
    values = values_of(trees, options)
    norm = {name: options[name] for name in ("center", "scale", "ddof", "eps")}
    advantages: dict[int, float] = {}

    def level(nodes: list[Node]) -> None:
        below = [child for node in nodes for child in node["children"]]
        valued = [child for child in below if values[id(child)] is not None]
        result = normalise([values[id(child)] for child in valued], **norm)  # type: ignore[misc]
        advantages.update({id(child): a for child, a in zip(valued, result, strict=True)})
        if below:
            level(below)

    roots = [tree["root"] for tree in trees]
    for together in [roots] if options["roots"] == "shared" else [[root] for root in roots]:
        level(together)
    return advantages


def node_advantages(trees: list[Tree], estimator: str, options: dict[str, Any]) -> dict[int, float]:
    """A(n), for nodes below the roots that have a value."""
    others = {"redistribute": redistributed, "global-local": global_local, "depth": by_depth}
    if estimator in others:
        return others[estimator](trees, options)
    values = values_of(trees, options)
    advantages: dict[int, float] = {}

    def family(parent: Node, children: list[Node], above: float) -> None:
        valued = [child for child in children if values[id(child)] is not None]
        own = [values[id(child)] for child in valued]
        if estimator == "sibling":
            norm = {name: options[name] for name in ("center", "scale", "ddof", "eps")}
            result = normalise(own, **norm)  # type: ignore[arg-type]
        else:
            result = [x - above for x in own]  # type: ignore[operator]
            if options["scale"] == "std":
                flat = len(own) < 2 or max(own) - min(own) <= FLAT  # type: ignore[type-var, operator]
                divisor = math.inf if flat else std(own, options["ddof"]) + options["eps"]  # type: ignore[arg-type]
                result = [x / divisor for x in result]
        advantages.update({id(child): a for child, a in zip(valued, result, strict=True)})

    for tree in trees:
        for node in walk(tree["root"]):
            if node is tree["root"] and options["roots"] == "shared":
                continue
            if values[id(node)] is not None:
                family(node, node["children"], values[id(node)])  # type: ignore[arg-type]
    if options["roots"] == "shared":
        turns = [child for tree in trees for child in tree["root"]["children"]]
        scored = [tree["root"] for tree in trees if values[id(tree["root"])] is not None]
        if scored:
            family(scored[0], turns, values[id(scored[0])])  # type: ignore[arg-type]
    return advantages


LEAF_LEVEL = ("grpo", "tree-grpo", "ancestor")
LEAF_MEAN = {"value": "leaf-mean", "roots": "tree"}


def score_terms(trees: list[Tree], terms: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Score by a sum of terms, each an `estimator`, a `weight` and all `options`.

    `unmasked_*` are of those without a `mask`.
    """
    parts = [(term["weight"], score(trees, term["estimator"], term["options"])) for term in terms]
    node_level = [part for term, (_, part) in zip(terms, parts, strict=True) if term["estimator"] not in LEAF_LEVEL]

    everywhere = [part for term, part in zip(terms, parts, strict=True) if "mask" not in term]

    def total(of: list[tuple[float, Any]], key: int, column: str) -> float | None:
        known = [weight * part[key][column] for weight, part in of if part[key][column] is not None]
        return math.fsum(known) if known else None

    return {
        key: (node_level or [parts[0][1]])[0][key]
        | {column: total(parts, key, column) for column in ("advantage", "leaf_advantage", "node_advantage")}
        | {f"unmasked_{column}": total(everywhere, key, column) for column in ("leaf_advantage", "node_advantage")}
        for key in parts[0][1]
    }


def score(trees: list[Tree], estimator: str, options: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Score trees of any number of prompts; `options` are all of the estimator's."""
    result: dict[int, dict[str, Any]] = {}
    for prompt in dict.fromkeys(tree["prompt"] for tree in trees):
        group = [tree for tree in trees if tree["prompt"] == prompt]
        leaf_level = estimator in LEAF_LEVEL
        if leaf_level:
            of_leaf = leaf_advantages(group, estimator, options)
            values = values_of(group, LEAF_MEAN)
            advantages = {
                id(node): mean([of_leaf[id(leaf)] for leaf in scored_leaves(node)])
                for tree in group
                for node in walk(tree["root"])
                if scored_leaves(node)
            }
        else:
            of_leaf = {}
            values = values_of(group, options if "value" in options else LEAF_MEAN)
            advantages = node_advantages(group, estimator, options)
        for tree in group:
            _show(tree["root"], 0, values, advantages, of_leaf, result)
            root = result[id(tree["root"])]
            root["advantage"] = 0.0 if root["num_leaves"] else None
            for node in walk(tree["root"]):
                result[id(node)]["node_advantage"] = None if leaf_level else result[id(node)]["advantage"]
    return result


def _show(
    node: Node,
    depth: int,
    values: dict[int, float | None],
    advantages: dict[int, float],
    of_leaf: dict[int, float],
    result: dict[int, dict[str, Any]],
) -> None:
    result[id(node)] = {
        "depth": depth,
        "num_leaves": len(scored_leaves(node)),
        "value": values[id(node)],
        "advantage": advantages.get(id(node)),
        "leaf_advantage": of_leaf.get(id(node)),
    }
    for child in node["children"]:
        _show(child, depth + 1, values, advantages, of_leaf, result)


def anchored(trees: list[Tree], options: dict[str, Any]) -> dict[int, float]:
    """a(n) of `anchor`: turns of a prompt that were taken in an equal state, by their discounted returns.

    A state is known by a node's `state_key`, which is not 0, or by the observation before it.
    """
    norm = {name: options[name] for name in ("center", "scale", "ddof", "eps", "singleton")}
    groups: dict[Any, list[tuple[Node, float]]] = {}

    def returned(node: Node, depth: int) -> list[float]:
        """discount^(turns) R of each scored leaf below, `depth` turns down."""
        own = [] if node["reward"] is None else [options["discount"] ** depth * node["reward"]]
        return own + [x for child in node["children"] for x in returned(child, depth + 1)]

    def visit(node: Node) -> None:
        last = max((place for place, (_, sampled, _) in enumerate(node["tokens"]) if sampled), default=-1)
        observation = tuple(token for token, _, _ in node["tokens"][last + 1 :])
        for child in node["children"]:
            if scored_leaves(child):
                state = child.get("state_key") or observation
                groups.setdefault(state, []).append((child, mean(returned(child, 0))))
            visit(child)

    for tree in trees:
        visit(tree["root"])
    return {
        id(node): options["weight"] * a
        for group in groups.values()
        for (node, _), a in zip(group, normalise([x for _, x in group], **norm), strict=True)
    }


def on_the_way(scores: dict[int, dict[str, Any]], node: Node, leaf: Node, of: str = "") -> float:
    """A(l) + a(n), of all terms or of those `unmasked_`."""
    parts = scores[id(leaf)][f"{of}leaf_advantage"], scores[id(node)][f"{of}node_advantage"]
    return math.fsum(part for part in parts if part is not None)


def chain_rows(
    trees: list[Tree], scores: dict[int, dict[str, Any]], prefix_weight: float
) -> dict[int, list[tuple[int, bool, float, float, float]]]:
    """Leaf -> its row: (token_id, sampled, logprob, advantage, weight) for each token from root to leaf."""
    rows: dict[int, list[tuple[int, bool, float, float, float]]] = {}

    def visit(node: Node, path: list[Node]) -> None:
        path = [*path, node]
        if node["reward"] is not None:
            rows[id(node)] = [
                (
                    *token,
                    on_the_way(scores, step, node, "" if in_call(token) else "unmasked_"),
                    scores[id(step)]["num_leaves"] ** (prefix_weight - 1),
                )
                for step in path
                for token in step["tokens"]
            ]
        for child in node["children"]:
            visit(child, path)

    for tree in trees:
        visit(tree["root"], [])
    return rows
