"""One sampler over replicas that die, return, sleep and take weights."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from treegrpo_cli.errors import UserError
from treegrpo_cli.samplers.base import EngineCounts
from treegrpo_cli.samplers.routing import NoReplicaError, RoutedSampler
from treegrpo_cli.types import Completion, SamplingParams

from tests.samplers.fake_replicas import FakeReplica, FakeUpdate, publish

PARAMS = SamplingParams(max_tokens=8)


def routed(*replicas: FakeReplica, said: list[str] | None = None, **options: Any) -> RoutedSampler:
    lines = [] if said is None else said
    return RoutedSampler("fakes", replicas, publish, say=lines.append, **options)  # type: ignore[arg-type]


def named(number: int, **fields: Any) -> list[FakeReplica]:
    return [FakeReplica(f"engine {i}", **fields) for i in range(number)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


async def ask(sampler: RoutedSampler, number: int, keys: int = 7) -> list[Completion]:
    """`number` turns at once, of `keys` prompts."""
    return await asyncio.gather(
        *(sampler.sample([seed % keys] * 20, replace(PARAMS, prefix_key=seed % keys), seed) for seed in range(number))
    )


def turns(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def jittering(seed: int) -> Callable[[], float]:
    draw = random.Random(seed)
    return lambda: draw.random() * 0.005


def test_turns_do_not_depend_on_the_number_of_replicas_or_on_their_deaths() -> None:
    alone = turns(asyncio.run(ask(routed(*named(1)), 60)))
    replicas = named(3, delay_s=jittering(1))

    async def with_deaths() -> list[Completion]:
        sampler = routed(*replicas)
        asking = asyncio.ensure_future(ask(sampler, 60))
        for replica in (replicas[0], replicas[2], replicas[0]):
            await asyncio.sleep(0.002)
            replica.is_dead = True
        return await asking

    assert turns(asyncio.run(with_deaths())) == alone
    assert all(replica.served for replica in replicas)


def test_turns_of_a_prompt_go_to_one_replica_while_the_load_allows_it() -> None:
    replicas = named(4)
    sampler = routed(*replicas)

    async def one_after_another() -> None:
        for seed in range(40):
            await sampler.sample([1] * 20, replace(PARAMS, prefix_key=seed % 5), seed)

    asyncio.run(one_after_another())
    for key in range(5):
        assert sum(any(served == key for served, _ in replica.served) for replica in replicas) == 1


def test_a_replica_that_returns_has_the_current_weights_before_its_first_request() -> None:
    replicas, said = named(2), []
    sampler = routed(*replicas, said=said)
    sampler.update_weights(0.5, 1)  # type: ignore[arg-type]
    asyncio.run(ask(sampler, 10))
    replicas[1].may_return.clear()
    replicas[1].is_dead = True
    asyncio.run(ask(sampler, 10))
    assert sampler.live == [replicas[0]]
    sampler.update_weights(0.25, 2)  # type: ignore[arg-type]
    assert (replicas[0].taken, replicas[1].taken) == ([1, 2], [1])
    replicas[1].may_return.set()
    until(lambda: len(sampler.live) == 2)
    assert replicas[1].taken == [1, 2]
    found = asyncio.run(ask(sampler, 10))
    assert {completion.policy_version for completion in found} == {2}
    assert replicas[1].served[-1] == (replicas[1].served[-1][0], 2)
    assert said == [
        "engine 1 is gone (killed): its turns are sampled again elsewhere",
        "engine 1 is back",
    ]
    sampler.close()


def test_weights_that_cannot_be_read_later_reach_a_returned_replica_with_the_next_update() -> None:
    replicas = named(2)
    sampler = routed(*replicas)
    sampler.hand_over(FakeUpdate(0.5, 1, lasts=False))
    replicas[0].is_dead = True
    asyncio.run(ask(sampler, 4))
    until(lambda: not replicas[0].is_dead)
    time.sleep(0.02)
    assert sampler.live == [replicas[1]]
    sampler.hand_over(FakeUpdate(0.25, 2, lasts=False))
    assert sampler.live == replicas
    assert replicas[0].weights == 0.25
    sampler.close()


def test_a_replica_that_kept_its_weights_serves_again_at_once() -> None:
    replicas = named(2, returned_version=1)
    sampler = routed(*replicas)
    sampler.hand_over(FakeUpdate(0.5, 1, lasts=False))
    replicas[0].is_dead = True
    asyncio.run(ask(sampler, 4))
    until(lambda: sampler.live == replicas)
    assert replicas[0].taken == [1]
    sampler.close()


def test_a_replica_that_cannot_take_the_weights_is_out_until_it_has_them() -> None:
    replicas = named(2)
    replicas[0].dies_at_take = True
    sampler = routed(*replicas)
    sampler.update_weights(0.5, 1)  # type: ignore[arg-type]
    assert replicas[1].weights == 0.5
    until(lambda: len(sampler.live) == 2)
    assert replicas[0].weights == 0.5
    sampler.close()


def test_requests_wait_for_the_last_replica_to_return() -> None:
    replicas = named(1)
    sampler = routed(*replicas)
    replicas[0].is_dead = True
    replicas[0].may_return.clear()

    async def wait() -> list[Completion]:
        asking = asyncio.ensure_future(ask(sampler, 5))
        await asyncio.sleep(0.05)
        assert not asking.done()
        replicas[0].may_return.set()
        return await asking

    assert turns(asyncio.run(wait())) == turns(asyncio.run(ask(routed(*named(1)), 5)))
    sampler.close()


def test_one_line_says_so_where_no_replica_comes_back_in_time() -> None:
    [replica] = named(1)
    sampler = routed(replica, return_s=0.05)
    replica.is_dead = True
    replica.may_return.clear()
    with pytest.raises(NoReplicaError, match=r"^no engine came back within 0.05 s \(engine 0: killed\)$"):
        asyncio.run(ask(sampler, 2))
    sampler.close()


def test_one_line_says_so_at_once_where_all_are_given_up() -> None:
    replicas = named(2, num_lives=0)
    sampler = routed(*replicas)
    for replica in replicas:
        replica.is_dead = True
    with pytest.raises(UserError, match=r"^no engine is left \(engine 0: it was started too often; engine 1: it was"):
        asyncio.run(ask(sampler, 2))


def test_a_turn_at_which_replica_after_replica_dies_is_given_up() -> None:
    [replica] = named(1)
    sampler = routed(replica)

    async def deadly() -> Completion:
        replica.delay_s = lambda: replica.__setattr__("is_dead", True) or 0.0  # type: ignore[func-returns-value]
        return await sampler.sample([1], PARAMS, 0)

    with pytest.raises(NoReplicaError, match="5 engines were gone while they sampled the same turn: killed"):
        asyncio.run(deadly())
    sampler.close()


def test_a_request_that_is_wrong_itself_is_not_asked_elsewhere() -> None:
    replicas = named(2)
    sampler = routed(*replicas)
    with pytest.raises(ValueError, match="empty range"):
        asyncio.run(sampler.sample([1], replace(PARAMS, max_tokens=0), 0))
    assert sampler.live == replicas


def test_a_cancelled_request_is_cancelled_at_its_replica_and_counts_no_longer() -> None:
    replicas = named(2, delay_s=lambda: 60.0)
    sampler = routed(*replicas)

    async def cancel() -> None:
        asking = [asyncio.ensure_future(sampler.sample([1], PARAMS, seed)) for seed in range(4)]
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="4 requests are still running"):
            sampler.update_weights(0.5, 1)  # type: ignore[arg-type]
        for each in asking:
            each.cancel()
        await asyncio.wait(asking)

    asyncio.run(cancel())
    assert sum(replica.num_cancelled for replica in replicas) == 4
    assert [replica.num_running for replica in replicas] == [0, 0]
    sampler.update_weights(0.5, 1)  # type: ignore[arg-type]
    assert [replica.version for replica in replicas] == [1, 1]


def test_steps_and_tokens_are_sums_over_the_replicas_and_seconds_their_mean() -> None:
    replicas = named(3)
    sampler = routed(*replicas)
    assert sampler.prefix_cache_hit_ratio() is None
    asyncio.run(ask(sampler, 12))
    assert sampler.prefix_cache_hit_ratio() == 0.5
    assert sampler.prefix_cache_hit_ratio() is None
    assert sampler.take_counts() == EngineCounts(1.5, 6, 9)
    replicas[2].may_return.clear()
    replicas[2].is_dead = True
    assert sampler.take_counts() == EngineCounts(1.0, 4, 6)
    sampler.close()


def test_replicas_without_a_cache_have_no_hit_ratio() -> None:
    sampler = routed(*named(2, keeps_prefixes=False))
    asyncio.run(ask(sampler, 4))
    assert sampler.prefix_cache_hit_ratio() is None


def test_all_sleep_and_all_are_closed_also_one_that_is_away() -> None:
    replicas = named(2)
    sampler = routed(*replicas)
    sampler.sleep()
    assert all(replica.is_asleep for replica in replicas)
    replicas[1].may_return.clear()
    replicas[1].is_dead = True
    sampler.sleep()
    sampler.close()
    sampler.close()
    assert all(replica.is_closed for replica in replicas)
    with pytest.raises(NoReplicaError, match="no engine is left"):
        asyncio.run(ask(sampler, 1))


def test_a_routed_sampler_holds_what_its_smallest_replica_holds() -> None:
    replicas = [FakeReplica(max_model_len=512), FakeReplica(max_model_len=256)]
    assert routed(*replicas).max_model_len == 256


def test_sampling_goes_on_in_another_event_loop_while_a_replica_is_away() -> None:
    replicas = named(2)
    sampler = routed(*replicas)
    replicas[0].is_dead = True
    replicas[0].may_return.clear()
    asyncio.run(ask(sampler, 6))
    asyncio.run(ask(sampler, 6))
    replicas[0].may_return.set()
    until(lambda: len(sampler.live) == 2)
    assert sampler.num_returns == 1
    asyncio.run(ask(sampler, 6))
    sampler.close()
