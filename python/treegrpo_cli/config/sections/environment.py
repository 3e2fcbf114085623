"""`[environment]` of the settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from treegrpo_cli.config.sections.base import Count, CountOrNone, Seconds, Section, one_or_many


class EnvironmentConfig(Section):
    """The world that the agent acts in."""

    name: str = "search"
    """The world that the agent acts in, by name or as your own class or function. Names: `search`, `calculator`,
    `single-turn` (no tools: a reward judges the first turn), `gym:ID` of gymnasium. Your own: `package.module:Name` or
    `file.py:Name`, where the name is a class, one of gymnasium's too, or a function to offer as a tool."""
    dialect: Literal["inline", "chat"] = "inline"
    """How the agent writes tool calls: `inline`, as tags in its text (`<search>query</search>`), or `chat`, in the
    format of the model's own chat template."""
    tool_parser: str = "auto"
    """What reads tool calls in the `chat` dialect. `auto` takes the first that reads what the chat template writes.
    Others: `json`, `harmony` (gpt-oss), `response-template` (the tokenizer's own, of transformers), or a parser of vLLM
    by its name."""
    tool_errors: Literal["show", "close"] = "show"
    """What happens when a tool raises: `show` lets the agent read `Error: ValueError: ...` and go on, `close` ends the
    branch without a reward."""
    tool_timeout_s: Seconds = 30.0
    """Seconds that one tool call may take before it counts as failed. `tool_retries` says whether it is tried again."""
    tool_retries: CountOrNone = 2
    """Further attempts after a timeout or a lost connection; then the branch is closed without a reward. 0 tries
    once."""
    check_timeout_s: Seconds = 60.0
    """Seconds that an environment's own `check()` may take before the first rollout."""
    max_concurrent_tools: Count = 64
    """Tool calls that run at the same time; others wait. Lower it for a service that cannot answer so many."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes for the world and the reward functions; 0 runs them in the program's own. Use them where your Python
    computes for long, which would hold up the engine. Each process has its own world and rewards."""
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default_factory=list, max_length=16, json_schema_extra=one_or_many
    )
    """Further strings that end a turn; they stay in its text. One string or a list; the environment's own tags need no
    entry."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment, by name, such as `corpus`, `retriever_url` and `topk` of `search`."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_string_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
