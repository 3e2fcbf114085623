"""Turns that are not drawn again: what is left is drawn by the law of the policy, in both samplers alike."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers import check_distinct
from treegrpo_cli.samplers.transformers import sampling_logprobs
from treegrpo_cli.samplers.undrawn import Undrawn, without_drawn
from treegrpo_cli.types import DrawnTurn, SamplingParams

from tests.samplers.test_measures import asking
from tests.samplers.test_samplers import ENGINES, TOLERANCE, sample, start, tokens

CONTEXT = [10, 11, 12, 13]
PARAMS = SamplingParams(max_tokens=3, top_k=2, temperature=1.5)
"""Eight turns."""
NUM_DRAWS = 800
UNLIKELY = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}
"""Chi-square by degrees of freedom: one in a thousand is beyond."""

Turn = tuple[int, ...]


@pytest.fixture(scope="module")
def engines(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, vllm_on_cpu: None
) -> Iterator[dict[str, Any]]:
    started = {name: start(name, tiny_model_dir, tmp_path_factory.mktemp("log") / "log") for name in ENGINES}
    yield started
    for sampler in started.values():
        sampler.close()


@pytest.fixture(params=ENGINES)
def sampler(request: pytest.FixtureRequest, engines: dict[str, Any]) -> Any:
    return engines[request.param]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


def next_logprobs(model: Any, prefix: Turn) -> torch.Tensor:
    with torch.no_grad():
        return sampling_logprobs(model(torch.tensor([[*CONTEXT, *prefix]])).logits[:, -1].float(), [PARAMS])[0]


@pytest.fixture(scope="module")
def turns(model: Any) -> dict[Turn, DrawnTurn]:
    """Every turn, the likeliest first."""
    found = {(): DrawnTurn((), ())}
    for _ in range(PARAMS.max_tokens):
        longer = {}
        for prefix, turn in found.items():
            logprobs = next_logprobs(model, prefix)
            for token in logprobs.isfinite().nonzero()[:, 0].tolist():
                ids = (*prefix, token)
                longer[ids] = DrawnTurn(ids, (*turn.logprobs, float(logprobs[token])))
        found = longer
    assert len(found) == 8
    assert sum(turn.chance for turn in found.values()) == pytest.approx(1)
    return dict(sorted(found.items(), key=lambda pair: -pair[1].chance))


def choices(turns: dict[Turn, DrawnTurn]) -> list[list[DrawnTurn]]:
    """What may have been drawn: none, one, turns with a common beginning, all but two."""
    ranked = list(turns.values())
    first = ranked[0].token_ids[0]
    return [[], ranked[:1], [turn for turn in ranked if turn.token_ids[0] == first][:3], ranked[2:]]


def test_each_token_is_drawn_by_what_is_left_behind_it(model: Any, turns: dict[Turn, DrawnTurn]) -> None:
    for size in (1, 2, 3, 5, 7):
        for drawn in itertools.islice(itertools.combinations(turns.values(), size), 20):
            left = 1 - math.fsum(turn.chance for turn in drawn)
            for turn in turns.values():
                undrawn, chance = Undrawn(drawn), 1.0
                for place, token in enumerate(turn.token_ids):
                    logits = next_logprobs(model, turn.token_ids[:place])
                    row = without_drawn(logits[None], [undrawn])[0]
                    if not row.isfinite().any():  # nobody comes here
                        break
                    chance *= float(row.softmax(dim=-1)[token])
                    undrawn.advance(token)
                expected = 0.0 if turn in drawn else turn.chance / left
                assert chance == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("which", range(4))
def test_draws_follow_the_law_of_the_policy_given_what_is_left(
    sampler: Any, turns: dict[Turn, DrawnTurn], which: int
) -> None:
    drawn = choices(turns)[which]
    params = asking(PARAMS, drawn=tuple(drawn))
    completions = sample(sampler, [(CONTEXT, params, seed) for seed in range(NUM_DRAWS)])
    counts = Counter(tuple(completion.token_ids) for completion in completions)
    left = 1 - math.fsum(turn.chance for turn in drawn)
    expected = {ids: NUM_DRAWS * turn.chance / left for ids, turn in turns.items() if turn not in drawn}
    assert set(counts) <= set(expected)
    distance = math.fsum((counts[ids] - number) ** 2 / number for ids, number in expected.items())
    assert distance < UNLIKELY[len(expected) - 1]
    for completion in completions:
        assert completion.logprobs == pytest.approx(turns[tuple(completion.token_ids)].logprobs, abs=TOLERANCE)


def test_turns_beside_them_in_a_batch_are_what_they_were(sampler: Any, turns: dict[Turn, DrawnTurn]) -> None:
    plain = [(CONTEXT, asking(PARAMS, max_tokens=12), seed) for seed in range(12)]
    conditioned = [(CONTEXT, asking(PARAMS, drawn=tuple(choices(turns)[2])), seed) for seed in range(12)]
    mixed: Sequence[Any] = [item for pair in zip(plain, conditioned, strict=True) for item in pair]
    together = tokens(sample(sampler, mixed))
    assert together[::2] == tokens(sample(sampler, plain))
    assert together[1::2] == tokens(sample(sampler, conditioned))


def test_nothing_is_left_of_turns_that_were_all_drawn_and_nothing_changes_away_from_them() -> None:
    half = math.log(0.5)
    undrawn = Undrawn(
        [DrawnTurn((1, 2), (half, half)), DrawnTurn((1, 3), (half, half)), DrawnTurn((4,), (math.log(0.2),))]
    )
    assert undrawn.changes() == ([1, 4], [-math.inf, -math.inf])
    undrawn.advance(5)
    assert undrawn.changes() == ([], [])
    logits = torch.zeros(2, 6)
    assert without_drawn(logits, [undrawn, None]) is logits


def test_what_is_not_to_be_drawn_again_stands_beside_no_greedy_turn(sampler: Any, turns: dict[Turn, DrawnTurn]) -> None:
    params = asking(PARAMS, greedy=True, drawn=tuple(choices(turns)[1]))
    with pytest.raises(ValueError, match="greedy, which draws nothing"):
        sample(sampler, [(CONTEXT, params, 0)])


def test_an_engine_that_schedules_ahead_is_refused_in_one_line() -> None:
    check_distinct(True, "vllm", "cpu")
    check_distinct(True, "transformers", "cuda")
    check_distinct(False, "vllm", "cuda")
    with pytest.raises(UserError, match=r"distinct_siblings: on CUDA vLLM .* sampler.engine = \"transformers\""):
        check_distinct(True, "vllm", "cuda")
