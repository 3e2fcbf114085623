"""Whatever the core is given, it answers or raises; it never panics, and what it accepts it can work with."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli._core import NO_PARENT, Forest, derive_seed, estimators, keep_leaves, select_uniform

SMALL = st.integers(0, 4)
ID = SMALL | st.sampled_from([NO_PARENT, NO_PARENT - 1, 2**31])
NUMBER = st.sampled_from([0.0, 1.0, -0.5, 1e-300, 1e308, -1e308, np.inf, -np.inf, np.nan, np.nan, np.nan])
LOGPROB = st.sampled_from([0.0, -0.5, 3e38, -np.inf, np.nan])
OFFSET = SMALL | st.sampled_from([2**32, 2**63, 2**64 - 1])
INTEGER = st.integers(-(2**70), 2**70) | SMALL
REFUSED = (ValueError, TypeError)


def column(entries: st.SearchStrategy[Any], dtype: Any) -> st.SearchStrategy[Any]:
    return st.lists(entries, max_size=5).map(lambda values: np.array(values, dtype=dtype))


def flags() -> st.SearchStrategy[Any]:
    return column(st.integers(0, 255), np.uint8).map(lambda array: array.view(np.bool_))


TREES = st.fixed_dictionaries(
    {
        "prompt": column(ID, np.uint32),
        "parent": column(ID, np.uint32),
        "tree": column(SMALL, np.uint32),
        "status": column(st.sampled_from([0, 0, 0, 1, 1, 2, 5, 255]), np.uint8),
        "reward": column(NUMBER, np.float64),
    },
    optional={
        "policy_version": column(ID, np.uint32),
        "entropy": column(NUMBER, np.float64),
        "token_start": column(OFFSET, np.uint64),
        "token_ids": column(ID, np.uint32),
        "sampled": flags(),
        "logprobs": column(LOGPROB, np.float32),
    },
)
CHAINS = st.fixed_dictionaries(
    {
        "row_start": column(OFFSET, np.uint64).map(np.sort),
        "token_ids": column(SMALL, np.uint32),
        "sampled": flags(),
        "prompt": column(SMALL, np.uint32),
        "reward": column(NUMBER, np.float64),
    },
    optional={
        "logprobs": column(LOGPROB, np.float32),
        "status": column(st.integers(0, 6), np.uint8),
        "policy_version": column(SMALL, np.uint32),
        "logprob_tolerance": NUMBER,
    },
)


@st.composite
def valid_trees(draw: st.DrawFn) -> dict[str, Any]:
    """Two trees whose links hold, with whatever numbers."""
    num = draw(st.integers(2, 8))
    parent = [NO_PARENT, NO_PARENT, *(draw(st.integers(0, node - 1)) for node in range(2, num))]
    tree = [0, 1]
    for above in parent[2:]:
        tree.append(tree[above])
    leaf = [node > 1 and node not in parent for node in range(num)]
    rewards = [draw(st.sampled_from([0.0, 1.0, 1e308, -1e308, 1e-308, np.nan])) if one else np.nan for one in leaf]
    lengths = [draw(SMALL) for _ in range(num)]
    return {
        "prompt": np.array([draw(SMALL), draw(ID)], dtype=np.uint32),
        "parent": np.array(parent, dtype=np.uint32),
        "tree": np.array(tree, dtype=np.uint32),
        "status": np.array(leaf, dtype=np.uint8),
        "reward": np.array(rewards),
        "entropy": np.array([draw(st.sampled_from([0.0, 1e308, -1e308, np.nan])) for _ in range(num)]),
        "token_start": np.cumsum([0, *lengths]).astype(np.uint64),
        "token_ids": np.array([draw(SMALL) for _ in range(sum(lengths))], dtype=np.uint32),
        "sampled": np.array([draw(st.integers(0, 255)) for _ in range(sum(lengths))], dtype=np.uint8).view(np.bool_),
        "logprobs": np.array([draw(LOGPROB) for _ in range(sum(lengths))], dtype=np.float32),
    }


OPTION = st.sampled_from(
    [
        0,
        1,
        1e-320,
        1e308,
        -1,
        True,
        "std",
        "none",
        "bernoulli",
        "loo",
        "max",
        "smoothed",
        "child-softmax",
        "raw",
        "tree",
    ]
)
NAMES = ["center", "scale", "ddof", "eps", "singleton", "variant", "inter", "intra", "roots", "value", "kappa", "tau"]
OPTIONS = st.dictionaries(st.sampled_from(NAMES), OPTION, max_size=3)


@settings(max_examples=400, deadline=None)
@given(columns=TREES)
def test_columns_that_do_not_fit_are_refused(columns: dict[str, Any]) -> None:
    try:
        forest = Forest.from_columns(**columns)
    except REFUSED:
        return
    use(forest, "parent", {})


@settings(max_examples=400, deadline=None)
@given(chains=CHAINS)
def test_rows_that_do_not_fit_are_refused(chains: dict[str, Any]) -> None:
    try:
        forest, leaf = Forest.from_chains(**chains)
    except REFUSED:
        return
    assert len(leaf) == len(chains["prompt"])
    use(forest, "tree-grpo", {})


@settings(max_examples=600, deadline=None)
@given(columns=valid_trees(), estimator=st.sampled_from(estimators()), options=OPTIONS)
def test_a_score_is_finite_or_refused(columns: dict[str, Any], estimator: str, options: dict[str, Any]) -> None:
    use(Forest.from_columns(**columns), estimator, options)


def use(forest: Forest, estimator: str, options: dict[str, Any]) -> None:
    """Do everything with a forest that was accepted."""
    joined = Forest.concat([forest, forest])
    assert joined.num_nodes == 2 * forest.num_nodes
    forest.leaf_columns()
    try:
        scores = joined.score(estimator, options)
    except REFUSED:
        return
    scored = scores.num_leaves > 0
    assert np.isfinite(scores.advantage[scored]).all()
    assert np.isfinite(scores.value[scored]).all()
    joined.chain_rows(scores)
    for node in range(joined.num_nodes):
        scores.explain(node)
    for shared in (True, False):
        for weight in (0.0, 1.0, 1e300):
            try:
                layout = joined.pack(scores, weight, shared=shared)
            except REFUSED:
                continue
            for max_tokens in (1, 3, 2**63):
                layout.micro_batches(max_tokens)


@settings(max_examples=300, deadline=None)
@given(first=INTEGER, second=INTEGER, replacement=st.booleans(), key=st.lists(INTEGER, max_size=3))
def test_draws_of_any_numbers_are_made_or_refused(first: int, second: int, replacement: bool, key: list[int]) -> None:
    for call in (
        lambda: select_uniform(first, second, replacement, key),
        lambda: keep_leaves(first, second, key),
        lambda: derive_seed(key),
        lambda: Forest().path(first),
        lambda: Forest().add_tree(first, np.zeros(0, np.uint32)),
    ):
        try:
            call()
        except ValueError:
            continue
