"""Name or dotted path -> Environment, and the one guarded way to step it."""

from treegrpo_cli.envs.base import Environment
from treegrpo_cli.envs.calls import (
    check_environment,
    close_environment,
    close_states,
    key_of_state,
    reset_with_retries,
    step_with_retries,
)
from treegrpo_cli.envs.load import load_environment
from treegrpo_cli.envs.tool_schema import tool_schema

__all__ = [
    "Environment",
    "check_environment",
    "close_environment",
    "close_states",
    "key_of_state",
    "load_environment",
    "reset_with_retries",
    "step_with_retries",
    "tool_schema",
]
