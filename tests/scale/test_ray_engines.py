"""Engines as Ray actors, here the small transformers sampler: what the one engine of a process does, they do."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import FileError, Problems, UserError
from treegrpo_cli.models.pretrained import load_causal_lm
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.samplers.base import Sampler
from treegrpo_cli.samplers.routing import RoutedSampler
from treegrpo_cli.scale.cluster import unwrapped
from treegrpo_cli.scale.engines import open_engines
from treegrpo_cli.scale.placement import place
from treegrpo_cli.train.checkpoint import checkpoints
from treegrpo_cli.types import Completion, SamplingParams

from tests.runs import small_run
from tests.scale.conftest import handlers
from tests.scale.engine_runs import SharedEngines, check_same_metrics, hang, kill_after, lines_of, until
from tests.scale.processes import descendants, listening

pytestmark = pytest.mark.usefixtures("ray_cluster")

PARAMS = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def engines(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: list[str], said: list[str]
) -> Iterator[RoutedSampler]:
    folder = tmp_path_factory.mktemp("engines")
    config = make_config(small_run(folder, tiny_model_dir, scale={"engines": 2}))
    sampler = open_engines(config, place(config), folder / "engine.log", said.append, None)
    yield sampler
    sampler.close()


def alone(model: Path) -> Sampler:
    """The engine of one process."""
    settings = make_config({"sampler": {"engine": "transformers"}}).sampler
    return make_sampler(settings, str(model), dtype="auto", device="cpu", max_model_len=288, seed=0, log_path=None)


async def ask(sampler: Sampler, number: int) -> list[Completion]:
    draw = np.random.default_rng(3)
    contexts = [draw.integers(5, 300, size=draw.integers(1, 40)) for _ in range(number)]
    asked = (
        sampler.sample(context, replace(PARAMS, prefix_key=seed % 5), seed) for seed, context in enumerate(contexts)
    )
    return await asyncio.gather(*asked)


def check_same(found: list[Completion], expected: list[Completion]) -> None:
    """Tokens and texts are equal; log-probabilities differ by what other batches round."""
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.logprobs, theirs.logprobs, rtol=0, atol=1e-5)
        assert replace(mine, logprobs=[]) == replace(theirs, logprobs=[])


def test_turns_are_those_of_one_engine_and_counted_as_one_would(
    engines: RoutedSampler, tiny_model_dir: Path, said: list[str]
) -> None:
    one = alone(tiny_model_dir)
    found = asyncio.run(ask(engines, 40))
    check_same(found, asyncio.run(ask(one, 40)))
    counts = engines.take_counts()
    assert counts.generated_tokens == one.take_counts().generated_tokens == sum(len(c.token_ids) for c in found)
    assert counts.num_steps > 0
    assert engines.prefix_cache_hit_ratio() is None
    assert (engines.name, engines.max_model_len, engines.takes_adapter) == ("2 engines (transformers)", 288, False)
    assert said == ["starting 2 engines ..."]
    one.close()


def test_what_a_request_does_wrong_is_said_as_one_engine_says_it(engines: RoutedSampler) -> None:
    with pytest.raises(ValueError, match=r"^got a context of 0 tokens and max_tokens 12, both must be > 0$"):
        asyncio.run(engines.sample([], PARAMS, 0))
    with pytest.raises(ValueError, match="the engine holds 288 with the turn"):
        asyncio.run(engines.sample([5] * 600, PARAMS, 0))
    assert len(engines.live) == 2


def test_a_cancelled_turn_is_dropped_in_its_engine_so_that_weights_can_follow(
    engines: RoutedSampler, tiny_model_dir: Path
) -> None:
    engines.take_counts()

    async def cancel() -> None:
        long = replace(PARAMS, max_tokens=280, temperature=5.0)
        asking = [asyncio.ensure_future(engines.sample([5, 6, 7], long, seed)) for seed in range(8)]
        await asyncio.sleep(0.2)
        for each in asking:
            each.cancel()
        await asyncio.wait(asking)

    asyncio.run(cancel())
    weights = load_causal_lm(str(tiny_model_dir), torch.float32).state_dict()
    engines.update_weights(weights.items(), 0)  # an engine that still samples would refuse it
    assert engines.take_counts().generated_tokens < 8 * 280
    assert len(engines.live) == 2


def test_an_engine_that_is_killed_gives_its_turns_back_and_returns_with_the_current_weights(
    engines: RoutedSampler, tiny_model_dir: Path, said: list[str]
) -> None:
    weights = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, tensor in load_causal_lm(str(tiny_model_dir), torch.float32).state_dict().items()
    }
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    one = alone(tiny_model_dir)
    for sampler in (one, engines):
        sampler.update_weights(weights.items(), 7)
    expected = asyncio.run(ask(one, 40))
    said.clear()
    undo = kill_after(engines, 25, place=1)
    check_same(asyncio.run(ask(engines, 40)), expected)
    undo()
    assert len(engines.live) == 1
    until(lambda: len(engines.live) == 2)
    assert said == [
        "engine 1 is gone (its process died): its turns are sampled again elsewhere",
        "engine 1 is started again (1 of at most 5 times)",
        "engine 1 is back",
    ]
    returned = engines.live[1]
    check_same(asyncio.run(ask(returned, 20)), expected[:20])  # type: ignore[arg-type]
    assert {completion.policy_version for completion in expected} == {7}
    one.close()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder / "run")[-1] / "model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


def test_two_steps_of_training_are_those_of_one_engine_where_one_of_two_hangs(
    engines: RoutedSampler, tiny_model_dir: Path, tmp_path: Path, said: list[str]
) -> None:
    changes: dict[str, Any] = {"train": {"num_steps": 2, "prompts_per_step": 3}}
    for name in ("one", "hung"):
        (tmp_path / name).mkdir()
    config = {name: make_config(small_run(tmp_path / name, tiny_model_dir, **changes)) for name in ("one", "hung")}
    train(config["one"], Reporter(quiet=True))
    said.clear()
    undo = kill_after(engines, 30, place=0, kill=hang)
    train(config["hung"], Reporter(quiet=True), parts=SharedEngines(engines))
    undo()
    assert said[0] == "engine 0 is gone (it hung): its turns are sampled again elsewhere"
    check_same_metrics(lines_of(tmp_path / "hung" / "run"), lines_of(tmp_path / "one" / "run"))
    before, trained = load_file(tiny_model_dir / "model.safetensors"), weights_of(tmp_path / "one")
    assert distance(weights_of(tmp_path / "hung"), trained) < 1e-3 * distance(trained, before)


def test_an_engine_that_cannot_start_says_so_in_its_own_line(tmp_path: Path) -> None:
    config = make_config(small_run(tmp_path, tmp_path, scale={"engines": 1}))
    with pytest.raises(UserError) as raised:
        open_engines(config, place(config), None, lambda _: None, None)
    assert type(raised.value) in (UserError, FileError)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "ray" not in str(raised.value).lower()


def test_ray_leaves_our_signals_alone(handlers_before: list[Any]) -> None:
    assert handlers() == handlers_before


def test_a_cluster_of_this_machine_listens_on_loopback_alone() -> None:
    found = listening(descendants(os.getpid()) | {os.getpid()})
    assert len(found) > 4
    assert set(found) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_errors_of_users_arrive_as_they_were_raised() -> None:
    import ray

    @ray.remote(num_cpus=0)
    def fail(error: BaseException) -> None:
        raise error

    problems = Problems(["one", "two"], ["trace"])
    file_error = FileError("folder/file", "is no file", 3)
    for error in (problems, file_error, UserError("wrong", ["a", "b"])):
        with pytest.raises(UserError) as raised:
            ray.get(fail.remote(error))
        found = unwrapped(raised.value)
        assert (type(found), str(found), found.__dict__) == (type(error), str(error), error.__dict__)
