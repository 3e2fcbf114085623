"""What was found of each configuration -> the Markdown table of families."""

import platform
import re
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from tests.survey.compare import TREE_PATHS

Found = dict[tuple[str, str], dict[str, Any]]

EXACT = 1e-4
"""Greatest difference in float32 of what is the same computation."""

HEAD = """# Which model families are trained, and how

Every causal LM class of transformers {transformers} was tried on a CPU (torch {torch}, Python {python}), with a few
small layers and random weights, by this command:

    python -m tests.survey --found families.jsonl --ropes {ropes} --write docs/reference/families.md

A row stands for a family's plain configuration and for those of its variants with the same outcome. The variants are:
biases and tied embeddings the other way round, a sliding window, `is_decoder`, and, for the model types behind
`--ropes`, linear, dynamic, yarn, llama3 and longrope positions.

Each model computes a small forest, whose paths are longer than its windows and than the context that scaled positions
start from. This is compared with the library's own model in its mode of sampling, a row at a time and without padding.
The *difference* is the greatest one of loss and gradients, relative and in float32, over all attention paths that the
family can take.

- **trees**: every token of a forest is computed once (by runs, depth first, or under a dense mask). Chains work too.
- **chains**: every leaf is a row of its own. The last column says why not trees, and so does a run.
- **refused**: a run stops at its start with the line in the last column.
- **not built**: transformers does not build it so small, or it takes more than text. Nothing is known about it here.

{counts}

| family | class | trained on | difference | why |
|---|---|---|---|---|
"""


def table(found: Found, ropes: Sequence[str]) -> str:
    """Return the page: a family's variants share a row where the same is true of them.

    A variant that is not built stands there only where the family's plain configuration is not built either.
    """
    rows: dict[str, dict[tuple[str, str], list[tuple[str, dict[str, Any]]]]] = {}
    for (family, variant), line in sorted(found.items()):
        if variant and line["not_built"]:
            continue
        rows.setdefault(family, {}).setdefault(verdict(line), []).append((variant, line))
    lines, counts = [], dict.fromkeys(("trees", "chains", "refused", "not built", "WRONG"), 0)
    for family, verdicts in rows.items():
        for (kind, why), members in verdicts.items():
            names = [variant for variant, _ in members]
            is_plain = "" in names
            counts[kind] += is_plain
            title = family if is_plain else f"{family}: {', '.join(names)}"
            worst = max((value for _, line in members for value in line["differences"].values()), default=None)
            cells = (title, members[0][1].get("class", ""), kind, "" if worst is None else f"{worst:.0e}", why)
            lines.append("| " + " | ".join(cells) + " |")
    total = "; ".join(f"{number} {kind}" for kind, number in counts.items() if number)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    page = HEAD.format(**versions, python=platform.python_version(), ropes=" ".join(ropes), counts=f"{total}.")
    return page + "\n".join(lines) + "\n"


def verdict(line: dict[str, Any]) -> tuple[str, str]:
    """Return what a configuration is trained on, and why it is not trained on trees."""
    if line["not_built"]:
        return "not built", _cell(line["not_built"])
    if line["crashed"]:
        return "WRONG", _cell(line["crashed"])
    if line["refused"]:
        return "refused", _cell(line["refused"].removeprefix("model.path: "))
    wrong = [f"{path} differs by {value:.0e}" for path, value in line["differences"].items() if value > EXACT]
    if wrong:
        return "WRONG", ", ".join(wrong)
    refused = [path for path in TREE_PATHS if path in line["refusals"]]
    reasons = "; ".join(sorted({line["refusals"][path] for path in refused}))
    if len(refused) == len(TREE_PATHS):
        return "chains", _cell(reasons)
    return "trees", _cell(f"{', '.join(refused)}: {reasons}") if refused else ""


def _cell(text: str) -> str:
    """A line of a table: short, without what tells two runs apart."""
    text = re.sub(r"'/tmp/[^']*'", "its folder", text).replace("|", "/")
    return text if len(text) <= 160 else text[:157] + "..."
