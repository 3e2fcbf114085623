"""The browser itself: what it lets a page do, and what it tells of one that does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page.browser import Watch, launched

POLICY = "<meta http-equiv=Content-Security-Policy content=\"img-src https: 'self'\">"

WRONGS = {
    "<script>canary('a text ran')</script>": "ran: a text ran",
    "<img src=x onerror=alert(1)>": "ran: 1",
    "<script>console.error('lost')</script>": "console error: lost",
    "<script>throw new Error('broken')</script>": "error: broken",
    "<img src=https://example.com/a.png>": "request: image https://example.com/a.png",
    "<script src=near.js></script>": "request: script file:",
    "<script>fetch('https://example.com/').catch(() => 0)</script>": "request: fetch https://example.com/",
    "<img src=data:image/png;base64,AAAA>": "ran: CSP: img-src",
}
"""What a page does wrong -> how the watch tells of it."""


def write(path: Path, body: str) -> Path:
    path.write_text(f"<!doctype html><html lang=en><head><title>page</title>{POLICY}</head><body>{body}")
    return path


def test_a_page_that_does_nothing_wrong_is_let_be(watch: Watch, tmp_path: Path) -> None:
    assert watch.open(write(tmp_path / "page.html", "<script>console.log('fine')</script>")).title() == "page"


def test_what_a_page_must_not_do_is_told(watch: Watch, tmp_path: Path) -> None:
    watch.open(write(tmp_path / "page.html", "".join(WRONGS))).wait_for_timeout(50)
    with pytest.raises(AssertionError):
        watch.close()
    problems, watch.problems = watch.problems, []
    assert [told for told in WRONGS.values() if not any(map(str.startswith, problems, [told] * len(problems)))] == []


@pytest.mark.parametrize(("required", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_a_browser_its_tests_are_skipped_and_fail_where_one_is_required(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TREEGRPO_REQUIRE_BROWSER", required)
    with pytest.raises(outcome, match="none of chromium, chromium-browser, google-chrome is on the PATH"), launched():
        pass
