"""A world of one's own: guess a number, higher or lower.

    treegrpo rollout my.toml environment.name=examples/own_environment.py:GuessTheNumber

The class keeps its state in `self`, as usual. A tree may continue any turn several times, so each step is taken by a
copy: by `fork()` if the class has it, else a deep copy, else a new object that repeats the earlier steps. A class whose
`step(state, action)` returns a new state is used without copies. A step may give a `StepResult.reward`; the reward
function `environment` is their sum. A method `close()` is called once for each copy.
"""

from treegrpo_cli.envs import tool_schema
from treegrpo_cli.tags import last_answer
from treegrpo_cli.types import Action, Message, StepResult, Task


def guess(number: int) -> None:
    """Guess the number, and hear whether the secret one is higher or lower."""


class GuessTheNumber:
    """A row's `question` introduces the game, its `answer` is the secret number."""

    tools = (tool_schema(guess),)

    def __init__(self, max_guesses: int = 8) -> None:
        self.guesses_left = max_guesses

    def reset(self, task: Task) -> list[Message]:
        """Start a game and return the prompt."""
        self.secret = int(task.ground_truth)
        rules = "Guess with <guess>number</guess>; when you know it, write <answer>number</answer>."
        return [{"role": "user", "content": f"{task.question}\n{rules}"}]

    def step(self, action: Action) -> StepResult:
        """Answer a guess; an answer, or the last guess, ends the game."""
        self.guesses_left -= 1
        if last_answer(action.text) is not None or self.guesses_left < 0:
            return StepResult(done=True)
        number = action.tool_calls[0].arguments.get("number", "") if action.tool_calls else ""
        if not str(number).strip().isdecimal():
            return StepResult(({"role": "user", "content": "Write <guess>number</guess>."},))
        guessed = int(number)
        hint = "right" if guessed == self.secret else "higher" if guessed < self.secret else "lower"
        return StepResult(({"role": "tool", "content": hint},), num_tool_calls=1)
