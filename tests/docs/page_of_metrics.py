"""The names of metrics -> docs/reference/metrics.md."""

from collections.abc import Iterator

from treegrpo_cli.run.metric_names import EVALUATION, METRICS

HEAD = """# Metrics

`treegrpo train` appends a line of JSON to `metrics.jsonl` in the run's folder after each step, and hands the same to
the loggers of `--report-to`. A line is one object: `step`, the number of whole steps behind it, and metrics by name. An
evaluation has a line of its own, with the step that it follows (0 is the model before training). A number that is not
finite is written as `null`.

```json
{"step": 12, "reward": 0.625, "tree/num_leaves": 48.0, "tree/gap_depth_1": 0.31, "time/rollout": 8.4, "step_time": 21.7}
```

In a name, capitals stand for what differs: `NAME` is a reward function, `D` a depth (the turns below the root have
depth 1), `N` a number of tokens. Names without a prefix, and those below `completions/`, `clip_ratio/`, `rewards/` and
`sampling/`, are TRL's where TRL has the same thing. Shares are from 0 to 1; log-probabilities, entropy and KL are in
nats. A leaf without a reward enters no mean.

To read a run's rewards in Python:

```python
import json
from pathlib import Path

lines = [json.loads(line) for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
rewards = {line["step"]: line["reward"] for line in lines if "reward" in line}
```
"""


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_sections()]).rstrip() + "\n"


def _sections() -> Iterator[str]:
    for title, metrics in METRICS.items():
        yield f"## {title}\n"
        yield "| metric | unit | meaning |"
        yield "|---|---|---|"
        for metric in metrics:
            when = "" if metric.when in ("", EVALUATION) else f" Only where {metric.when}."
            yield f"| `{metric.name}` | {metric.unit} | {metric.meaning}{when} |"
        yield ""
