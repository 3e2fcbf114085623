"""Trees whose texts, names and shapes would break a page that trusts them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treegrpo_cli.cli.inspect import inspect

from tests.sample_trees import nodes_of, tree

Fields = dict[str, Any]

TEXTS = (
    "</script><script>canary('script')</script>",
    "<!-- <script> --!><!--><script>canary('comment')</script>",
    "<img src=x onerror=canary('img')><svg onload=canary('svg')>",
    "<iframe srcdoc='<script>parent.canary(1)</script>'></iframe>",
    "<style>*{display:none}</style><base href='https://example.com/'><meta http-equiv=refresh content=0>",
    "[a](javascript:canary('link')) <a href=\"javascript:canary('href')\">a</a>",
    "</title></style></textarea></template>]]>{{7*7}}${canary('template')}",
    "{{data}}{{script}}{{policy}} \\1 \\g<0>",
    "&lt;b&gt; &amp; &#60;script&#62;canary('entity')&#60;/script&#62;",
    "line\u2028separator\u2029paragraph",
    "nul\0bell\aescape\x1b[31m",
    "right\u202eto left\u202c isolate\u2067x\u2069",
    "zero\u200bwidth\u200djoin\ufeffbom",
    "e\u0301\u0302\u0303" * 40,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧‍👦 漢字 עברית",
    "__proto__",
    "constructor",
)
NAMES = ("__proto__", "constructor", "toString", "hasOwnProperty", "valueOf", "", "../../etc/passwd", "a" * 3000)


def write(path: Path, trees: Sequence[Fields]) -> Path:
    """A tree file."""
    path.write_text("".join(json.dumps(fields) + "\n" for fields in trees))
    return path


def page_of(folder: Path, trees: Sequence[Fields], **options: Any) -> Path:
    """The page that the command writes of trees, scored by what needs no second tree of a prompt."""
    inspect([write(folder / "trees.jsonl", trees)], html=folder / "page.html", **{"estimator": "parent", **options})
    return folder / "page.html"


def spoken(text: str, place: int = 1) -> list[Fields]:
    """A root and two leaves of which the first says `text` everywhere where a text may stand."""
    nodes = nodes_of([None, 0, 0], [None, 1.0, 0.0])
    nodes[0] |= {"text": text, "token_ids": [1]}
    nodes[place] |= {"text": text, "observation": text, "error": text, "state_key": text}
    nodes[place] |= {"rewards": {text: 1.0}, text or "empty": text, "__proto__": {"canary": 1}}
    nodes[place] |= {"token_ids": [7, 8], "sampled": [[0, 2]], "logprobs": [-0.5, -2.0]}
    nodes[2] |= {"token_ids": [7, 9], "sampled": [[0, 1]], "logprobs": [-0.5]}
    return nodes


def hostile_trees() -> list[Fields]:
    """A prompt for every text, one for every name, and one for every odd shape."""
    meta = {"model": "/nowhere/<b>", "__proto__": "x"}
    trees = [
        tree(f"{place}{text}", 0, spoken(text), task={"question": text, "__proto__": text, "constructor": 1}, meta=meta)
        for place, text in enumerate(TEXTS)
    ]
    trees += [tree(name, tree_id) for name in NAMES for tree_id in (0, 1)]
    return trees + shapes()


def shapes() -> list[Fields]:
    """Trees without tokens, without rewards, of errors, of empty turns, of a root alone, and of large numbers."""
    failed = nodes_of([None, 0, 0, 1], [None, None, None, 1.0])
    failed[2] |= {"status": "error", "error": "the tool broke"}
    pruned = nodes_of([None, 0, 0], [None, 1.0, None])
    pruned[2] |= {"status": "pruned", "kept": False}
    empty = nodes_of([None, 0, 0], [None, 1.0, 0.0])
    for node in empty:
        node |= {"text": "", "observation": "", "token_ids": [], "sampled": [], "logprobs": []}
    return [
        tree("root alone", 0, nodes_of([None], [None])),
        tree("unscored", 0, nodes_of([None, 0, 0], [None, None, None])),
        tree("failed", 0, failed),
        tree("pruned", 0, pruned),
        tree("empty", 0, empty),
        tree("large numbers", 0, nodes_of([None, 0, 0, 0], [None, 1e9, -1e9, 1e-12])),
        tree("equal", 0, nodes_of([None, 0, 0], [None, 1.0, 1.0])),
        tree("deep", 0, nodes_of([None, *range(500)], [None] * 500 + [1.0])),
    ]


def large_trees(num_siblings: int = 10_000, num_characters: int = 1_000_000) -> list[Fields]:
    """One node of very many children, and one turn of very many characters."""
    wide = nodes_of([None] + [0] * num_siblings, [None] + [k % 7 / 7 for k in range(num_siblings)])
    long = nodes_of([None, 0], [None, 1.0])
    long[1]["text"] = ("<b>word " * (num_characters // 8))[:num_characters] + "the last words"
    return [tree("wide", 0, wide), tree("long", 0, long)]
