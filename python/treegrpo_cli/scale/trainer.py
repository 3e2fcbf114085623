"""Trainer ranks -> the `StepTrainer` that the loop knows; a rank that dies costs time and nothing else.

The driver loads no model. It keeps references to the forests and scores of all steps since the last checkpoint, which
lie in Ray's object store (about 20 bytes a token, on disk where memory runs short; 16 GiB at most). Where a rank dies,
all are started again, load that checkpoint, take those steps again, and then the one that was cut off: in float32 on as
many ranks the run ends with the same weights and metrics. That costs at most `train.save_steps` updates, no rollout.

An engine that comes back where weights go from card to card asks for them (`CardUpdate`), in the thread of its return,
whatever the others do. Two locks keep that apart, always taken in this order: `sending` of the routed sampler, then the
ranks' own. The engine has `sending` until it serves, so that nothing is handed over meanwhile, and waits for the ranks
where an update or a checkpoint holds them; an update waits for the engine in turn, and never asks for `sending`; who
hands over has no hold on the ranks while it waits for `sending`. The event loop takes neither. So the engine always
gets there before weights are handed over, also where turns in flight wait for it, and the hand-over for those. It gets
what the ranks hold then: the weights of the others, or those of the update that it waited for, which the others get
next; its turns carry their version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.scale.card_update import CardUpdate
from treegrpo_cli.scale.columns import StepColumns
from treegrpo_cli.scale.engines import RayEngines
from treegrpo_cli.scale.rank_actor import Opened, PathRefusedError, Refusals, Updated
from treegrpo_cli.scale.rank_actors import Options, RankActors, RankDiedError
from treegrpo_cli.scale.ways import API, Way
from treegrpo_cli.scale.weights import Header, Published, Ref, send
from treegrpo_cli.train.checkpoint_folders import step_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from treegrpo_cli._core import Forest, Scores
    from treegrpo_cli.config import Config
    from treegrpo_cli.models.weights import Adapter
    from treegrpo_cli.samplers.base import Sampler

MAX_LOSSES = 3
"""How often ranks are started again before an update succeeds."""

MAX_KEPT_BYTES = 16 << 30
"""Of the steps since the last checkpoint."""

Metrics = dict[str, float | str]


def open_ranks(
    config: Config, say: Callable[[str], None], tokenizer: Any, options: Options, way: Way = "store"
) -> RankGroup:
    """Start the ranks; `way`: how their weights get to engines. Raises UserError as loading a policy does."""
    num_ranks = config.scale.trainer_ranks
    say(f"starting {num_ranks} trainer rank{'s' if num_ranks > 1 else ''} ...")
    return RankGroup(config, say, tokenizer, options, way)


class RankGroup:
    """A `StepTrainer`: `scale.trainer_ranks` processes that train one model. `say` takes what rank 0 says.

    `is_whole` stays True where ranks are gone: they can come back to the last whole step. One call at a time, from any
    thread; engines that come back ask beside it.
    """

    def __init__(
        self, config: Config, say: Callable[[str], None], tokenizer: Any, options: Options, way: Way = "store"
    ) -> None:
        self.step, self.is_whole, self.packing_s = 0, True, 0.0
        self._config, self._say, self._tokenizer, self._options = config, say, tokenizer, options
        self._way = way
        self._saved: Path | None = None
        self._since: list[Ref] = []
        self._kept_bytes = 0
        self._refusals: Refusals = {}
        self._num_losses, self._is_opened, self._is_closed = 0, False, False
        self._turn = RLock()
        """Held while ranks do something that is one piece: an update, an exchange, all weights for one engine."""
        self._actors: RankActors | None = None
        opened: Opened = self._ask("opening")
        self._is_opened = True
        self._dtype, self._adapter, self._shapes = opened.dtype, opened.adapter, opened.shapes

    @property
    def dtype(self) -> str:
        """The dtype that the policy computes in."""
        return self._dtype

    @property
    def trained(self) -> Trained:
        """The adapter as it started, or all weights."""
        return Trained(self._adapter, self._way if self._way in API else "")

    def check(self, sampler: Sampler) -> None:
        """Raise UserError where adapters must be merged, and rounding would keep too little of them."""
        if not sampler.takes_adapter:
            self._ask("check_merged")

    def update(self, forest: Forest, scores: Scores, prompts: NDArray[np.uint32] | None = None) -> Metrics:
        """Train on these prompts of a step's forest; once more from the last checkpoint on where a rank dies."""
        import ray

        columns = StepColumns.of(forest, scores, prompts)
        step = ray.put(columns)
        with self._turn:
            try:
                updated: Updated = self._ask("update", step)
            except UserError:
                self._look_whether_whole()
                raise
            self._keep(step, columns.num_bytes)
            self._num_losses = 0
            self.step, self.packing_s = self.step + 1, updated.packing_s
        return updated.metrics

    def send_weights(self, sampler: Sampler) -> None:
        """Hand the sampler all weights, gathered and sent chunk by chunk, or the adapter where it takes that."""
        if self._adapter is not None and sampler.takes_adapter:
            if self._config.scale.placement == "colocated":
                self._ask("empty_cache")  # an engine that shares the card wakes for the adapter
            adapter: Adapter = self._ask("adapter")
            sampler.update_adapter(adapter, self.step)
        else:
            streamed = Published(Header(self.step, self._shapes), self._chunks, lasts=False)
            if self._way in API and isinstance(sampler, RayEngines):
                sampler.hand_over(self._from_card_to_card(sampler.actors))
            else:
                sampler.update_weights(streamed.weights(), self.step)

    def _from_card_to_card(self, engines: list[Any]) -> CardUpdate:
        return CardUpdate(self.step, engines, lambda: self._exchange(engines), self._end_ranks, self._bring)

    def _exchange(self, engines: list[Any]) -> None:
        with self._turn:
            self._ask("empty_cache")
            ranks, parallel = self._ready(), self._config.scale.tensor_parallel
            try:
                ranks.ask("send_to_cards", self._way, engines, parallel, ranks.ask("address"), self.step)
            except RankDiedError as error:
                self._end_ranks()
                raise UserError(
                    f"step {self.step}: weights did not get from rank to engine ({error}); what both print is in "
                    f"{self._config.output_dir}; go on with --resume"
                ) from error

    def _bring(self, engine: Any) -> None:
        """Let an engine that came back take the weights that the ranks hold, when they are free."""
        with self._turn:
            send(Published(Header(self.step, self._shapes), self._chunks, lasts=False), engine)
            self._ask("empty_cache")

    def save(self, output_dir: Path, state: dict[str, Any]) -> Path:
        """Write a checkpoint of this step, every rank its share."""
        path: Path = self._ask("save", output_dir.absolute(), state)
        self._begin_at(path)
        return path

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint, whoever wrote it; return the run's own state."""
        self.step, state = self._ask("load", path.absolute())
        self._begin_at(path.absolute())
        return dict(state)

    def close(self) -> None:
        """End the ranks; who still asks them for something gets an error."""
        self._is_closed = True
        self._end_ranks()

    def _end_ranks(self) -> None:
        """Kill them, from any thread: what they were asked ends with an error."""
        actors, self._actors = self._actors, None
        if actors is not None:
            actors.kill()

    def _ask(self, method: str, *args: Any) -> Any:
        """Ask all ranks; where one dies, let them come back to this step and ask again."""
        with self._turn:
            while True:
                try:
                    answer = self._ready().ask(method, *args)
                    self._pass_on_lines()
                    return answer
                except (RankDiedError, PathRefusedError) as error:
                    self._lose(error)

    def _ready(self) -> RankActors:
        """The ranks, started and brought to this step where they are not there."""
        if self._is_closed:
            raise RuntimeError("the ranks were closed")
        if self._actors is not None and not self._actors.is_usable:
            self._end_ranks()
        if self._actors is None:
            self._actors = self._started()
        return self._actors

    def _started(self) -> RankActors:
        log_dir = Path(self._config.output_dir).absolute()
        actors = RankActors(self._config, self._tokenizer, self._options, log_dir)
        try:
            if self._saved is not None:
                actors.ask("load", self._saved)
            if self._refusals:
                actors.ask("refuse", self._refusals)
            for step in self._since:
                actors.ask("update", step)
            if self._is_opened:
                actors.take_lines()  # they were said before
        except BaseException:
            actors.kill()
            raise
        return actors

    def _lose(self, error: RankDiedError | PathRefusedError) -> None:
        """Kill the ranks, and say how it goes on. Raises UserError where it has happened too often in a row."""
        if self._is_closed:
            raise error
        self._end_ranks()
        self._num_losses += 1
        if isinstance(error, PathRefusedError):
            self._refusals |= error.refusals
            reason = f"{', '.join(error.refusals)} cannot be computed ({next(iter(error.refusals.values())).refusal})"
        else:
            reason = str(error)
        if self._num_losses > MAX_LOSSES or self._kept_bytes > MAX_KEPT_BYTES:
            self.is_whole = False
            why = "the steps since the last checkpoint are more than is kept: lower train.save_steps"
            if self._num_losses > MAX_LOSSES:
                why = f"{self._num_losses} times in a row"
            raise UserError(
                f"step {self.step + 1}: {reason}; {why}; what ranks print is in {self._config.output_dir}/rank-*.log"
            ) from error
        self._say(f"warning: {reason}: all trainer ranks start again {self._way_back()}")

    def _way_back(self) -> str:
        start = "from the model" if self._saved is None else f"from {self._saved.name}"
        first = (0 if self._saved is None else step_of(self._saved) or 0) + 1
        if not self._since:
            return start
        steps = f"step {first}" if len(self._since) == 1 else f"steps {first} to {self.step}"
        return f"{start} and take {steps} once more"

    def _keep(self, step: Ref, num_bytes: int) -> None:
        """Keep what a step trained on until a checkpoint has it; where that is too much, nothing."""
        self._kept_bytes += num_bytes
        self._since = [*self._since, step] if self._kept_bytes <= MAX_KEPT_BYTES else []

    def _begin_at(self, path: Path) -> None:
        """Let a checkpoint be what ranks come back to."""
        self._saved, self._since, self._kept_bytes = path, [], 0

    def _look_whether_whole(self) -> None:
        """Know, behind an error, whether weights have moved; ranks that wait for each other are given up instead."""
        if self._actors is not None and self._actors.is_usable:
            with suppress(RankDiedError):
                self.is_whole = bool(self._actors.ask("is_whole"))
                self._pass_on_lines()

    def _pass_on_lines(self) -> None:
        if self._actors is not None:
            for line in self._actors.take_lines():
                self._say(line)

    def _chunks(self) -> Iterator[Ref]:
        """Yield references to chunks of all weights, each gathered when it is asked for.

        Where a rank dies the rest comes from those that take its place: what they gather is the same.
        """
        num_sent = 0
        while True:
            try:
                for chunk in islice(self._one_pass(), num_sent, None):
                    num_sent += 1
                    yield chunk
                return
            except RankDiedError as error:
                self._lose(error)

    def _one_pass(self) -> Iterator[Ref]:
        actors = self._ready()
        actors.ask("begin_weights")
        while (chunk := actors.next_chunk()) is not None:
            yield chunk
