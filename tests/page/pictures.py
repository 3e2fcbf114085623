"""The shipped trees -> the pictures of the page that the documentation shows: `python -m tests.page.pictures`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from treegrpo_cli.cli.inspect import inspect

from tests.page.browser import Watch, launched

ROOT = Path(__file__).parents[2]
EXAMPLES, PICTURES = ROOT / "examples", ROOT / "docs" / "pictures"
SIZE = {"width": 1360, "height": 860}
PARTING = """
() => {
  const { nodes, isBranching, siblingsUnder, decision } = treegrpo;
  const differ = (i) => new Set(siblingsUnder(i).map((child) => nodes.excerpt[child])).size > 1;
  const isSuch = (i) => nodes.parent[i] >= 0 && isBranching(i) && differ(i) && decision(i) === "decided";
  const found = Array.from({ length: nodes.size }, (_, i) => i).find(isSuch);
  treegrpo.select({ node: treegrpo.children(found)[0] });
}
"""
"""The first branching point below a root where siblings said different things and were worth different rewards."""


def main() -> None:
    """Draw the page in light and dark, and its siblings side by side."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        path = Path(folder) / "trees.html"
        inspect([EXAMPLES / "trees.jsonl"], html=path, tokenizer=EXAMPLES / "geography")
        watch = Watch(browser)
        for scheme in ("light", "dark"):
            page = watch.open(path, color_scheme=scheme, viewport=SIZE)
            page.evaluate(PARTING)
            page.wait_for_timeout(300)
            page.screenshot(path=PICTURES / f"page-{scheme}.png")
            page.locator("#siblings").screenshot(path=PICTURES / f"siblings-{scheme}.png")
        watch.close()


if __name__ == "__main__":
    main()
