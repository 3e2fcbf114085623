"""Requests -> completions with a plain transformers model: exact, small, everywhere.

Batching is continuous: waiting requests are prefilled together, their key-value cache is joined to the
running one (padded on the left), and every step decodes one token for all. Any causal LM whose cache is
keys and values will do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from treegrpo_cli.models.positions import fix_positions
from treegrpo_cli.models.pretrained import context_limit, load_causal_lm, load_tokenizer
from treegrpo_cli.models.weights import Adapter
from treegrpo_cli.samplers.adapted import AdaptedLayers, compute_head_in_float32
from treegrpo_cli.samplers.measures import cut_after, entropies_of
from treegrpo_cli.samplers.stepping import Request, SteppedSampler
from treegrpo_cli.samplers.text import end_token_ids, find_stop, turn_text
from treegrpo_cli.samplers.undrawn import Undrawn, without_drawn
from treegrpo_cli.types import Completion, SamplingParams

MAX_PREFILL_TOKENS = 16384
"""Padded tokens of one prefill; bounds its memory."""


@dataclass(slots=True)
class Row:
    """A request in the batch and what it has sampled so far."""

    request: Request
    generator: torch.Generator
    """The request's own, seeded with its seed: what else is in the batch cannot change its noise."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    """Of the same distributions, where they are asked for."""
    finish_reason: str = ""
    undrawn: Undrawn | None = None

    @property
    def num_tokens(self) -> int:
        """Context and turn together."""
        return len(self.request.context) + len(self.token_ids)


class Batch:
    """Rows that decode together.

    `mask` [B, T] bool is True on tokens; the cache holds keys and values [B, heads, T, size] a layer.
    """

    def __init__(self, rows: list[Row], cache: DynamicCache, mask: torch.Tensor) -> None:
        self.rows, self.cache, self.mask = rows, cache, mask

    def join(self, other: Batch) -> None:
        """Append the rows of `other`; the shorter of the two is padded on the left."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_pad_left(mine.keys, length, 2), _pad_left(theirs.keys, length, 2)])
            mine.values = torch.cat([_pad_left(mine.values, length, 2), _pad_left(theirs.values, length, 2)])
        self.mask = torch.cat([_pad_left(self.mask, length, 1), _pad_left(other.mask, length, 1)])
        self.rows += other.rows

    def keep(self, positions: list[int]) -> None:
        """Keep the rows at these positions, and drop the padding that all of them share."""
        index = torch.tensor(positions, device=self.mask.device)
        mask = self.mask[index]
        start = int(mask.int().argmax(dim=1).min())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[index, :, start:], layer.values[index, :, start:]
        self.mask = mask[:, start:]
        self.rows = [self.rows[position] for position in positions]


class TransformersSampler(SteppedSampler):
    """Samples with transformers on one device; keeps no prefixes between requests."""

    name = "transformers"
    keeps_prefixes = False

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str,
        device: str,
        max_model_len: int,
        max_num_seqs: int,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(context_limit(model_path, max_model_len))
        self.tokenizer = load_tokenizer(model_path)
        self.model = load_causal_lm(model_path, getattr(torch, dtype)).to(device).eval()
        fix_positions(self.model, self.max_model_len)
        compute_head_in_float32(self.model)
        self._adapted = AdaptedLayers(self.model, adapter) if adapter else None
        self.takes_adapter = adapter is not None
        self.end_ids = end_token_ids(model_path, self.tokenizer)
        self.max_num_seqs = max_num_seqs
        self._queue: deque[Row] = deque()
        self._batch: Batch | None = None

    def add(self, request: Request) -> None:
        """Queue a request."""
        row = Row(request, torch.Generator(self.model.device).manual_seed(request.seed))
        row.undrawn = Undrawn(request.params.drawn) if request.params.drawn else None
        self._queue.append(row)

    def drop(self, request_id: str) -> None:
        """Take a request out of the queue, or out of the batch."""
        self._queue = deque(row for row in self._queue if row.request.request_id != request_id)
        self._keep_if(lambda row: row.request.request_id != request_id)

    @torch.inference_mode()
    def step(self) -> list[tuple[str, Completion]]:
        """Prefill what waits where there is room, else decode one token for the batch; return what ended."""
        rows = self._admit()
        if rows:
            fresh, logits = self._prefill(rows)
            self._sample(rows, logits)
            if self._batch:
                self._batch.join(fresh)
            else:
                self._batch = fresh
        elif self._batch:
            self._sample(self._batch.rows, self._decode(self._batch))
        return self._take_ended()

    def weight_shapes(self) -> dict[str, torch.Size]:
        """The names and shapes of the model's state dict."""
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}

    @torch.no_grad()
    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Copy a state dict into the model, a tensor at a time."""
        own = self.model.state_dict()
        for name, tensor in weights:
            own[name].copy_(tensor)

    def load_adapter(self, adapter: Adapter) -> None:
        """Add this adapter to what its layers give."""
        assert self._adapted is not None
        self._adapted.load(adapter)

    def prefix_cache_hit_ratio(self) -> None:
        """None: no prefixes are kept."""

    def free(self) -> None:
        """Forget model and batch."""
        self._queue.clear()
        self._batch = self._adapted = None
        del self.model

    def _admit(self) -> list[Row]:
        """Take rows off the queue that fit into the batch and into one prefill; one always fits."""
        room = self.max_num_seqs - (len(self._batch.rows) if self._batch else 0)
        rows: list[Row] = []
        longest = 0
        while self._queue and len(rows) < room:
            longest = max(longest, self._queue[0].num_tokens)
            if rows and longest * (len(rows) + 1) > MAX_PREFILL_TOKENS:
                break
            rows.append(self._queue.popleft())
        return rows

    def _prefill(self, rows: list[Row]) -> tuple[Batch, torch.Tensor]:
        """Run the contexts, padded on the left; return the batch and the logits behind them, [B, V]."""
        length, device = max(row.num_tokens for row in rows), self.model.device
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, length - row.num_tokens :] = torch.tensor(row.request.context)
            mask[i, length - row.num_tokens :] = True
        batch = Batch(rows, DynamicCache(), mask.to(device))
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return batch, self._forward(batch, ids.to(device), positions.to(device))

    def _decode(self, batch: Batch) -> torch.Tensor:
        """Run the last token of every row; return the logits behind it, [B, V]."""
        device = self.model.device
        ids = torch.tensor([[row.token_ids[-1]] for row in batch.rows], device=device)
        positions = torch.tensor([[row.num_tokens - 1] for row in batch.rows], device=device)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], dim=1)
        return self._forward(batch, ids, positions)

    def _forward(self, batch: Batch, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=batch.mask.long(),
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _sample(self, rows: list[Row], logits: torch.Tensor) -> None:
        """Add one token to every row, and say why a row ends where it does."""
        params = [row.request.params for row in rows]
        logprobs = sampling_logprobs(logits, params)
        drawn_from = without_drawn(logprobs, [row.undrawn for row in rows])
        tokens = draw(drawn_from, [None if row.request.params.greedy else row.generator for row in rows])
        chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        for row, token, logprob in zip(rows, tokens.tolist(), chosen, strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if row.undrawn:
                row.undrawn.advance(token)
            row.finish_reason = self._finish_reason(row)
        asked = [place for place, each in enumerate(params) if each.entropies]
        if asked:
            for place, entropy in zip(asked, entropies_of(logprobs[asked]).tolist(), strict=True):
                rows[place].entropies.append(entropy)

    def _finish_reason(self, row: Row) -> str:
        params, num_tokens = row.request.params, len(row.token_ids)
        if row.token_ids[-1] in self.end_ids or find_stop(self.tokenizer, row.token_ids, params.stop):
            return "stop"
        if num_tokens >= params.max_tokens:
            return "length"
        return "" if cut_after(row.logprobs, params, num_tokens - 1) is None else "pruned"

    def _take_ended(self) -> list[tuple[str, Completion]]:
        ended = [row for row in self._batch.rows if row.finish_reason] if self._batch else []
        if ended:
            self._keep_if(lambda row: not row.finish_reason)
        return [(row.request.request_id, self._completion(row)) for row in ended]

    def _completion(self, row: Row) -> Completion:
        text = turn_text(self.tokenizer, row.token_ids, row.request.params.stop, self.end_ids)
        entropies = row.entropies if row.request.params.entropies else None
        return Completion(row.token_ids, row.logprobs, text, row.finish_reason, entropies=entropies)

    def _keep_if(self, wanted: Callable[[Row], bool]) -> None:
        """Drop the rows of the batch that are not wanted, and the batch with its last row."""
        if self._batch:
            positions = [i for i, row in enumerate(self._batch.rows) if wanted(row)]
            if not positions:
                self._batch = None
            elif len(positions) < len(self._batch.rows):
                self._batch.keep(positions)


def sampling_logprobs(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Return the log-probabilities sampled from, nats: after temperature, then top-k, then top-p.

    `logits` [B, V] float32, one entry of `params` a row. A greedy row gets the model's own distribution.
    Top-p keeps the fewest tokens whose probability, among those that top-k left, is at least p.
    """
    device = logits.device
    temperature = torch.tensor([1.0 if each.greedy else each.temperature for each in params], device=device)
    logits = logits / temperature[:, None]
    if any(not each.greedy and (each.top_k > 0 or each.top_p < 1.0) for each in params):
        size = logits.shape[1]
        top_k = torch.tensor([size if each.greedy else each.top_k or size for each in params], device=device)
        top_p = torch.tensor([1.0 if each.greedy else each.top_p for each in params], device=device)
        logits = _filtered(logits, top_k[:, None], top_p[:, None])
    return logits.log_softmax(dim=-1)


def _filtered(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set logits outside top-k and top-p to minus infinity; the vocabulary size and 1 keep all."""
    values, order = logits.sort(dim=-1, descending=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    values = values.masked_fill(rank >= top_k, float("-inf"))
    probability = values.softmax(dim=-1)
    mass_before = probability.cumsum(dim=-1) - probability
    values = values.masked_fill((mass_before >= top_p) & (top_p < 1.0), float("-inf"))
    return torch.empty_like(logits).scatter(1, order, values)


def draw(logprobs: torch.Tensor, generators: list[torch.Generator | None]) -> torch.Tensor:
    """Return one token a row of `logprobs` [B, V], [B] int64: the likeliest where a row has no generator.

    Gumbel-max: a sampled token is the likeliest after each log-probability got noise of its own. Another
    batch changes the last bits of log-probabilities; that changes a token only where two lie that close
    after the noise, whatever the size of the vocabulary. Cumulated probabilities would add the bits up.
    """
    exponential = torch.ones_like(logprobs)
    for i, generator in enumerate(generators):
        if generator is not None:
            exponential[i].exponential_(generator=generator)
    return (logprobs - exponential.log()).argmax(dim=-1)


def _pad_left(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """Lengthen one dimension to `length` with zeros in front."""
    missing = length - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)
