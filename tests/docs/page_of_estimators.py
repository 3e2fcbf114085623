"""The core's estimators and selection rules -> docs/reference/estimators.md."""

from collections.abc import Iterator, Mapping
from typing import Any

from treegrpo_cli._core import describe_selection_rules
from treegrpo_cli.trees.estimators import LETTERS, LEVELS, estimators

HEAD = """# Estimators and selection rules

An *estimator* turns the rewards of leaves into an advantage for each turn. A *selection rule* chooses which turns a
tree continues again. Both lists are the program's own, as `treegrpo estimators` and `treegrpo rules` print them.
[Credit](../concepts/credit.md) and [Where to branch](../concepts/selection.md) explain what lies behind them, and how
to write your own.

## Estimators

An estimator is set in `[advantage]`, with its options beside it:

```toml
[advantage]
estimator = "parent"
scale = "std"
```

A file is scored again by another one like this:

```sh
treegrpo inspect-tree trees.jsonl --estimator parent --option scale=std --format json
```
"""
READING = """
In the formulas: {letters}. L(n) are the scored leaves below a turn n.

- **Of leaves**: all turns of a path take the advantage of its leaf. In the file, an inner turn shows the mean of its
  leaves.
- **Of turns**: each turn has an advantage of its own.
- **Of leaves and of turns**: the sum of the two.

The options `center`, `scale`, `ddof` and `eps` are those of the normaliser N: what is taken off (the mean, or with
`loo` the mean of the others), what it is divided by (nothing, the standard deviation + `eps`, √(p (1 − p)) of the mean
p of rewards from 0 to 1, or a number), and n − `ddof` under the deviation.
"""
RULES = """## Selection rules

A rule is set in `[selection]`, with its options beside it. When each one helps stands in
[Where to branch](../concepts/selection.md#when-which-helps), which also [explains](../concepts/selection.md#the-rules)
H, S, V and k.
"""
WHEN = {
    "grpo": "On chains, or as the baseline: trees then give cheaper rollouts, and no credit of their own.",
    "tree-grpo": "The default, and the paper's: uniform trees, two or more a prompt.",
    "ancestor": "Deep trees: a leaf is compared with those that share most with it, and no deviation is divided by.",
    "redistribute": "As `grpo` or `tree-grpo`, but a turn that several leaves share gets one advantage, their mean.",
    "parent": "To judge each turn by what it changed: where few turns decide.",
    "sibling": "Trees that branch often: a turn counts against its alternatives at the same point alone.",
    "global-local": "For credit of the whole path and of the single turn at once.",
    "depth": "Where turns of one depth do comparable work, and siblings are rare.",
    "anchor": "Environments whose states recur in other branches: equal states add comparisons that the tree lacks.",
    "causal": "Trees that grow where outcomes disagree, where no bias is wanted.",
    "state-loo": "Trees that grow where outcomes disagree, where less noise is worth some bias.",
}
READS = {
    "rewards": "the rewards so far",
    "entropies": "the entropies of turns",
    "logprobs": "the log-probabilities of turns",
}


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_estimators(), *_rules()]).rstrip() + "\n"


def _estimators() -> Iterator[str]:
    known = estimators()
    yield "| estimator | advantages | in short |"
    yield "|---|---|---|"
    for estimator in known.values():
        name = estimator["name"]
        yield f"| [`{name}`](#{name}) | {LEVELS[estimator['level']].split(',')[0]} | {estimator['summary']} |"
    yield READING.format(letters=LETTERS)
    for estimator in known.values():
        yield f"### {estimator['name']}\n"
        yield f"{_sentence(estimator['summary'])}\n"
        yield f"```text\n{estimator['formula']}\n```\n"
        yield f"Advantages are {LEVELS[estimator['level']]}.{_traits(estimator)}\n"
        yield f"**When.** {WHEN[estimator['name']]}\n"
        yield from _options(estimator["options"])


def _traits(estimator: Mapping[str, Any]) -> str:
    weighs = " It weighs each turn itself, in place of `loss.prefix_weight`, and stands in no sum."
    knows = " It knows equal states by their token ids" + (
        ", or by `state_key` where there is one." if estimator["name"] == "anchor" else "."
    )
    return (weighs if estimator["weighs"] else "") + (knows if estimator["reads_tokens"] else "")


def _rules() -> Iterator[str]:
    yield RULES
    for rule in describe_selection_rules():
        yield f"### {rule['name']}\n"
        yield f"{_sentence(rule['summary'])}\n"
        yield f"```text\n{rule['formula']}\n```\n"
        reads = [READS[need] for need in rule["needs"]]
        whose = "all trees of the prompt" if rule["reads_prompt"] else "the candidate's own tree"
        yield f"It reads {' and '.join(reads or ['nothing but the shape'])}, of {whose}.\n"
        yield from _options(rule["options"])


def _options(options: Mapping[str, Any]) -> Iterator[str]:
    if not options:
        yield "It has no options.\n"
        return
    yield "| option | default | legal values |"
    yield "|---|---|---|"
    for name, option in options.items():
        beside = f"; beside `{option['beside']}` alone" if option["beside"] else ""
        yield f"| `{name}` | `{_toml(option['default'])}` | {option['legal']}{beside} |"
    yield ""


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
