"""A Ray cluster of this machine that the tests of a module share."""

from collections.abc import Iterator

import pytest
from treegrpo_cli.config import Config


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[list[str]]:
    """One cluster for a module: starting one takes seconds. Yields the lines that were said."""
    from treegrpo_cli.scale.cluster import open_cluster

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with open_cluster(Config(), said.append):
            yield said
