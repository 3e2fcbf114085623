"""A tool of one's own: an annotated function is enough.

    treegrpo rollout my.toml environment.name=examples/own_tool.py:days_between

The policy learns of it from its name, its annotations and its docstring. Several tools:
`environment.name=tools` and `environment.options.tools=["a.py:f", "b.py:g"]`. If the arguments of a call do not fit, or
the function raises, the policy reads an error and may try again; a lost connection is retried and then closes the
branch. `async` functions work too, and a file may import its neighbours.
"""

from datetime import date


def days_between(first: str, second: str) -> str:
    """Count the days from one date to another.

    Args:
        first: A date such as 1969-07-20.
        second: A later one.
    """
    return str((date.fromisoformat(second) - date.fromisoformat(first)).days)
