"""One headless Chromium for the tests of this folder, and pages that may not err, run texts or use a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.page.browser import Watch, launched

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, for all tests of this folder."""
    with launched() as started:
        yield started


@pytest.fixture
def watch(browser: Browser) -> Iterator[Watch]:
    """Opens pages; the test fails at its end where one of them erred, ran what it showed, or asked for a network."""
    opened = Watch(browser)
    yield opened
    opened.close()
