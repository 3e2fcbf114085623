"""Both samplers on one tiny model: the same tokens, log-probabilities that a plain forward pass confirms."""

import asyncio
import io
import json
import os
import random
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from treegrpo_cli import samplers
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.samplers import make_sampler, vllm_presence
from treegrpo_cli.samplers.stepping import EngineError, Request, SteppedSampler
from treegrpo_cli.samplers.text import find_stop, turn_text
from treegrpo_cli.samplers.transformers import draw, sampling_logprobs
from treegrpo_cli.types import Completion, SamplingParams

from tests.tiny import make_tiny_model

ENGINES = ["transformers", "vllm"]
TOLERANCE = 1e-4
MAX_MODEL_LEN = 256
GREEDY = SamplingParams(max_tokens=32, greedy=True)
FILTERED = SamplingParams(max_tokens=32, temperature=0.7, top_k=20, top_p=0.9)
Item = tuple[list[int], SamplingParams, int]


def start(engine: str, model_dir: Path, log_path: Path | None = None) -> Any:
    return make_sampler(
        SamplerConfig(engine=engine, max_num_seqs=64),
        str(model_dir),
        dtype="float32",
        device="cpu",
        max_model_len=MAX_MODEL_LEN,
        seed=0,
        log_path=log_path,
    )


@pytest.fixture(scope="module")
def engines(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, vllm_on_cpu: None
) -> Iterator[dict[str, Any]]:
    log_path = tmp_path_factory.mktemp("log") / "engine.log"
    started = {engine: start(engine, tiny_model_dir, log_path) for engine in ENGINES}
    started["vllm"].log_path = log_path
    yield started
    for sampler in started.values():
        sampler.close()


@pytest.fixture(params=ENGINES)
def sampler(request: pytest.FixtureRequest, engines: dict[str, Any]) -> Any:
    return engines[request.param]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("other"), seed=1))


@pytest.fixture(scope="module")
def contexts(tokenizer: Any) -> list[list[int]]:
    """Prompts of many lengths, some longer than a block of the prefix cache."""
    return [tokenizer.encode("What is the capital of the country? " * (1 + i % 4) + str(i)) for i in range(24)]


def sample(sampler: Any, items: Sequence[Item], delays: Sequence[float] = ()) -> list[Completion]:
    """Sample all items at once, or each after its delay in seconds."""

    async def one(item: Item, delay: float) -> Completion:
        await asyncio.sleep(delay)
        return await sampler.sample(*item)

    async def everything() -> list[Completion]:
        waits = delays or [0.0] * len(items)
        return await asyncio.gather(*(one(item, delay) for item, delay in zip(items, waits, strict=True)))

    return asyncio.run(everything())


def each(contexts: list[list[int]], params: SamplingParams) -> list[Item]:
    return [(context, params, 7000 + number) for number, context in enumerate(contexts)]


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def flat_logprobs(completions: list[Completion]) -> torch.Tensor:
    return torch.tensor([value for completion in completions for value in completion.logprobs])


def reference_logprobs(model: Any, context: list[int], turn: list[int], params: SamplingParams) -> list[float]:
    """By definition, a token at a time: sort, keep the k likeliest, the fewest that hold p, renormalise."""
    with torch.no_grad():
        logits = model(torch.tensor([context + turn])).logits[0].double() / params.temperature
    result = []
    for position, token in enumerate(turn, start=len(context) - 1):
        ranked = sorted(enumerate(logits[position].exp().tolist()), key=lambda pair: -pair[1])
        ranked = ranked[: params.top_k or None]
        total, mass, kept = sum(weight for _, weight in ranked), 0.0, {}
        for candidate, weight in ranked:
            if mass >= params.top_p:
                break
            kept[candidate] = weight
            mass += weight / total
        result.append(float(torch.tensor(kept[token] / sum(kept.values())).log()))
    return result


def assert_agree(engines: dict[str, Any], items: list[Item]) -> None:
    ours, *others = (sample(engines[engine], items) for engine in ENGINES)
    for theirs in others:
        assert tokens(ours) == tokens(theirs)
        assert [c.text for c in ours] == [c.text for c in theirs]
        assert [c.finish_reason for c in ours] == [c.finish_reason for c in theirs]
        assert [c.policy_version for c in ours] == [c.policy_version for c in theirs]
        torch.testing.assert_close(flat_logprobs(ours), flat_logprobs(theirs), atol=TOLERANCE, rtol=0)


def test_both_samplers_find_the_same_greedy_tokens_before_and_after_a_weight_update(
    engines: dict[str, Any], model: Any, other_model: Any, contexts: list[list[int]]
) -> None:
    items = each(contexts, GREEDY)
    assert_agree(engines, items)
    before = tokens(sample(engines["transformers"], items))
    for version, weights in enumerate([other_model, model], start=1):
        for engine in ENGINES:
            engines[engine].update_weights(weights.state_dict().items(), version)
        assert_agree(engines, items)
        assert (tokens(sample(engines["transformers"], items)) == before) == (weights is model)
        assert sample(engines["vllm"], items[:1])[0].policy_version == version


def test_greedy_log_probabilities_are_the_models_own(sampler: Any, model: Any, contexts: list[list[int]]) -> None:
    params = SamplingParams(max_tokens=32, temperature=0.3, top_k=2, greedy=True)
    own = SamplingParams(max_tokens=32)
    for (context, _, _), completion in zip(
        each(contexts, params), sample(sampler, each(contexts, params)), strict=True
    ):
        expected = reference_logprobs(model, context, completion.token_ids, own)
        assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    "params",
    [FILTERED, SamplingParams(max_tokens=32, temperature=0.7), SamplingParams(max_tokens=32, top_p=0.5)],
)
def test_log_probabilities_are_those_of_the_distribution_sampled_from(
    sampler: Any, model: Any, contexts: list[list[int]], params: SamplingParams
) -> None:
    greedy_too = [*each(contexts, params), (contexts[0], GREEDY, 0)]
    completions = sample(sampler, greedy_too)[:-1]
    for context, completion in zip(contexts, completions, strict=True):
        expected = reference_logprobs(model, context, completion.token_ids, params)
        assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)


def test_a_seed_gives_the_same_tokens_alone_reordered_and_staggered(sampler: Any, contexts: list[list[int]]) -> None:
    items = each(contexts, FILTERED)
    together = tokens(sample(sampler, items))
    assert tokens(sample(sampler, items[::-1]))[::-1] == together
    assert [tokens(sample(sampler, [item]))[0] for item in items[:4]] == together[:4]
    delays = [random.Random(number).uniform(0, 0.05) for number in range(len(items))]
    assert tokens(sample(sampler, items, delays)) == together
    assert tokens(sample(sampler, [(context, FILTERED, seed + 1) for context, _, seed in items])) != together


def test_a_stop_string_that_ends_inside_a_token_keeps_the_token_and_cuts_the_text(
    sampler: Any, tokenizer: Any, contexts: list[list[int]]
) -> None:
    greedy = sample(sampler, each(contexts, GREEDY))
    found = 0
    for context, completion in zip(contexts, greedy, strict=True):
        ids = completion.token_ids
        for last in range(3, len(ids)):
            text, piece = tokenizer.decode(ids[: last + 1]), tokenizer.decode([ids[last]])
            stop = text[-4:-1]
            if len(piece) > 1 and text.isascii() and "<|" not in text and stop not in text[:-2]:
                params = SamplingParams(max_tokens=32, stop=("never there", stop), greedy=True)
                (stopped,) = sample(sampler, [(context, params, 0)])
                assert (stopped.token_ids, stopped.text) == (ids[: last + 1], text[:-1])
                assert (stopped.finish_reason, len(stopped.logprobs)) == ("stop", last + 1)
                found += 1
                break
    assert found >= 5


def test_both_samplers_cut_sampled_turns_at_stop_strings_alike(
    engines: dict[str, Any], contexts: list[list[int]]
) -> None:
    params = SamplingParams(max_tokens=64, stop=("or", "<answer>", "s i"), greedy=True)
    assert_agree(engines, each(contexts, params))
    ended = sample(engines["vllm"], each(contexts, params))
    stopped = [c for c in ended if c.text.endswith(params.stop)]
    assert len(stopped) >= 10
    assert all(c.finish_reason == "stop" and c.text.count("or") <= 1 for c in stopped)


def test_an_end_token_ends_the_turn_and_is_not_in_its_text(
    sampler: Any, tokenizer: Any, contexts: list[list[int]]
) -> None:
    completions = sample(sampler, each(contexts * 4, SamplingParams(max_tokens=64)))
    ends = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")}
    ended = [c for c in completions if c.finish_reason == "stop"]
    assert {c.token_ids[-1] for c in ended} == ends
    assert all(ends.isdisjoint(c.token_ids[:-1]) for c in completions)
    assert all(c.text == tokenizer.decode(c.token_ids[:-1]) for c in ended)
    assert all(len(c.token_ids) == 64 for c in completions if c.finish_reason == "length")


def test_a_request_longer_than_the_context_fails_alone(sampler: Any, contexts: list[list[int]]) -> None:
    async def mixed() -> list[Any]:
        requests = [(contexts[0], GREEDY, 0), ([5] * MAX_MODEL_LEN, GREEDY, 0), ([], GREEDY, 0)]
        return await asyncio.gather(*(sampler.sample(*item) for item in requests), return_exceptions=True)

    good, long, empty = asyncio.run(mixed())
    assert isinstance(good, Completion)
    assert isinstance(long, ValueError)
    assert f"{MAX_MODEL_LEN} tokens" in str(long)
    assert isinstance(empty, ValueError)


def test_a_turn_ends_where_the_context_does(sampler: Any) -> None:
    (completion,) = sample(sampler, [([5] * (MAX_MODEL_LEN - 3), SamplingParams(max_tokens=32, top_k=1), 0)])
    assert (len(completion.token_ids), completion.finish_reason) == (3, "length")


def test_a_cancelled_request_leaves_the_engine(sampler: Any, contexts: list[list[int]]) -> None:
    dropped: list[str] = []
    expected = tokens(sample(sampler, each(contexts[:2], GREEDY)))

    async def cancel_one() -> list[Completion]:
        endless = asyncio.create_task(sampler.sample(contexts[2], SamplingParams(max_tokens=200, top_k=1), 0))
        others = [asyncio.create_task(sampler.sample(*item)) for item in each(contexts[:2], GREEDY)]
        sampler.take_counts()
        while not sampler.take_counts().num_steps:
            await asyncio.sleep(0.001)
        endless.cancel()
        return await asyncio.gather(*others)

    drop = sampler.drop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "drop", lambda request_id: (dropped.append(request_id), drop(request_id)))
        assert tokens(asyncio.run(cancel_one())) == expected
    assert len(dropped) == 1
    drop(dropped[0])  # what has ended already is fine: a step beside the loop may end what was cancelled meanwhile
    if sampler.name == "vllm":
        assert not sampler.engine.has_unfinished_requests()
    else:
        assert sampler._batch is None
        assert not sampler._queue


def test_steps_beside_the_loop_give_the_same_tokens(
    sampler: Any, contexts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = each(contexts, FILTERED)
    inside = sample(sampler, items)
    threads: set[str] = set()
    step = sampler.step
    monkeypatch.setattr(sampler, "_thread", None)
    monkeypatch.setattr(sampler, "step", lambda: (threads.add(threading.current_thread().name), step())[1])
    monkeypatch.setattr(sampler._pace, "beside_the_loop", lambda: True)
    delays = [random.Random(number).uniform(0, 0.05) for number in range(len(items))]
    for beside in (sample(sampler, items), sample(sampler, items, delays)):
        assert tokens(beside) == tokens(inside)
        torch.testing.assert_close(flat_logprobs(beside), flat_logprobs(inside), atol=TOLERANCE, rtol=0)
    assert threads == {f"treegrpo-{sampler.name}"}


def random_numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def seed_everything() -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


def test_new_weights_and_turns_leave_the_random_numbers_of_the_process_alone(
    sampler: Any, model: Any, contexts: list[list[int]]
) -> None:
    seed_everything()
    expected = random_numbers()
    seed_everything()
    sampler.update_weights(model.state_dict().items(), sampler.policy_version)
    sample(sampler, each(contexts[:4], FILTERED))
    assert random_numbers() == expected


def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    sampler: Any, other_model: Any, contexts: list[list[int]]
) -> None:
    items = each(contexts[:4], GREEDY)
    before, weights = sample(sampler, items), other_model.state_dict()
    saved = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"missing \['lm_head.weight'\]"):
        sampler.update_weights(saved.items(), 9)
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        sampler.update_weights({**weights, "extra": torch.zeros(1)}.items(), 9)
    with pytest.raises(ValueError, match=r"other shape \['model.norm.weight \(3,\)'\]"):
        sampler.update_weights({**weights, "model.norm.weight": torch.zeros(3)}.items(), 9)
    after = sample(sampler, items)
    assert tokens(after) == tokens(before)
    assert after[0].policy_version == before[0].policy_version != 9


def test_weights_are_made_one_at_a_time_and_only_after_their_names_were_seen(
    sampler: Any, model: Any, other_model: Any, contexts: list[list[int]]
) -> None:
    """As many as one layer of the engine is packed from are alive at once, never a second model."""
    state, alive, most = other_model.state_dict(), WeakSet[torch.Tensor](), 0

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for name, tensor in state.items():
            made = tensor.clone()
            alive.add(made)
            most = max(most, len(alive))
            yield name, made
            del made

    shapes = {name: tensor.shape for name, tensor in state.items()}
    short = {name: shape for name, shape in shapes.items() if name != "model.norm.weight"}
    with pytest.raises(ValueError, match=r"missing \['model.norm.weight'\]"):
        sampler.update_weights(Weights(short, stream), 9)
    assert most == 0
    version = sampler.policy_version
    sampler.update_weights(Weights(shapes, stream), version)
    assert 0 < most <= 4 < len(state)
    streamed = tokens(sample(sampler, each(contexts[:8], GREEDY)))
    sampler.update_weights(other_model.state_dict().items(), version)
    assert tokens(sample(sampler, each(contexts[:8], GREEDY))) == streamed
    sampler.update_weights(model.state_dict().items(), version)


def test_weights_are_refused_while_requests_run(sampler: Any, model: Any, contexts: list[list[int]]) -> None:
    async def update_in_between() -> None:
        running = asyncio.create_task(sampler.sample(contexts[0], GREEDY, 0))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="still running"):
            sampler.update_weights(model.state_dict().items(), 9)
        await running

    asyncio.run(update_in_between())


def test_a_prefix_cache_that_is_not_reset_would_be_stale(
    engines: dict[str, Any],
    model: Any,
    other_model: Any,
    contexts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler, items = engines["vllm"], each(contexts, GREEDY)
    version = sampler.policy_version
    sampler.reset_prefix_cache()
    sample(sampler, items)
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "reset_prefix_cache", lambda: None)
        sampler.update_weights(other_model.state_dict().items(), version)
    stale = tokens(sample(sampler, items))
    sampler.update_weights(other_model.state_dict().items(), version)
    fresh = tokens(sample(sampler, items))
    sampler.update_weights(model.state_dict().items(), version)
    cached = [len(context) > 33 for context in contexts]
    assert any(old != new for old, new, hit in zip(stale, fresh, cached, strict=True) if hit)
    assert all(old == new for old, new, hit in zip(stale, fresh, cached, strict=True) if not hit)


def test_the_hit_ratio_counts_the_cached_share_of_prompt_tokens_since_the_last_call(
    engines: dict[str, Any],
) -> None:
    sampler = engines["vllm"]
    item = (list(range(20, 20 + 80)), SamplingParams(max_tokens=2), 0)
    sampler.reset_prefix_cache()
    sampler.prefix_cache_hit_ratio()
    assert sampler.prefix_cache_hit_ratio() is None
    assert [sample(sampler, [item])[0].num_cached_tokens for _ in range(2)] == [0, 64]  # two blocks of 32
    assert sampler.prefix_cache_hit_ratio() == 64 / 160
    assert engines["transformers"].prefix_cache_hit_ratio() is None


def test_the_engines_log_goes_to_its_file(engines: dict[str, Any]) -> None:
    assert "INFO vllm" in engines["vllm"].log_path.read_text()


def test_draws_follow_the_distribution() -> None:
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    count = 20_000
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    drawn = draw(probability.log().expand(count, 5), generators).bincount(minlength=5) / count
    five_sigma = 5 * (probability * (1 - probability) / count).sqrt()
    assert ((drawn - probability).abs() <= five_sigma).all()


def test_top_p_keeps_the_fewest_tokens_among_those_of_top_k() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(3, 1)
    params = [
        SamplingParams(1, top_k=2),
        SamplingParams(1, top_p=0.69),
        SamplingParams(1, top_k=2, top_p=0.5),
    ]
    kept = sampling_logprobs(logits, params).exp()
    expected = torch.tensor([[4 / 7, 3 / 7, 0, 0], [4 / 7, 3 / 7, 0, 0], [1, 0, 0, 0]])
    torch.testing.assert_close(kept, expected)


def test_a_stop_string_is_found_across_tokens_and_only_where_it_is_whole(tokenizer: Any) -> None:
    ids = tokenizer.encode("so it is </answer> and more")
    whole = next(end for end in range(len(ids) + 1) if "r> a" in tokenizer.decode(ids[:end]))
    assert [find_stop(tokenizer, ids[:end], ["r> a"]) for end in (whole - 1, whole)] == [False, True]
    assert turn_text(tokenizer, ids, ["more", "is <"], frozenset()) == "so it is <"


class DyingSampler(SteppedSampler):
    """An engine that dies in its second step."""

    name = "dying"
    num_steps = 0

    def add(self, request: Request) -> None:
        pass

    def drop(self, request_id: str) -> None:
        pass

    def step(self) -> list[tuple[str, Completion]]:
        self.num_steps += 1
        if self.num_steps == 2:
            raise MemoryError("out of pages")
        return []

    def weight_shapes(self) -> dict[str, torch.Size]:
        return {}

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        list(weights)

    num_freed = 0

    def free(self) -> None:
        self.num_freed += 1


def test_an_engine_that_dies_fails_every_request_that_waits_and_every_later_one() -> None:
    sampler = DyingSampler(max_model_len=8)

    async def several() -> list[Any]:
        return await asyncio.gather(*(sampler.sample([1], GREEDY, 0) for _ in range(3)), return_exceptions=True)

    for _ in range(2):
        errors = asyncio.run(several())
        assert [type(error) for error in errors] == [EngineError] * 3
        assert "MemoryError: out of pages" in str(errors[0])
    assert sampler.num_steps == 2


@pytest.mark.parametrize("error", [MemoryError("out of memory"), KeyboardInterrupt()])
def test_an_engine_that_got_new_weights_in_part_samples_no_more(error: BaseException) -> None:
    sampler = DyingSampler(100)

    def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
        yield "first", torch.zeros(1)
        raise error

    with pytest.raises(type(error)):
        sampler.update_weights(Weights({}, interrupted), 1)
    assert sampler.policy_version == 0
    with pytest.raises(EngineError, match="got new weights in part: " + type(error).__name__):
        asyncio.run(sampler.sample([1], GREEDY, 0))
    sampler.close()
    assert sampler.num_freed == 1


def test_auto_takes_transformers_where_vllm_is_missing_and_an_explicit_vllm_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vllm_presence, "find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        assert samplers.choose_engine("auto", "cpu") == "transformers"
    assert "sampling with transformers" in caplog.text
    with pytest.raises(UserError, match=r"not installed.*pip install"):
        samplers.choose_engine("vllm", "cpu")


def test_a_device_that_is_not_there_is_named(tiny_model_dir: Path) -> None:
    settings = SamplerConfig(engine="transformers")
    with pytest.raises(UserError, match=r"model\.device: 'banana' cannot be used here"):
        make_sampler(
            settings, str(tiny_model_dir), dtype="float32", device="banana", max_model_len=64, seed=0, log_path=None
        )


def test_the_users_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from treegrpo_cli.samplers.vllm_engine import prepare_environment

    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "1")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    prepare_environment("cpu")
    assert (os.environ["VLLM_CONFIGURE_LOGGING"], os.environ["TORCHDYNAMO_DISABLE"]) == ("1", "1")


def with_code(model_dir: Path, folder: Path) -> Path:
    """Copy a model, and put code beside it that its files name; it leaves a mark when it runs."""
    shutil.copytree(model_dir, folder)
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((folder / name).read_text())
        auto_map = {key: "code.Own", "AutoModelForCausalLM": "code.Own"}
        (folder / name).write_text(json.dumps(content | {"auto_map": auto_map}))
    return folder


def test_a_closed_engine_makes_room_for_another_in_the_same_process_also_where_numba_was_loaded(
    engines: dict[str, Any],
    tiny_model_dir: Path,
    contexts: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last test that uses the module's engine: it closes it. Code beside the second one's model is left alone.

    An engine that starts looks through all modules, and fails at llvmlite's wrapper of its library: that is kept out
    of sight.
    """
    import numba

    items = each(contexts, GREEDY)
    expected = tokens(sample(engines["transformers"], items))
    engines["vllm"].close()
    with pytest.raises(EngineError, match="closed"):
        sample(engines["vllm"], items[:1])
    seed_everything()
    numbers = random_numbers()
    seed_everything()
    folder = with_code(tiny_model_dir, tmp_path / "model")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    second = start("auto", folder)
    assert not (folder / "ran").exists()
    assert random_numbers() == numbers  # its start leaves them alone
    assert second.name == "vllm"
    assert tokens(sample(second, items)) == expected
    second.close()
    assert numba.njit(lambda x: x + 1)(1) == 2
    assert "llvmlite.binding.ffi" in sys.modules
