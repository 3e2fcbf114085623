"""Filters, search, steps, keys, colours and addresses, by hand and by keyboard alone."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from treegrpo_cli.cli.inspect import inspect

from tests.page.browser import Watch
from tests.page.hostile import page_of
from tests.page.runs import QUESTIONS, rewards_at, write_run
from tests.sample_trees import nodes_of, tree

if TYPE_CHECKING:
    from playwright.sync_api import Page

NODES = """
() => [...document.querySelectorAll("#tree-rows [data-node]:not(.unwanted)")].map((row) => Number(row.dataset.node))
"""


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of four steps, 56 nodes; a row's tree has 7."""
    folder = tmp_path_factory.mktemp("run")
    inspect([write_run(folder / "run")], estimator="parent", html=folder / "page.html")
    return folder / "page.html"


@pytest.fixture
def page(watch: Watch, run_page: Path) -> Page:
    """The run's page at the root of its first tree."""
    page = watch.open(run_page)
    page.evaluate("() => treegrpo.select({ node: 0 })")
    return page


def rows(page: Page) -> list[int]:
    """Nodes whose rows are wanted, in the order of the drawing."""
    page.wait_for_timeout(200)  # typed filters wait for the next key
    return sorted(page.evaluate(NODES))


def state(page: Page, name: str) -> int:
    found: int = page.evaluate(f"() => treegrpo.state.{name}")
    return found


def test_filters_leave_the_rows_that_all_of_them_want(page: Page) -> None:
    page.fill("#filter-reward-low", "0.5")
    assert rows(page) == [3]  # at step 1 one leaf of row 0 is right
    scored = [reward for step in range(1, 5) for row in (0, 1) for reward in rewards_at(step, row)]
    assert page.inner_text("#filter-note") == f"{sum(reward >= 0.5 for reward in scored)} of 56 nodes"
    page.fill("#filter-depth-high", "1")
    assert rows(page) == []
    page.fill("#filter-reward-low", "")
    assert rows(page) == [0, 1, 2]
    page.click("text=clear filters")
    assert rows(page) == list(range(7))


def test_a_branching_point_is_decided_where_values_of_siblings_differ(page: Page) -> None:
    page.select_option("#filter-decision", "decided")
    assert rows(page) == [1, 2, 3, 4]  # leaves of node 1 are 1 and 0, those of node 2 both 0
    page.select_option("#filter-decision", "undecided")
    assert rows(page) == [5, 6]


def test_the_prompt_filter_goes_to_the_first_prompt_that_it_leaves(page: Page) -> None:
    page.fill("#filter-prompt", "laos")
    assert rows(page) == list(range(7, 14))
    assert page.locator("#prompt-rows [aria-level='1']").count() == 4


def test_statuses_that_no_node_has_are_not_offered(page: Page) -> None:
    assert page.locator("#filter-status option").all_inner_texts() == ["any", "open", "done"]
    page.select_option("#filter-status", label="done")
    assert rows(page) == [3, 4, 5, 6]


def test_search_finds_words_and_goes_round_by_keys(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("FOUND at step 2")
    page.keyboard.press("Enter")
    page.wait_for_function("() => treegrpo.state.node === 15")
    assert page.inner_text("#search-note") == "1 of 12 nodes"
    page.keyboard.press("Shift+Enter")
    assert state(page, "node") == 27
    page.keyboard.press("t")  # still a letter of the search field
    assert page.input_value("#search").endswith("2t")
    page.keyboard.press("Backspace")
    page.wait_for_function("() => document.getElementById('search-note').textContent.includes('12 nodes')")
    page.locator("#tree-rows").focus()
    page.keyboard.press("n")
    assert state(page, "node") == 15
    page.keyboard.press("N")
    assert state(page, "node") == 27
    assert page.evaluate("() => CSS.highlights.get('treegrpo-found').size") == 1
    assert page.get_attribute("#search-note", "aria-live") == "polite"


def test_search_finds_a_question_at_its_roots_and_says_where_nothing_is_found(page: Page) -> None:
    page.fill("#search", QUESTIONS[0])
    page.wait_for_function("() => document.getElementById('search-note').textContent === '1 of 4 nodes'")
    page.fill("#search", "nowhere to be found")
    page.wait_for_function("() => document.getElementById('search-note').textContent === 'no hits'")


def test_keys_walk_rows_siblings_and_the_map(page: Page) -> None:
    page.locator("#tree-rows").focus()
    for key, node in (("ArrowDown", 1), ("j", 3), ("l", 4), ("h", 3), ("k", 1), ("ArrowRight", 3), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert state(page, "node") == node, key
    page.keyboard.press("ArrowLeft")
    assert rows(page) == [0, 1, 2, 5, 6]
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    assert state(page, "node") == 1
    page.get_by_role("button", name="keys").click()
    page.get_by_label("use single letters and signs as keys").uncheck()
    page.keyboard.press("Escape")
    page.locator("#tree-rows").focus()
    page.keyboard.press("j")
    assert state(page, "node") == 1


def test_the_slider_follows_a_prompt_or_shows_all_prompts_of_a_step(page: Page) -> None:
    slider = page.locator("#steps-slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert (state(page, "prompt"), state(page, "node"), state(page, "step")) == (2, 14, None)
    assert slider.get_attribute("aria-valuetext") == "step 2, 2 of 4"
    assert page.locator("#prompt-rows [aria-level='1']").count() == 8
    page.select_option("#steps-follow", "all")
    assert (state(page, "prompt"), state(page, "step")) == (2, 2)
    assert page.locator("#prompt-rows [aria-level='1']").count() == 2
    page.get_by_role("button", name="all steps").click()
    assert page.locator("#prompt-rows [aria-level='1']").count() == 8


def test_the_chart_tells_gap_and_share_at_a_depth_as_the_definition_does(page: Page) -> None:
    page.select_option("#steps-depth", "2")
    for step in range(1, 5):
        leaves = rewards_at(step, 0)
        pairs = [leaves[:2], leaves[2:]]
        gaps = [abs(a - b) for pair in pairs for a, b in combinations(pair, 2)]
        means = [sum(pair) / 2 for pair in pairs]
        deep = sum(abs(reward - mean) for pair, mean in zip(pairs, means, strict=True) for reward in pair)
        top = sum(abs(mean - sum(leaves) / 4) for mean in means)
        page.evaluate("(p) => treegrpo.select({ prompt: p })", 2 * (step - 1))
        told = page.inner_text("#steps-note")
        share = "·" if not deep + top else f"{100 * deep / (deep + top):.0f}%"
        assert told == f"gap {sum(gaps) / len(gaps):.3f} share of |advantage| {share}"
    assert page.locator("svg.chart path.line").count() == 2


def test_one_step_has_no_slider(watch: Watch, tmp_path: Path) -> None:
    page = watch.open(page_of(tmp_path, [tree("q", 0), tree("q", 1)]))
    assert page.locator("#steps-slider").count() == 0


def test_colours_are_the_systems_or_the_readers_and_remembered(watch: Watch, run_page: Path) -> None:
    ground = "() => getComputedStyle(document.body).backgroundColor"
    page = watch.open(run_page, color_scheme="dark")
    dark = page.evaluate(ground)
    page.select_option("#theme", "light")
    light = page.evaluate(ground)
    assert sum(map(int, light[4:-1].split(", "))) > 600 > 200 > sum(map(int, dark[4:-1].split(", ")))
    page.reload()
    assert (page.evaluate(ground), page.input_value("#theme")) == (light, "light")
    page.select_option("#theme", "system")
    assert page.evaluate(ground) == dark


def test_an_address_leads_to_its_node_by_the_names_of_the_file(watch: Watch, tmp_path: Path) -> None:
    trees = [
        tree(name, tree_id, nodes_of([None, 0, 0], [None, 1.0, 0.0]))
        for name in ("a&b=c#d", "é\n")
        for tree_id in (3, 5)
    ]
    path = page_of(tmp_path, trees)
    page = watch.open(path)
    assert "#" not in page.url
    page.evaluate("() => treegrpo.select({ node: 11, scoring: 2 })")
    fragment = page.url.split("#")[1]
    label = page.evaluate("() => treegrpo.scoring().label")
    again = watch.open(path, fragment)
    assert (state(again, "node"), again.evaluate("() => treegrpo.scoring().label")) == (11, label)
    again.evaluate("() => { location.hash = '#prompt=a%26b%3Dc%23d&tree=5&node=2' }")
    again.wait_for_function("() => treegrpo.state.node === 5")
    for odd in (
        "prompt=nobody&node=2",
        "node=1",
        "prompt=%C3%A9%0A&tree=9&node=x",
        "%E0%A4%A",
        "prompt=%C3%A9%0A&node=-1",
    ):
        again.evaluate("(odd) => { treegrpo.select({ node: 6 }); location.hash = odd }", odd)
        again.wait_for_timeout(20)
        assert state(again, "node") == 6


def test_an_address_brings_filters_and_search_back(watch: Watch, run_page: Path, page: Page) -> None:
    page.fill("#filter-reward-low", "0.5")
    page.select_option("#filter-status", label="done")
    page.fill("#search", "Which river")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.hash.includes('search=Which+river') && location.hash.includes('reward-low')")
    again = watch.open(run_page, page.url.split("#")[1])
    assert rows(again) == [3]
    assert again.input_value("#search") == "Which river"
    again.keyboard.press("Tab")
    again.keyboard.press("Enter")  # the skip link has an address of its own, and changes no filter
    assert rows(again) == [3]
    again.evaluate("() => { location.hash = '#prompt=1-0&node=2' }")
    again.wait_for_function("() => document.getElementById('search').value === ''")
    assert rows(again) == list(range(7))


def test_rows_have_names_that_say_what_they_show(page: Page) -> None:
    page.evaluate("() => treegrpo.select({ node: 3 })")
    names = page.locator("#tree-rows [role=row]").evaluate_all("(rows) => rows.map((row) => row.ariaLabel)")
    assert "tree 0, root, 4 leaves, 2 siblings part here" in names
    assert "depth 2, turn <search> Which river 3 </search>, advantage +0.500, reward 1.000, 1 leaf, done" in names
