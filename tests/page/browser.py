"""A headless Chromium without a network, and what its pages must not do: `Watch` collects what went wrong.

Playwright keeps an event loop running in the thread that uses it, so the browser lives no longer than the tests of
this folder (see conftest.py): `asyncio.run` of another folder's tests would fail beside it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CANARY = """
window.ran = [];
window.canary = (what) => window.ran.push(String(what));
window.alert = window.confirm = window.prompt = window.canary;
document.addEventListener("securitypolicyviolation", (event) => window.ran.push("CSP: " + event.violatedDirective));
"""
"""Run in front of every page: hostile texts call `canary` or `alert`, and `ran` must stay empty."""


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser that is closed at the end, whatever happens; without one the test is skipped (see `_lacking`)."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise _lacking(f"none of {', '.join(NAMES)} is on the PATH (apt-get install chromium)")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=path,
                chromium_sandbox=os.geteuid() != 0,  # Chromium's own sandbox does not run as root
                args=["--disable-background-networking", "--disable-dev-shm-usage", "--force-color-profile=srgb"],
            )
        except Exception as error:
            raise _lacking(f"{path} does not start: {error}") from None
        try:
            yield browser
        finally:
            browser.close()


def _lacking(reason: str) -> BaseException:
    """What ends a test without a browser: a failure with `TREEGRPO_REQUIRE_BROWSER=1`, as in CI, else a skip."""
    if os.environ.get("TREEGRPO_REQUIRE_BROWSER") == "1":
        return pytest.fail.Exception(f"no browser: {reason}", pytrace=False)
    return pytest.skip.Exception(f"no browser: {reason}")


class Watch:
    """Opens files in a browser without network, and keeps a list of all that a page must not do."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.problems: list[str] = []

    def open(self, path: Path, fragment: str = "", **options: Any) -> Page:
        """Open a file in a window of its own; `options` are those of `Browser.new_context`."""
        context = self._browser.new_context(**{"offline": True, "viewport": {"width": 1280, "height": 800}, **options})
        self._contexts.append(context)
        context.set_default_timeout(15_000)
        context.add_init_script(CANARY)
        context.on("page", self._watch)
        folder = path.resolve().parent
        context.route("**/*", lambda route: self._local_alone(route, folder))
        page = context.new_page()
        page.goto(path.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        return page

    def close(self) -> None:
        """Close the windows. Raises AssertionError where a page did what it must not."""
        for context in self._contexts:
            for page in context.pages:
                self.problems += [f"ran: {what}" for what in page.evaluate("() => window.ran")]
            context.close()
        self._contexts.clear()
        assert self.problems == []

    def _watch(self, page: Page) -> None:
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("crash", lambda _: self.problems.append("the page crashed"))
        page.on("popup", lambda opened: self.problems.append(f"opened {opened.url}"))

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning", "assert"):
            self.problems.append(f"console {kind}: {text}")

    def _local_alone(self, route: Route, folder: Path) -> None:
        """Let a page of the opened file's own folder load; everything else is a request that must not be."""
        request = route.request
        place = urlsplit(request.url)
        inside = place.scheme == "file" and Path(unquote(place.path)).is_relative_to(folder)
        if inside and request.is_navigation_request():
            route.continue_()
        else:
            self.problems.append(f"request: {request.resource_type} {request.url[:200]}")
            route.abort()
