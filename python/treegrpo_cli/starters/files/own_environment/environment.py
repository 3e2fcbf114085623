"""A world of your own: the agent guesses a number, and hears whether it is higher or lower.

The state is in `self`. A tree may continue any turn several times, so each step is taken by a copy of the object: give
the class a `fork()` if a deep copy is wrong or slow. A method `close()` is called once for each copy. A step may also
return a reward of its own: `StepResult(reward=...)`, summed by reward.functions = ["environment"].
"""

from treegrpo_cli.envs import tool_schema
from treegrpo_cli.tags import last_answer
from treegrpo_cli.types import Action, Message, StepResult, Task


def guess(number: int) -> None:
    """Guess the number, and hear whether the secret one is higher or lower."""


class GuessTheNumber:
    """A row's `question` introduces the game, its `answer` is the secret number."""

    tools = (tool_schema(guess),)
    """What the agent may call, for prompts and parsers; `step` answers the calls."""

    def reset(self, task: Task) -> list[Message]:
        """Start a game and return the prompt."""
        self.secret = int(task.ground_truth)
        rules = "Guess with <guess>number</guess>. When you know it, write <answer>number</answer>."
        return [{"role": "user", "content": f"{task.question}\n{rules}"}]

    def step(self, action: Action) -> StepResult:
        """Answer a guess; an answer ends the game."""
        if last_answer(action.text) is not None:
            return StepResult(done=True)
        number = str(action.tool_calls[0].arguments.get("number", "")) if action.tool_calls else ""
        if not number.strip().isdecimal():
            return StepResult(({"role": "user", "content": "Write <guess>number</guess>."},))
        guessed = int(number)
        hint = "right" if guessed == self.secret else "higher" if guessed < self.secret else "lower"
        return StepResult(({"role": "tool", "content": hint},), num_tool_calls=1)
