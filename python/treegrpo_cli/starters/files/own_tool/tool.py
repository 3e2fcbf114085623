"""A tool of your own: an annotated function is enough. The agent learns of it from its name, types and docstring.

If the function raises, or the arguments do not fit, the agent reads an error and may try again. `async` works too. For
several tools set environment.name = "tools" and environment.options = { tools = ["tool.py:first", "tool.py:second"] }.
"""

from datetime import date


def days_between(first: str, second: str) -> str:
    """Count the days from one date to another.

    Args:
        first: A date such as 1969-07-20.
        second: A later one.
    """
    return str((date.fromisoformat(second) - date.fromisoformat(first)).days)
