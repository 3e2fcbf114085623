"""TOML or YAML file + dotted overrides -> Config: every setting, its default and its limits.

The paper's letters: M `rollout.num_trees`, N `rollout.num_expansions`, L `rollout.num_rounds`,
K `rollout.num_kept_leaves`. Sizes are in tokens, durations in seconds.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from treegrpo_cli.terms import read_term
from treegrpo_cli.types import Limits

if TYPE_CHECKING:
    from treegrpo_cli._core import ScoreTerm

MAX_INTEGER = 2**63 - 1
PositiveInt = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Count = Annotated[int, Field(ge=1, le=10**6)]
"""Things that are all there at once."""
CountOrNone = Annotated[int, Field(ge=0, le=10**6)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokensOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=10**7, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MAX_LEAVES = 10**6
MAX_FLIPPED = 1e9
MAX_RATIO = 1e9
"""Of a bound on a ratio of probabilities: more is none, and float32 should hold it."""
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 3500
"""Of file systems; the second leaves room for what stands in a run's folder."""


class Section(BaseModel):
    """A table of the config file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    """The policy: any causal LM that transformers loads."""

    path: str = ""
    """Directory or Hub name."""
    chat_template: str = ""
    """A file, or the template itself, in place of the model's own; checkpoints keep it."""
    chat_template_timeout_s: Positive = 5.0
    """How long the template may take to write one prompt or observation."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on CUDA, float32 elsewhere."""
    device: str = "auto"
    """`auto` (cuda where there is one), or a torch device."""
    gradient_checkpointing: bool = False
    lora_rank: CountOrNone = 0
    """0 trains all weights; otherwise the rank of adapters (peft). `sampler.lora` says how the engine gets them."""
    lora_alpha: Positive = 32.0
    """What adapters add is scaled by alpha / rank. Usual: ranks of 16 to 64, alpha of 32 or twice the rank."""
    lora_dropout: Fraction = 0.0
    lora_target_modules: str | list[str] = "all-linear"


class DataConfig(Section):
    """Questions: JSON Lines, Parquet or a Hub name, in TRL's, verl's or Search-R1's columns, or question and answer."""

    train: str = ""
    eval: str = ""
    split: str = "train"
    """Split of a Hub dataset."""
    eval_split: str = "test"
    limit: NonNegativeInt = 0
    """Read only so many rows from the start; 0 = all."""
    eval_limit: NonNegativeInt = 0
    shuffle: bool = True


class EnvironmentConfig(Section):
    """The world that the agent acts in."""

    name: str = "search"
    """`search`, `calculator`, `single-turn` (no tools: a reward judges the first turn), `gym:ID` of gymnasium, or
    `package.module:Name` or `file.py:Name` (a class, one of gymnasium's too, or a function to offer as a tool)."""
    dialect: Literal["inline", "chat"] = "inline"
    tool_parser: str = "auto"
    """Who reads tool calls in the chat dialect: `json`, `harmony` (gpt-oss), `response-template` (the tokenizer's own,
    of transformers), or a parser of vLLM by its name; `auto` = the first that reads what the chat template writes."""
    tool_errors: Literal["show", "close"] = "show"
    """What a tool raises: `show` it to the policy as `Error: ValueError: ...`, or `close` the branch."""
    tool_timeout_s: Seconds = 30.0
    tool_retries: CountOrNone = 2
    """Further attempts after a timeout or a lost connection; then the branch is closed."""
    check_timeout_s: Seconds = 60.0
    """How long an environment's own `check()` may take before the first rollout."""
    max_concurrent_tools: Count = 64
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default_factory=list, max_length=16)
    """Further strings that end a turn; they stay in its text."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the environment, such as `corpus`, `retriever_url`, `topk` of `search`."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_string_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class RewardConfig(Section):
    """The outcome reward of a leaf: the weighted sum of these functions. If one returns None, the leaf is unscored."""

    functions: list[str] = Field(default_factory=lambda: ["exact_match"], min_length=1)
    """`exact_match`, `f1`, `format` (exact match with format terms), `environment` (what its steps gave, summed), or
    dotted paths in TRL's or verl's signature."""
    weights: list[float] = Field(default_factory=list)
    """One for each function; empty = 1 each."""
    eval_function: str = ""
    """The function that evaluations in `train` use; empty = `functions`."""
    timeout_s: Seconds = 60.0
    """How long a call of your own function may take; rollouts that it does not answer for are unscored."""
    structure: Fraction = 0.2
    """Of `format`: what a well-formed rollout with a wrong answer gets, and what a malformed one with a right answer
    loses."""
    final_format: Fraction = 0.1
    """Of `format`: what a malformed rollout with a wrong answer gets; one without an answer gets 0."""
    retrieval: Fraction = 0.0
    """Of `format`: added to `structure` if a tool has shown an accepted answer."""
    flip: Fraction = 0.0
    """Noise, to see what an estimator keeps: the chance that a leaf's reward is told as its mirror image, 1 as 0.

    It is drawn by the leaf's key; trees keep the true rewards beside them. Evaluations are never flipped."""
    flip_low: Annotated[float, Field(ge=-MAX_FLIPPED, le=MAX_FLIPPED, allow_inf_nan=False)] = 0.0
    """A flipped reward R is told as flip_low + flip_high - R; rewards lie between the two."""
    flip_high: Annotated[float, Field(ge=-MAX_FLIPPED, le=MAX_FLIPPED, allow_inf_nan=False)] = 1.0

    @property
    def evaluated(self) -> RewardConfig:
        """What evaluations while training are judged by."""
        one = {"functions": [self.eval_function], "weights": []}
        return self.model_copy(update=one) if self.eval_function else self

    @model_validator(mode="after")
    def _one_weight_a_function(self) -> RewardConfig:
        if self.flip_low >= self.flip_high:
            raise ValueError(f"flip_low is {self.flip_low:g}, flip_high only {self.flip_high:g}")
        if self.weights and len(self.weights) != len(self.functions):
            raise ValueError(f"weights has {len(self.weights)} entries, functions has {len(self.functions)}")
        if twice := [name for name in self.functions if self.functions.count(name) > 1]:
            raise ValueError(f"functions names {twice[0]} twice; give it a weight")
        return self


class RolloutConfig(Section):
    """The shape of the trees, and how turns are sampled."""

    num_trees: Count = 2
    num_expansions: CountOrNone = 2
    num_rounds: CountOrNone = 1
    """0 = chain GRPO: every tree is one chain."""
    num_kept_leaves: CountOrNone = 0
    """Leaves kept and scored in each tree; 0 = all of them, 1 + N·L."""
    include_root: bool = True
    """Whether an expansion may start again from the prompt."""
    candidates: Literal["all", "root"] = "all"
    """`root`: every expansion starts again from the prompt, so that trees are chains side by side."""
    allocation: Literal["even", "uncertain"] = "even"
    """`even`: every tree gets N expansions a round. `uncertain`: a round is a wave of all P prompts of a step, and its
    N·M·P expansions go to prompts by how much the rewards of their leaves disagree so far."""
    allocation_kappa: Positive = 1.0
    """How many leaves the run's mean reward weighs as, where a prompt's own few leaves say how much they disagree."""
    rescue: Literal["none", "failed", "dead"] = "none"
    """Whether a prompt is expanded further behind its last round: one whose rewards are all equal and below the run's
    mean so far (`failed`), or all equal (`dead`). It is branched where another outcome is likeliest."""
    max_rescues: Count = 8
    """Expansions of a prompt for that, `num_expansions` at a time, until its rewards differ."""
    distinct_siblings: bool = False
    """Draw each turn of a node from the policy given that it is none of those drawn there before, token for token. The
    estimator is then `state-loo` with `siblings = "distinct"`, whose weights account for it."""
    min_undrawn: Annotated[float, Field(ge=0.001, lt=1)] = 0.05
    """The least probability of what is left to draw at a node: where it is less, `distinct_siblings` draws none."""
    max_turns: Count = 4
    max_prompt_tokens: Tokens = 4096
    max_turn_tokens: Tokens = 500
    max_observation_tokens: Tokens = 500
    max_context_tokens: TokensOrNone = 0
    """Prompt, turns and observations together; 0 = as long as the model and the limits above allow."""
    max_live_trees: Count = 256
    """Trees that grow at the same time."""
    schedule: Literal["free", "lock-step"] = "free"
    """`free`: a turn starts when its own tool has answered; `lock-step`: all chains sample, then all act.

    Both grow the same trees."""
    temperature: Annotated[float, Field(ge=0.01, allow_inf_nan=False)] = 1.0
    """vLLM takes 0.01 for all below."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: TokensOrNone = 0
    entropies: bool = False
    """Keep the entropy of each turn's distributions in the tree file; it is also kept where the selection rule or the
    estimator reads it."""

    @property
    def num_leaves(self) -> int:
        """Leaves a whole tree grows: 1 + N·L."""
        return 1 + self.num_expansions * self.num_rounds

    @property
    def leaves_kept(self) -> int:
        """Leaves kept a tree, with the default resolved."""
        return self.num_kept_leaves or self.num_leaves

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest path that these limits allow; a model may have positions for less."""
        turns = self.max_turns * (self.max_turn_tokens + self.max_observation_tokens)
        return self.max_context_tokens or self.max_prompt_tokens + turns

    @model_validator(mode="after")
    def _kept_leaves_exist(self) -> RolloutConfig:
        if self.num_leaves > MAX_LEAVES:
            raise ValueError(
                f"1 + num_expansions * num_rounds is {self.num_leaves}; a tree has at most {MAX_LEAVES} leaves"
            )
        if self.candidates == "root" and not self.include_root:
            raise ValueError('candidates = "root" beside include_root = false leaves nothing to expand')
        if self.allocation == "uncertain" and self.num_leaves == 1:
            raise ValueError(
                'allocation = "uncertain" deals expansions, and there are none; set num_expansions and num_rounds '
                '(for chains, with candidates = "root")'
            )
        if self.num_kept_leaves and (self.allocation != "even" or self.rescue != "none"):
            name = f'rescue = "{self.rescue}"' if self.allocation == "even" else f'allocation = "{self.allocation}"'
            raise ValueError(f"{name} looks at the rewards of all leaves; leave num_kept_leaves out")
        if self.num_kept_leaves > self.num_leaves:
            raise ValueError(
                f"num_kept_leaves is {self.num_kept_leaves}, but a tree has at most "
                f"1 + num_expansions * num_rounds = {self.num_leaves} leaves"
            )
        if self.max_context_tokens and self.max_context_tokens <= 1:
            raise ValueError("max_context_tokens leaves no tokens for a turn")
        return self


class SelectionConfig(BaseModel):
    """Which nodes a round expands; the rule's options stand beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    rule: str = "uniform"
    """One of docs/concepts/selection.md, or your own: `package.module:name` or `file.py:name`, a function of columns
    and candidates that returns a score a candidate. Its keyword arguments are its options; beside them `temperature`
    (0 = the best are drawn) and `replacement` (false)."""
    timeout_s: Seconds = 60.0
    """How long a call of your own function may take."""

    @property
    def is_own(self) -> bool:
        """Whether the rule is a function of the user's."""
        return ":" in self.rule

    @property
    def options(self) -> dict[str, Any]:
        """The rule's options as given."""
        given = dict(self.model_extra or {})
        return {name: value for name, value in given.items() if name not in DRAWING} if self.is_own else given

    @property
    def temperature(self) -> float:
        """Of draws by the scores of a user's own function."""
        return float((self.model_extra or {}).get("temperature", 0.0))

    @property
    def replacement(self) -> bool:
        """Whether such draws may name a node twice."""
        return bool((self.model_extra or {}).get("replacement", False))

    @model_validator(mode="after")
    def _rule_and_options_exist(self) -> SelectionConfig:
        from treegrpo_cli._core import resolve_selection_options

        if not self.is_own:
            resolve_selection_options(self.rule, self.options)
            return self
        given = self.model_extra or {}
        temperature, replacement = given.get("temperature", 0.0), given.get("replacement", False)
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < inf:
            raise ValueError(f"temperature is {temperature!r:.60}, expected a number of 0 or more")
        if not isinstance(replacement, bool):
            raise ValueError(f"replacement is {replacement!r:.60}, expected true or false")
        if replacement and not temperature:
            raise ValueError("replacement draws by chance: give a temperature above 0 beside it")
        return self


DRAWING = ("temperature", "replacement")
"""Beside the options of a user's own rule: how draws follow from its scores."""


class BudgetConfig(Section):
    """What may be spent; 0 = no limit.

    Of a prompt: the first chain of each tree always runs. Before each round its trees are counted together: once
    a limit is reached no further expansion starts, and chains that run end as they would.
    """

    prompt_tokens: NonNegativeInt = 0
    """Generated tokens of a prompt, those of a shared turn once."""
    prompt_tool_calls: NonNegativeInt = 0
    prompt_leaves: NonNegativeInt = 0
    """Leaves of a prompt, scored or not; the last round starts just as many chains as are left."""
    prompt_seconds: NonNegative = 0.0
    """In which chains ran or rewards were asked for: the one limit under which the trees depend on the machine."""
    step_tokens: NonNegativeInt = 0
    """Generated tokens of a step, those of prompts that were thrown away too. A step is counted before each wave of
    expansions, and before fresh prompts are drawn: once a limit is reached, none is started."""
    step_tool_calls: NonNegativeInt = 0
    step_leaves: NonNegativeInt = 0
    """Leaves of a step; the last wave starts just as many chains as are left."""
    step_seconds: NonNegative = 0.0
    """Since the step's rollout began: trees depend on the machine, as under `prompt_seconds`."""
    run_tokens: NonNegativeInt = 0
    """Generated tokens of a run, those of prompts that were thrown away too: training ends after the step that reaches
    them. Schedules run over `train.num_steps` all the same, which is the most that are trained."""
    run_tool_calls: NonNegativeInt = 0
    run_seconds: NonNegative = 0.0
    """Of the steps alone, without evaluations and checkpoints."""

    @property
    def limits_steps(self) -> bool:
        """Whether the prompts of a step share a budget."""
        return any((self.step_tokens, self.step_tool_calls, self.step_leaves, self.step_seconds))

    @property
    def limits_prompts(self) -> bool:
        """Whether the trees of a prompt share a budget."""
        return any((self.prompt_tokens, self.prompt_tool_calls, self.prompt_leaves, self.prompt_seconds))


class SamplerConfig(Section):
    """The engine that samples turns."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto`: vLLM where it is installed, else transformers."""
    max_num_seqs: Count = 256
    """Turns decoded in one batch."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of the whole card that vLLM takes, weights and cache together, unless `kv_cache_bytes` is set."""
    kv_cache_bytes: NonNegativeInt = 0
    """For keys and values; 0 = on a GPU the rest of the share, on a CPU enough for `max_num_seqs` short contexts."""
    max_num_batched_tokens: TokensOrNone = 0
    """Tokens of a vLLM step; 0 = 16,384 on a card of 70 GiB or more, else 8,192. On a CPU at least a whole context."""
    enforce_eager: bool = False
    """Whether vLLM runs without CUDA graphs."""
    sleep: Literal["auto"] | bool = "auto"
    """Whether the engine gives its memory back while the policy is updated; `auto`: vLLM on CUDA does."""
    lora: Literal["auto", "adapter", "merged"] = "auto"
    """`adapter` keeps adapters beside the engine's weights; `merged` adds them to these, and bfloat16 rounds small
    changes away. `auto`: `adapter`, unless the engine computes in float32 or cannot keep them apart."""


class AdvantageConfig(BaseModel):
    """How rewards become advantages; the estimator's options stand beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    estimator: str = "tree-grpo"
    """One of `treegrpo estimators`, or your own: `package.module:name` or `file.py:name`, a function of columns that
    returns an advantage a node; its keyword arguments are its options. Empty where there are `terms`."""
    dead_prompts: Literal["keep", "drop", "refill"] = "keep"
    """Prompts whose rewards are all equal: keep their tokens and rows in the denominator and the KL, drop them, or drop
    them and draw fresh ones in their place (DAPO's dynamic sampling), as far as `train.max_gen_batches` goes."""

    terms: list[dict[str, Any]] = Field(default_factory=list)
    """In place of `estimator`: a sum, in each of which `[[advantage.terms]]` an `estimator`, its `weight` (1) and its
    options beside them stand; an option that is called weight too stands in a table `options`. `mask = "tool-calls"`:
    the term counts for the tokens of tool calls alone."""
    timeout_s: Seconds = 60.0
    """How long a call of your own function may take; there is one a prompt."""

    @property
    def options(self) -> dict[str, Any]:
        """The estimator's options as given."""
        return dict(self.model_extra or {})

    @property
    def score_terms(self) -> list[ScoreTerm]:
        """What advantages are the sum of, as the core takes it."""
        alone: list[ScoreTerm] = [{"estimator": self.estimator, "options": self.options}]
        return [read_term(term) for term in self.terms] or alone

    @model_validator(mode="after")
    def _estimators_and_options_exist(self) -> AdvantageConfig:
        from treegrpo_cli._core import Forest

        if self.terms:
            if self.estimator not in ("", type(self).model_fields["estimator"].default) or self.options:
                raise ValueError("an estimator and its options beside terms: they stand in a term of their own")
            object.__setattr__(self, "estimator", "")
        elif "mask" in self.options and ":" not in self.estimator:
            raise ValueError("a mask stands in a term: write the estimator and its mask under [[advantage.terms]]")
        ours = [term for term in self.score_terms if ":" not in term["estimator"]]
        if ours:
            Forest().score(ours)
        return self


class LossConfig(Section):
    """The clipped objective. `auto` goes by the dtype: in bfloat16, engine and trainer round differently."""

    ratio: Literal["token", "turn", "sequence"] = "token"
    """Whether each token has its own ratio to the old policy, or shares the mean of its turn or whole row."""
    old_logprobs: Literal["auto", "sampler", "recomputed"] = "auto"
    """Of the old policy: as the sampler returned them, or computed by the trainer before a step's first update.

    `auto`: recomputed where the dtype is not float32 or `importance_clip` is above 0, else the sampler's."""
    importance_clip: float | Literal["auto"] = "auto"
    """Upper bound of a token's weight, which is the old policy's probability over the sampler's.

    0 = no weights. `auto`: 2 for recomputed `old_logprobs` where the dtype is not float32, else 0."""
    clip_low: Fraction = 0.2
    clip_high: Annotated[float, Field(ge=0, le=MAX_RATIO, allow_inf_nan=False)] = 0.2
    dual_clip: float | Literal["auto"] = "auto"
    """Upper bound of the ratio where the advantage is negative; 0 = unbounded.

    `auto`: 3 where the dtype is not float32, else 0."""
    kl_coef: NonNegative = 0.0
    """Weight of the k3 estimate of KL(policy || reference); 0 loads no reference."""
    kl_ratio: bool = False
    """Multiply the estimate by the ratio, through which its gradient is that of the KL itself (DeepSeek-V3.2)."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus, which stands under `denominator` as all terms do.

    Under `constant`, it grows with the length of rows: rows of 100 tokens, divided by 1000, get a tenth of it."""
    denominator: Literal["token-mean", "sequence-mean", "constant"] = "token-mean"
    """What an optimizer step's sum over tokens is divided by: their number (DAPO); each row by its own tokens, and then
    by the number of rows (GRPO's equation, and GSPO's with `ratio = "sequence"`); a constant a row (Dr. GRPO)."""
    denominator_constant: Positive = 1000.0
    """Tokens per row, for `constant`."""
    prefix_weight: Fraction = 1.0
    """p in |L(n)|^p, the weight of a turn with |L(n)| leaves below it: 1 counts it once for each leaf, 0 once in all.

    `sequence-mean` needs 1."""

    @field_validator("dual_clip", "importance_clip", mode="before")
    @classmethod
    def _a_bound_is_above_one(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            return 0.0
        if is_number and value > MAX_RATIO:
            raise ValueError(f"expected at most {MAX_RATIO:g}, or 0 for no bound")
        if value == "auto" or (is_number and (value == 0 or value > 1)):
            return value
        raise ValueError("expected a number above 1, 0 (off) or auto")

    @model_validator(mode="after")
    def _settings_fit_together(self) -> LossConfig:
        if self.old_logprobs == "sampler" and self.importance_clip not in ("auto", 0):
            raise ValueError(
                'importance_clip weighs what is recomputed, and with old_logprobs = "sampler" the ratio itself is to '
                'the sampler; set old_logprobs = "recomputed" or importance_clip = 0'
            )
        if self.denominator == "sequence-mean" and self.prefix_weight != 1:
            raise ValueError(
                'denominator = "sequence-mean" gives every row the same weight, and prefix_weight = '
                f"{self.prefix_weight:g} takes some from rows that share turns; set prefix_weight = 1"
            )
        return self


LORA_LEARNING_RATE = 1e-5
"""The default for adapters: they start from zero, and move less at the same rate than whole weights do."""


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    learning_rate: Positive = 1e-6
    """Unless set, 1e-6; with adapters (`model.lora_rank`) 1e-5."""
    weight_decay: NonNegative = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    warmup_steps: NonNegativeInt = 0
    warmup_ratio: Fraction = 0.0
    """Share of all optimizer steps; used where `warmup_steps` is 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Positive = 1.0


class TrainConfig(Section):
    """The training loop."""

    num_steps: PositiveInt = 100
    prompts_per_step: Count = 16
    prompts_per_minibatch: CountOrNone = 0
    """Prompts per optimizer step; 0 = all of a step's."""
    max_gen_batches: Count = 4
    """With `advantage.dead_prompts = "refill"`: a step draws at most so many times `prompts_per_step` prompts."""
    num_epochs: Count = 1
    """Passes over a step's rollouts."""
    microbatch_tokens: PositiveInt = 16384
    """Tokens of one forward, padding included; changes memory, never the result. A larger tree is cut at branches."""
    attention_path: Literal["auto", "chains", "runs", "flex", "dense", "depth-first"] = "auto"
    """How shared prefixes are computed: `auto` chooses by shape and memory, `chains` repeats them in every row."""
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Of an update on a CPU; 0 = `OMP_NUM_THREADS` if it is set, else all cores, or one if other programs compute too.

    Runs can be equal to the bit only with the same number."""
    eval_steps: NonNegativeInt = 0
    """Evaluate every so many steps, before the first and after the last; 0 = never."""
    eval_tokens: NonNegativeInt = 0
    """Evaluate each time that so many tokens more were generated, and at both ends; 0 = go by `eval_steps`."""
    eval_samples: CountOrNone = 0
    """Chains that an evaluation samples for a question, at `rollout.temperature`; 0 = a greedy one."""
    save_steps: NonNegativeInt = 10
    """Write a checkpoint every so many steps, after the last, and where the run ends early; 0 = not in between."""
    max_checkpoints: NonNegativeInt = 2
    """Older ones are removed; 0 keeps all."""
    save_trees: bool = True
    max_failed_fraction: Fraction = 0.5
    """End the run if a larger share of a step's (or a rollout's) leaves failed, by prompt, tool or reward."""
    log_completions: CountOrNone = 0
    """Completions of each step to print with their rewards and to send to the loggers; `true` = 4, 0 = none."""

    @property
    def evaluates(self) -> bool:
        """Whether there are evaluations on the way."""
        return bool(self.eval_steps or self.eval_tokens)

    @field_validator("log_completions", mode="before")
    @classmethod
    def _true_is_a_few(cls, value: Any) -> Any:
        return 4 if value is True else value

    @model_validator(mode="after")
    def _minibatches_fit(self) -> TrainConfig:
        if self.prompts_per_minibatch > self.prompts_per_step:
            raise ValueError(
                f"prompts_per_minibatch is {self.prompts_per_minibatch}, prompts_per_step only {self.prompts_per_step}"
            )
        return self


class LimitsConfig(Section):
    """How much of a file is read before it is refused, so that a small file cannot fill memory or never end."""

    max_file_bytes: PositiveInt = Limits.max_file_bytes
    """Of one file, after decompression."""
    max_line_bytes: PositiveInt = Limits.max_line_bytes
    """Of one line: a row or a tree."""
    max_line_objects: PositiveInt = Limits.max_line_objects
    """Objects and lists in one line, or in a file that is one list."""
    max_lines: PositiveInt = Limits.max_lines
    """Of one file, blank ones too."""
    max_rows: PositiveInt = Limits.max_rows
    """Questions of one data set; `data.limit` reads the first of a longer one."""
    max_data_bytes: PositiveInt = Limits.max_data_bytes
    """Of all rows of one data set, as JSON: they stay in memory."""
    max_read_s: Seconds = Limits.max_read_s
    """Seconds spent on reading and unpacking one file."""
    max_wait_s: Seconds = Limits.max_wait_s
    """Seconds without a byte from a pipe."""

    @property
    def resolved(self) -> Limits:
        """The same as the readers take them."""
        return Limits(**self.model_dump())


class Config(Section):
    """Everything that a run needs; saved with it as `config.toml`."""

    seed: NonNegativeInt = 0
    output_dir: Annotated[str, Field(min_length=1)] = "runs/treegrpo"
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    selection: SelectionConfig = SelectionConfig()
    budget: BudgetConfig = BudgetConfig()
    sampler: SamplerConfig = SamplerConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    limits: LimitsConfig = LimitsConfig()

    @property
    def prompts_wait(self) -> bool:
        """Whether the prompts of a step grow wave by wave, so that their trees depend on each other."""
        return self.rollout.allocation != "even" or self.rollout.rescue != "none" or self.budget.limits_steps

    @model_validator(mode="after")
    def _adapters_learn_at_a_rate_of_their_own(self) -> Config:
        if self.model.lora_rank and "learning_rate" not in self.optimizer.model_fields_set:
            rate = {"learning_rate": LORA_LEARNING_RATE}
            object.__setattr__(self, "optimizer", self.optimizer.model_copy(update=rate))
        return self

    @model_validator(mode="after")
    def _turns_are_weighed_once(self) -> Config:
        from treegrpo_cli._core import describe_estimators

        weighing = {known["name"] for known in describe_estimators() if known["weighs"]}
        found = [term["estimator"] for term in self.advantage.score_terms if term["estimator"] in weighing]
        if found and self.loss.prefix_weight != 1:
            raise ValueError(f"{found[0]} weighs turns itself: loss.prefix_weight is 1 beside it")
        if found and self.loss.denominator == "sequence-mean":
            raise ValueError(f'{found[0]} weighs turns itself: loss.denominator cannot be "sequence-mean" beside it')
        return self

    @model_validator(mode="after")
    def _weights_are_those_of_the_draws(self) -> Config:
        if self.rollout.num_rounds == 0:
            return self
        wanted = ("state-loo", "distinct")
        for term in self.advantage.score_terms:
            distinct = (term["estimator"], term["options"].get("siblings")) == wanted
            if self.rollout.distinct_siblings and not distinct:
                raise ValueError(
                    f"rollout.distinct_siblings beside {term['estimator']}, which takes siblings for independent; "
                    'set advantage.estimator = "state-loo" and advantage.siblings = "distinct"'
                )
            if distinct and not self.rollout.distinct_siblings:
                raise ValueError('advantage.siblings = "distinct" beside rollout.distinct_siblings = false')
        return self

    @field_validator("output_dir")
    @classmethod
    def _a_folder_can_have_this_name(cls, name: str) -> str:
        if not name.strip("/"):
            raise ValueError("a run cannot be written to /")
        if "\0" in name:
            raise ValueError("the name contains a NUL character")
        if any(len(part.encode()) > MAX_NAME_BYTES for part in name.split("/")) or len(name.encode()) > MAX_PATH_BYTES:
            raise ValueError("the name is too long for a folder")
        return name

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        return [] if names == ["none"] else names
