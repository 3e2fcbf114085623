"""The numpy that benchmarks measure the core against finds what the core finds, also where states merge."""

import numpy as np

from tests.benchmarks.bench_core import estimator_pairs, random_columns, rule_pairs, with_tokens
from tests.benchmarks.numpy_states import States, numbered
from tests.benchmarks.numpy_trees import Trees


def test_every_estimator_and_rule_in_numpy_is_the_cores() -> None:
    columns = with_tokens(random_columns(20_000, 50))
    assert States(Trees(columns)).num < 0.95 * 20_000  # states merge
    assert {"anchor", "causal", "state-loo"} <= set(estimator_pairs(columns))  # compared before they are timed
    assert "contrast" in rule_pairs(columns)


def test_sequences_have_equal_numbers_where_their_tokens_are_equal_however_large() -> None:
    most = 2**32 - 1
    tokens = [(most, 1, most), (most, 1), (most, 1, most), (), (0,), (0, 0), (1, 1, most), (most, 1, 0), ()]
    size = np.array([len(sequence) for sequence in tokens])
    flat = np.array([token for sequence in tokens for token in sequence])
    number = numbered(flat, np.cumsum(size) - size, size).tolist()
    equal = [[a == b for b in number] for a in number]
    assert equal == [[a == b for b in tokens] for a in tokens]
