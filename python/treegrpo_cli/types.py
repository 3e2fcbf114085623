"""The values that cross the rooms' borders, and the one legend of shape letters.

Shapes: B rows · T tokens of the longest row · U tokens, flat · P predictors · Q targets · N nodes · V vocabulary.
Log-probabilities are in nats, lengths in tokens, durations in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

MAX_REWARD = 1e150
"""Squares of larger ones do not fit a float64."""

FLAT = 1e-8
"""Rewards and values closer than this are equal, as in the core's normaliser."""

Message = dict[str, Any]
"""A chat message: `role` and `content`, with `tool_calls` or `name` where they apply."""


class NodeStatus(IntEnum):
    """How a turn ended; the codes are those of the Rust core, the lower-case names those of the tree file."""

    OPEN = 0
    DONE = 1
    TRUNCATED_TURNS = 2
    TRUNCATED_TOKENS = 3
    PRUNED = 4
    ERROR = 5


@dataclass(frozen=True)
class Limits:
    """How much of a file is read before it is refused; the settings of `[limits]`, with the same defaults."""

    max_file_bytes: int = 2**38
    """Of one file, after decompression."""
    max_line_bytes: int = 2**28
    """Of one line: one tree or row of this size is a mistake."""
    max_line_objects: int = 2**24
    """Objects and lists in one line, or in a file that is one list; two bytes of text take a hundred in memory."""
    max_lines: int = 10**8
    """Of one file, blank ones too."""
    max_rows: int = 2 * 10**6
    """Questions of one data set: they stay in memory."""
    max_data_bytes: int = 2**33
    """Of all rows of one data set, as JSON."""
    max_read_s: float = 3600.0
    """Seconds spent on reading and unpacking one file."""
    max_wait_s: float = 60.0
    """Seconds without a byte from a pipe."""


class DrawnTurn(NamedTuple):
    """A turn that was drawn before, to where it ended, and the log-probabilities of its tokens, nats."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def chance(self) -> float:
        """The probability of the whole turn."""
        return math.exp(math.fsum(self.logprobs))


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one turn is sampled. `max_tokens` bounds the turn; `stop` strings end it and stay in its tokens."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = all tokens."""
    stop: tuple[str, ...] = ()
    greedy: bool = False
    entropies: bool = False
    """Whether the completion shall know them."""
    stop_below: float | None = None
    """Nats: the turn is cut behind the first `window` tokens in a row whose mean log-probability is lower."""
    window: int = 32
    drawn: tuple[DrawnTurn, ...] = ()
    """Turns behind the same context, by the same settings, that are not drawn again: the turn is drawn from what is
    left. Its log-probabilities stay those of the policy. Not beside `greedy`."""
    prefix_key: int = 0
    """Requests with the same key begin alike, and are best served by one engine; never changes what is sampled."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled turn.

    `token_ids` end with the token that completed a stop string or with the end-of-turn token, where one
    was sampled. `logprobs` are nats of the distribution that was sampled from (after temperature, top-p
    and top-k; of the model's own distribution where decoding was greedy), one a token. `text` is the
    tokens decoded without special tokens of the end, cut behind the stop string.
    `finish_reason`: `stop` (stop string or end token), `length`, or `pruned` (by `stop_below`).
    """

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: str
    policy_version: int = 0
    num_cached_tokens: int = 0
    entropies: list[float] | None = None
    """Of the distributions that the log-probabilities are of, nats, one a token; None where nobody asked."""
    confidence: float | None = None
    """Of the whole turn, in the sampler's measure; None where it has none."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the policy asked for: the tool's name, its arguments, and the id where its format has ids.

    A tool message that answers it repeats the id as `tool_call_id`.
    """

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """A sampled turn as the environment sees it: its text, and the tool calls that the dialect found in it.

    `error` says what was meant as a tool call and could not be read; there are no calls then. `cut`: the turn
    reached its token limit before it ended; only an environment with `takes_cut_turns = True` sees those.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    error: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the environment answers: messages (`role` tool or user) for the policy, and whether the episode is over.

    `num_tool_calls` counts the tools that ran, `num_failed_tool_calls` those of them that raised. `reward` is what
    this step is worth to the environment itself, None = it gives none: rewards of a path add up to
    `Rollout.env_reward`, which the reward function `environment` returns.
    """

    observation: tuple[Message, ...] = ()
    done: bool = False
    num_tool_calls: int = 0
    num_failed_tool_calls: int = 0
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One dataset row, in one form whatever dialect of columns it came in.

    `messages` is the prompt where the row brings its own, else None and the environment makes it from
    `question`. `columns` is the whole row, untouched: extra columns reach environment and reward.
    """

    question: str
    ground_truth: Any = None
    messages: tuple[Message, ...] | None = None
    data_source: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A root-to-leaf path as a reward function sees it.

    `completion` is all text behind the prompt, turns and observations alike (verl's `solution_str`);
    `turns` are (action text, observation text) pairs; `messages` the same as chat messages behind
    `prompt_messages`;
    `state` is the environment's state at the leaf; `env_reward` the sum of the path's `StepResult.reward`, None
    where no step gave one.
    """

    task: Task
    prompt: str
    prompt_messages: tuple[Message, ...]
    completion: str
    turns: tuple[tuple[str, str], ...]
    messages: tuple[Message, ...]
    state: Any = None
    env_reward: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HostColumns:
    """Columns of a TrainBatch that its plans are made of, [.] int64 in numpy: to read them waits for no device."""

    positions: NDArray[np.int64]
    parent_token: NDArray[np.int64]
    predictors: NDArray[np.int64]
    target_row: NDArray[np.int64]
    turn: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TrainBatch:
    """U tokens of one forward, depth first, and the Q sampled tokens (targets) that its loss reads.

    token_ids [U] int64 · positions [U] int64, depth in tokens · parent_token [U] int64, the token that predicts each,
    -1 at a start · subtree_end [U] int64: token k is seen from q exactly when k <= q < subtree_end[k].
    runs: (start, end) of each maximal root-down run · segments: (key_start, key_end, query_start, query_end) of
    keys seen in full by queries outside their run · edges: (start, end, index of the edge above or -1) of each maximal
    part without a branch.
    predictors [P] int64, ascending: tokens whose logits are read · target_row [Q] int64, ascending: each target's place
    in `predictors` · target_ids [Q] int64 · sampling_logprobs [Q], nats · gain, penalty, weights [Q]: S+ and S- times
    |L|^(p - 1), and |L|^p; gain_weights, penalty_weights [Q]: the part of the last that is of rows with A > 0 and < 0 ·
    turn [Q] int64 · row [Q] int64, of a batch of chains: the row of each target.
    host: some of the columns once more, where no device has to be asked for them.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    parent_token: torch.Tensor
    subtree_end: torch.Tensor
    runs: tuple[tuple[int, int], ...]
    segments: tuple[tuple[int, int, int, int], ...]
    edges: tuple[tuple[int, int, int], ...]
    max_path_tokens: int
    predictors: torch.Tensor
    target_row: torch.Tensor
    target_ids: torch.Tensor
    sampling_logprobs: torch.Tensor
    gain: torch.Tensor
    penalty: torch.Tensor
    weights: torch.Tensor
    gain_weights: torch.Tensor
    penalty_weights: torch.Tensor
    turn: torch.Tensor
    row: torch.Tensor | None
    host: HostColumns


TokenIds: TypeAlias = "Sequence[int] | NDArray[np.uint32]"
