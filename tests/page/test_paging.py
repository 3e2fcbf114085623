"""Trees that are too many for a page become a folder of pages and an index, in bounded memory, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from treegrpo_cli.cli.inspect import inspect
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.page import paging
from treegrpo_cli.page.folder import MARK, PageFolder

from tests.page.browser import Watch
from tests.page.hostile import NAMES, TEXTS, Fields, hostile_trees, page_of, write
from tests.page.runs import QUESTIONS, write_run
from tests.sample_trees import nodes_of, tree

if TYPE_CHECKING:
    from playwright.sync_api import Page


def small_pages(monkeypatch: pytest.MonkeyPatch, num_nodes: int) -> None:
    monkeypatch.setattr(paging, "BATCH_NODES", num_nodes)


def entries(page: Page) -> list[Fields]:
    found: list[Fields] = page.evaluate("() => treegrpo.prompts")
    return found


def index_of(path: Path) -> Fields:
    """The data of an index, read without a browser."""
    html = (path / "index.html").read_text()
    start = html.index('id="treegrpo-listing">') + len('id="treegrpo-listing">')
    found: Fields = json.loads(html[start : html.index("</script>", start)])
    return found


def test_a_file_becomes_pages_in_its_order_and_every_prompt_has_an_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_pages(monkeypatch, 9)
    sizes = [3, 3, 3, 4, 20, 2]
    trees = [
        tree(f"q{place}", 0, nodes_of([None, *[0] * (size - 1)], [None, *[k % 2 * 1.0 for k in range(size - 1)]]))
        for place, size in enumerate(sizes)
    ]
    inspect([write(tmp_path / "trees.jsonl", trees)], estimator="parent", html=tmp_path / "out")
    prompts = index_of(tmp_path / "out")["prompts"]
    assert prompts["id"] == [f"q{place}" for place in range(6)]
    assert prompts["nodes"] == sizes
    assert [unquote(urlsplit(href).path) for href in prompts["href"]] == [
        f"pages/{number:06d}.html" for number in (1, 1, 1, 2, 3, 4)
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "pages").iterdir()) == [
        f"{n:06d}.html" for n in range(1, 5)
    ]
    assert prompts["mean"][1:4] == [0.5, 0.5, pytest.approx(1 / 3)]
    assert prompts["std"][3] == pytest.approx((2 / 9) ** 0.5)


def test_a_runs_page_of_a_row_holds_all_its_steps(
    monkeypatch: pytest.MonkeyPatch, watch: Watch, tmp_path: Path
) -> None:
    small_pages(monkeypatch, 28)  # a row's four steps of seven nodes
    inspect([write_run(tmp_path / "run")], estimator="parent", html=tmp_path / "out")
    page = watch.open(tmp_path / "out" / "index.html")
    found = entries(page)
    assert [entry["id"] for entry in found] == [f"{step}-{row}" for row in (0, 1) for step in range(1, 5)]
    assert {urlsplit(entry["href"]).path for entry in found[:4]} == {"pages/000001.html"}
    assert {urlsplit(entry["href"]).path for entry in found[4:]} == {"pages/000002.html"}
    page.locator("#steps-slider").fill("2")
    page.locator("#steps-slider").dispatch_event("input")
    assert page.locator("#prompt-list .entry").count() == 2
    page.fill("#filter", "n'djamena")
    page.locator("#prompt-list a").click()
    page.wait_for_selector("html[data-ready]")
    assert parse_qs(urlsplit(page.url).fragment)["step"] == ["3"]
    chosen = page.evaluate("() => treegrpo.prompts[treegrpo.state.prompt]")
    assert (chosen["step"], chosen["question"]) == (3, QUESTIONS[0])
    assert page.evaluate("() => treegrpo.prompts.map((prompt) => prompt.step)") == [1, 2, 3, 4]
    assert page.locator("#links a").all_inner_texts() == ["all prompts", "next page"]
    page.get_by_role("link", name="all prompts").click()
    page.wait_for_selector("#prompt-list .entry")


def test_the_index_tells_gap_and_share_as_the_page_does(watch: Watch, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    inspect([run], estimator="parent", html=tmp_path / "out")
    inspect([run], estimator="parent", html=tmp_path / "page.html")
    page = watch.open(tmp_path / "page.html")
    page.select_option("#steps-follow", "all")
    for step, told in enumerate(index_of(tmp_path / "out")["steps"]):
        page.evaluate("(p) => treegrpo.select({ prompt: p })", 2 * step)
        for depth in (1, 2):
            page.select_option("#steps-depth", str(depth))
            share = f"{100 * told['share'][depth - 1]:.0f}%" if told["share"][depth - 1] is not None else "·"
            shown = page.inner_text("#steps-note")
            assert shown == f"gap {told['gap'][depth - 1]:.3f} share of |advantage| {share}"


def test_names_of_prompts_are_no_paths_and_hostile_texts_stay_texts(watch: Watch, tmp_path: Path) -> None:
    inspect([write(tmp_path / "trees.jsonl", hostile_trees())], estimator="parent", html=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"trees.jsonl", "out"}
    page = watch.open(tmp_path / "out" / "index.html")
    found = entries(page)
    assert [entry["id"] for entry in found[len(TEXTS) :][: len(NAMES)]] == list(NAMES)
    page.fill("#filter", "../../etc")
    page.locator("#prompt-list").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("html[data-ready] #tree-rows [data-node]")
    assert page.evaluate("() => treegrpo.prompts[treegrpo.state.prompt].id") == "../../etc/passwd"


def test_a_page_that_would_be_too_large_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paging, "MAX_NODES", 5)
    with pytest.raises(UserError) as raised:
        page_of(tmp_path, [tree("a"), tree("b")])
    assert str(raised.value) == (
        f"--html {tmp_path}/page.html: one page holds 5 nodes and 64 MiB of trees, and there are more; "
        f"--html {tmp_path}/page writes a folder of pages, --prompt-id, --step and --limit choose"
    )
    assert not (tmp_path / "page.html").exists()
    assert page_of(tmp_path, [tree("a"), tree("b")], limit=1).exists()


def test_a_folder_of_pages_is_replaced_and_any_other_is_let_be(tmp_path: Path) -> None:
    file, out = write(tmp_path / "trees.jsonl", [tree("a")]), tmp_path / "out"
    out.mkdir()
    for name in ("first", "again"):
        file.write_text(json.dumps(tree(name)) + "\n")
        inspect([file], estimator="parent", html=out)
        assert index_of(out)["prompts"]["id"] == [name]
    (out / "pages" / "mine.html").write_text("mine")
    with pytest.raises(FileError, match=r"holds 'mine\.html', which no page is"):
        inspect([file], estimator="parent", html=out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(FileError, match="is a folder of something else"):
        inspect([file], estimator="parent", html=tmp_path / "other")
    with pytest.raises(FileError, match="is there and is no folder"):
        inspect([file], estimator="parent", html=file.rename(tmp_path / "trees"))
    assert {path.name for path in tmp_path.iterdir()} == {"trees", "out", "other"}


def test_what_fails_half_way_leaves_the_older_pages_and_nothing_else(tmp_path: Path) -> None:
    file, out = write(tmp_path / "trees.jsonl", [tree("a")]), tmp_path / "out"
    inspect([file], estimator="parent", html=out)
    with file.open("a") as lines:
        lines.write("no tree\n")
    with pytest.raises(FileError, match=r"trees\.jsonl:2"):
        inspect([file], estimator="parent", html=out)
    with pytest.raises(KeyboardInterrupt):
        interrupted(out)
    assert index_of(out)["prompts"]["id"] == ["a"]
    assert {path.name for path in tmp_path.iterdir()} == {"trees.jsonl", "out"}
    assert {path.name for path in out.iterdir()} == {MARK, "index.html", "pages"}


def interrupted(path: Path) -> None:
    with PageFolder(path) as folder:
        folder.add(b"half")
        raise KeyboardInterrupt


PEAK = """
import sys
from pathlib import Path
from treegrpo_cli.cli.inspect import inspect
from treegrpo_cli.page import paging
paging.BATCH_BYTES = 2**21
inspect([sys.argv[1]], html=Path(sys.argv[2]), estimator="grpo")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a process does not tell its peak here")
@pytest.mark.parametrize("num_files", [1, 2])
def test_memory_is_that_of_a_page_whatever_the_file_holds(tmp_path: Path, num_files: int) -> None:
    peaks, sizes = [], []
    for num_prompts in (4, 16):
        trees = tmp_path / str(num_prompts) / "trees"
        trees.mkdir(parents=True)
        for step in range(num_files):
            rows = range(num_prompts // num_files)
            write(trees / f"step-{step}.jsonl", [wordy_tree(f"{step}-{row}", row) for row in rows])
        given = [sys.executable, "-c", PEAK, str(trees.parent), str(trees.parent / "out")]
        done = subprocess.run(given, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) * 1024)
        sizes.append(sum(path.stat().st_size for path in trees.iterdir()))
    assert sizes[0] > 2 * 2**21
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 3


def wordy_tree(prompt_id: str, row: int) -> Fields:
    """About 2.5 MB, in few nodes: a page of its own where pages hold 2 MiB."""
    nodes = nodes_of([None] + [0] * 149, [None] + [k % 2 * 1.0 for k in range(149)])
    for node in nodes[1:]:
        node |= {"text": f"turn {node['id']} " * 900, "observation": "nothing " * 1000}
    return tree(prompt_id, 0, nodes, task={"question": f"question {row}"})
