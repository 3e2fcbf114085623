"""A Ray cluster of this machine that the tests of a module share."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from treegrpo_cli.config import Config


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture(scope="module")
def handlers_before() -> list[Any]:
    """What signals do before Ray is there."""
    return handlers()


@pytest.fixture(scope="module")
def ray_cluster(handlers_before: list[Any]) -> Iterator[list[str]]:
    """One cluster for a module: starting one takes seconds. Yields the lines that were said."""
    from treegrpo_cli.scale.cluster import open_cluster

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with open_cluster(Config(), said.append):
            yield said
