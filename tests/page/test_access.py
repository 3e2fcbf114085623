"""The page without a mouse, by ear, at twice the size, in the dark and without motion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from treegrpo_cli.cli.inspect import inspect

from tests.page.browser import Watch
from tests.page.runs import write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

EXAMPLE = Path(__file__).parents[2] / "examples" / "trees.jsonl"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of the shipped trees, that of a run, and the index of the run's folder."""
    folder = tmp_path_factory.mktemp("pages")
    run = write_run(folder / "run")
    inspect([EXAMPLE], html=folder / "example.html")
    inspect([run], estimator="parent", html=folder / "run.html")
    inspect([run], estimator="parent", html=folder / "out")
    return {"example": folder / "example.html", "run": folder / "run.html", "index": folder / "out" / "index.html"}


def violations(page: Page) -> list[Any]:
    found = Axe().run(page).response["violations"]
    return [(rule["id"], node["html"][:150], node["failureSummary"][:300]) for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize(("name", "scheme"), [("example", "light"), ("run", "dark"), ("index", "light")])
def test_axe_finds_nothing_to_complain_of(watch: Watch, pages: dict[str, Path], name: str, scheme: str) -> None:
    page = watch.open(pages[name], color_scheme=scheme)
    assert violations(page) == []
    if name == "example":
        page.keyboard.press("?")
        assert violations(page) == []


def tabbed(page: Page, limit: int = 80) -> list[str]:
    """What Tab comes by, from the top of the page until it returns there: ids, or the words of what has none."""
    found: list[str] = []
    for _ in range(limit):
        page.keyboard.press("Tab")
        name = page.evaluate("() => document.activeElement.id || document.activeElement.innerText")
        if name in found and name == found[0]:
            return found
        outline = page.evaluate(
            "() => { const style = getComputedStyle(document.activeElement);"
            " return style.outlineStyle !== 'none' || document.querySelector('.row.active') !== null }"
        )
        assert outline, f"{name} does not show that it has the focus"
        found.append(name)
    raise AssertionError(f"Tab never returns: {found}")


def test_tab_comes_by_everything_and_returns(watch: Watch, pages: dict[str, Path]) -> None:
    found = tabbed(watch.open(pages["run"]))
    wanted = ["Skip to the tree", "scoring", "theme", "keys", "steps-follow", "steps-slider", "steps-depth", "search"]
    wanted += ["filter-prompt", "filter-reward-low", "filter-status", "filter-decision", "prompt-rows"]
    assert [name for name in found if name in wanted] == wanted
    assert "tree-rows" in found


def test_the_skip_link_leads_to_the_tree_and_its_arrows_work(watch: Watch, pages: dict[str, Path]) -> None:
    page = watch.open(pages["example"])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'tree-rows'")
    before = page.evaluate("() => treegrpo.state.node")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("() => treegrpo.state.node") != before
    active = page.locator("#tree-rows").get_attribute("aria-activedescendant")
    assert page.locator(f"[id='{active}']").get_attribute("aria-label").startswith("depth ")


@pytest.mark.parametrize("name", ["run", "index"])
def test_at_twice_and_four_times_the_size_nothing_is_lost_or_scrolls_sideways(
    watch: Watch, pages: dict[str, Path], name: str
) -> None:
    page = watch.open(pages[name])
    for width in (640, 320):
        page.set_viewport_size({"width": width, "height": width * 5 // 8})
        check_nothing_is_lost(page, width)


def check_nothing_is_lost(page: Page, width: int) -> None:
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    lost = page.evaluate(
        """() => [...document.querySelectorAll("main, #prompts, #tree, #node, select, input, button:not([hidden]), h1")]
          .filter((element) => element.checkVisibility())
          .filter((element) => !element.closest(".row, dialog, #siblings, [aria-hidden=true]"))
          .filter((element) => {
            const box = element.getBoundingClientRect();
            return box.width < 8 || box.height < 8 || box.left < -1 || box.right > innerWidth + 1;
          }).map((element) => `${element.tagName} ${element.id} ${element.className}`)"""
    )
    assert lost == []  # siblings side by side scroll within their own pane


def test_nothing_moves_where_a_reader_wants_no_motion(watch: Watch, pages: dict[str, Path]) -> None:
    page = watch.open(pages["run"], reduced_motion="reduce")
    page.keyboard.press("?")
    page.locator("#steps-slider").evaluate("(slider) => slider.focus()")
    moving = "(element) => getComputedStyle(element).transitionDuration !== '0s'"
    assert page.evaluate("() => document.getAnimations().length") == 0
    assert page.evaluate(f"() => [...document.querySelectorAll('*')].filter({moving}).length") == 0
