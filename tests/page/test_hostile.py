"""Whatever a tree file holds, the page shows it as text: nothing of it runs, becomes an element, or breaks the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from treegrpo_cli.cli.inspect import inspect
from treegrpo_cli.errors import UserError

from tests.page.browser import Watch
from tests.page.hostile import NAMES, TEXTS, hostile_trees, large_trees, page_of

TAGS = """
HTML
HEAD META TITLE STYLE BODY SCRIPT NOSCRIPT A B I P H1 H2 H3 H4 DIV SPAN HEADER MAIN NAV SECTION BUTTON SELECT OPTION
OPTGROUP LABEL INPUT OUTPUT DL DT DD DETAILS SUMMARY TABLE CAPTION THEAD TBODY TR TH TD UL OL LI KBD MARK DIALOG FORM
FIELDSET LEGEND STRONG EM Q PRE SMALL SVG PATH LINE RECT CIRCLE G TEXT POLYLINE
"""
"""What the page itself is made of."""

WALK = """
async () => {
  const tags = new Set();
  const lost = [];
  const all = () => {
    for (const element of document.querySelectorAll("*")) {
      tags.add(element.tagName.toUpperCase());
      for (const { name, value } of element.attributes)
        if (name.startsWith("on") || /^\\s*javascript:/i.test(value)) lost.push(`${element.tagName} ${name}=${value}`);
    }
  };
  for (const tree of treegrpo.trees) {
    for (const i of [tree.start, tree.start + 1, tree.end - 1]) {
      if (i >= tree.end) continue;
      treegrpo.select({ node: i });
      all();
    }
  }
  await new Promise(requestAnimationFrame);
  return { tags: [...tags], lost, polluted: Object.keys(Object.prototype).concat(({}).canary ?? []) };
}
"""
SHOWN = """
(k) => {
  const tree = treegrpo.trees[treegrpo.prompts[k].trees[0]];
  treegrpo.select({ node: tree.start + 1 });
  const element = document.getElementById("node");
  for (const sign of element.querySelectorAll(".hidden-char")) {
    const code = parseInt(sign.title.split("U+")[1], 16);
    sign.replaceWith(String.fromCodePoint(code));
  }
  element.normalize();
  return [...element.querySelectorAll(".observation .words")].map((block) => block.textContent);
}
"""


def test_no_text_runs_or_becomes_an_element_and_every_text_is_shown_as_it_is(watch: Watch, tmp_path: Path) -> None:
    page = watch.open(page_of(tmp_path, hostile_trees()))
    found = page.evaluate(WALK)
    assert set(found["tags"]) - set(TAGS.split()) == set()
    assert found["lost"] == []
    assert found["polluted"] == []
    assert page.evaluate("() => treegrpo.prompts.map((prompt) => prompt.id)")[len(TEXTS) :][: len(NAMES)] == list(NAMES)
    shown = [page.evaluate(SHOWN, place) for place in range(len(TEXTS))]
    assert shown == [[text] for text in TEXTS]
    assert page.title() == "trees.jsonl · treegrpo"


def test_ten_thousand_siblings_and_a_turn_of_a_million_characters_open(watch: Watch, tmp_path: Path) -> None:
    page = watch.open(page_of(tmp_path, large_trees()))
    rows = page.locator("#tree-rows [data-node]")
    assert page.locator("#tree-rows").get_attribute("aria-rowcount") == "10001"
    assert 0 < rows.count() < 200
    page.evaluate("() => treegrpo.select({ node: 9_999 })")
    page.wait_for_selector("#tree-rows [data-node='9999']")
    assert rows.count() < 200
    page.evaluate("() => treegrpo.select({ prompt: 1, node: treegrpo.trees[1].start + 1 })")
    button = page.locator("#node button.more")
    assert "1,000,014" in button.inner_text()
    assert page.locator("#node").evaluate("(node) => node.textContent.length") < 100_000
    button.click()
    assert page.locator("#node .words").first.evaluate("(words) => words.textContent.endsWith('the last words')")


@pytest.mark.parametrize("reward", ["NaN", "Infinity", "1e999"])
def test_a_reward_that_is_no_number_never_reaches_a_page(tmp_path: Path, reward: str) -> None:
    line = json.dumps(hostile_trees()[0]).replace('"reward": 1.0', f'"reward": {reward}')
    (tmp_path / "trees.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"trees\.jsonl:1: "):
        inspect([tmp_path / "trees.jsonl"], html=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_half_a_character_never_reaches_a_page(tmp_path: Path) -> None:
    trees = hostile_trees()[:1]
    trees[0]["nodes"][1]["observation"] = "half \ud83d here"
    with pytest.raises(UserError, match=r"trees\.jsonl:1: "):
        page_of(tmp_path, trees)
