"""How long a page of 5,000 nodes takes to open, and how smoothly it scrolls, beside a plain document of the same trees.

    python -m tests.benchmarks.bench_page

The baseline has one row a node with its turn, its tokens and its numbers, all in the document, and no script. Both are
opened in the same browser in turns, so that a busy machine harms both. Times are of this machine; the ratio is what to
compare. The result is written to results/page.md.
"""

from __future__ import annotations

import html
import json
import os
import platform
import random
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treegrpo_cli import __version__
from treegrpo_cli.cli.inspect import inspect

from tests.page.browser import Watch, launched

if TYPE_CHECKING:
    from playwright.sync_api import Page

NUM_TREES, NUM_NODES, NUM_TOKENS, NUM_RUNS = 10, 500, 60, 5
RESULT = Path(__file__).parent / "results" / "page.md"
OPENED = """
() => new Promise((done) => {
  const ready = () => {
    if (document.querySelector("[data-node]") === null) requestAnimationFrame(ready);
    else requestAnimationFrame(() => setTimeout(() => done(performance.now())));
  };
  ready();
})
"""
SCROLLED = """
(selector) => new Promise((done) => {
  const element = document.querySelector(selector);
  const frames = [];
  let last = performance.now();
  const step = (now) => {
    frames.push(now - last);
    last = now;
    element.scrollTop += 400;
    if (frames.length < 90) requestAnimationFrame(step);
    else done(frames.slice(1));
  };
  requestAnimationFrame(step);
})
"""


def grown() -> list[dict[str, Any]]:
    """Trees of one prompt, 5,000 nodes in all, 60 tokens a turn."""
    chance = random.Random(0)
    trees = []
    for tree_id in range(NUM_TREES):
        parents = [None, *(0 if i < 5 else chance.randrange(max(1, i // 3), i) for i in range(1, NUM_NODES))]
        inner = set(parents)
        nodes: list[dict[str, Any]] = [
            {
                "id": i,
                "parent": parent,
                "reward": None if i in inner else float(chance.random() < 0.4),
                "token_ids": [chance.randrange(150_000) for _ in range(NUM_TOKENS)],
                "sampled": [[0, NUM_TOKENS]] if i else [],
                "logprobs": [-chance.random() for _ in range(NUM_TOKENS)] if i else [],
                "text": f"<think> {' '.join(chance.choices(['river', 'capital', 'of', 'Chad'], k=40))} </think>",
            }
            for i, parent in enumerate(parents)
        ]
        trees.append({"schema": "treegrpo.tree/1", "prompt_id": "q", "tree_id": tree_id, "nodes": nodes})
    return trees


def naive(trees: list[dict[str, Any]]) -> str:
    """The same trees with everything in the document."""
    rows = [
        f"<div data-node><p>{html.escape(node['text'])} {node['reward']}</p>"
        f"<p>{''.join(f'<span title={token}>#{token} </span>' for token in node['token_ids'])}</p></div>"
        for tree in trees
        for node in tree["nodes"]
    ]
    return f"<!doctype html><meta charset=utf-8><title>naive</title><body>{''.join(rows)}"


def measured(watch: Watch, path: Path, selector: str) -> tuple[float, list[float]]:
    """Milliseconds from navigation to the first tree that can be used, and those of frames while it scrolls."""
    page: Page = watch.open(path)
    opened = float(page.evaluate(OPENED))
    frames = list(map(float, page.evaluate(SCROLLED, selector)))
    page.context.close()
    return opened, frames


def main() -> None:
    """Measure both and write the table."""
    with tempfile.TemporaryDirectory() as name, launched() as browser:
        folder, trees = Path(name), grown()
        (folder / "trees.jsonl").write_text("".join(json.dumps(tree) + "\n" for tree in trees))
        inspect([folder / "trees.jsonl"], html=folder / "page.html")
        (folder / "naive.html").write_text(naive(trees))
        pages = {"page": ("page.html", "#tree-rows"), "naive": ("naive.html", "html")}
        opened: dict[str, list[float]] = {key: [] for key in pages}
        frames: dict[str, list[float]] = {key: [] for key in pages}
        for _ in range(NUM_RUNS):
            for key, (file, selector) in pages.items():
                first, shown = measured(Watch(browser), folder / file, selector)
                opened[key].append(first)
                frames[key] += shown
        sizes = {key: (folder / file).stat().st_size for key, (file, _) in pages.items()}
        RESULT.write_text(table(opened, frames, sizes, browser.version))


def table(opened: dict[str, list[float]], frames: dict[str, list[float]], sizes: dict[str, int], version: str) -> str:
    """The result as Markdown."""
    rows = [
        ("first usable tree, median of 5 (ms)", [statistics.median(opened[key]) for key in ("page", "naive")]),
        ("frame while scrolling, p50 (ms)", [statistics.median(frames[key]) for key in ("page", "naive")]),
        ("frame while scrolling, p95 (ms)", [statistics.quantiles(frames[key], n=20)[18] for key in ("page", "naive")]),
        ("size of the file (MB)", [sizes[key] / 1e6 for key in ("page", "naive")]),
    ]
    lines = [f"| {name} | {ours:,.1f} | {theirs:,.1f} | {theirs / ours:.1f} |" for name, (ours, theirs) in rows]
    head = f"""# The page of {NUM_TREES * NUM_NODES:,} nodes

{NUM_TOKENS} tokens a turn, treegrpo {__version__}, headless Chromium {version} without a GPU, {platform.machine()} with
{os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} at the end), both documents in turns in one browser;
`python -m tests.benchmarks.bench_page`. The naive one has every row and token in the document.

| | page | naive | naive / page |
|---|---:|---:|---:|
"""
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
