"""The real server, on loopback: the turns, trees, weights and metrics of the engine in this process."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers import make_sampler
from treegrpo_cli.samplers.server_protocols import Completions
from treegrpo_cli.trees.tree_file import read_trees
from treegrpo_cli.types import Completion, SamplingParams

from tests.runs import small_run
from tests.tiny import make_tiny_model
from tests.vllm_server import VllmServer

pytestmark = pytest.mark.usefixtures("vllm_on_cpu")
WAYS = {
    "sampled": SamplingParams(max_tokens=24),
    "greedy": SamplingParams(max_tokens=24, greedy=True),
    "filtered": SamplingParams(max_tokens=24, temperature=0.7, top_k=20, top_p=0.9),
    "stopped": SamplingParams(max_tokens=24, stop=("a", "e q")),
    "cut": SamplingParams(max_tokens=24, stop_below=-2.0, window=4),
}


@pytest.fixture(scope="module")
def server(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, vllm_on_cpu: None) -> Iterator[VllmServer]:
    started = VllmServer(tiny_model_dir, tmp_path_factory.mktemp("server") / "server.log").start()
    try:
        yield started.wait()
    finally:
        started.end()


def start(engine: str, model: Path, **settings: Any) -> Any:
    config = SamplerConfig.model_validate({"engine": engine, "max_num_seqs": 64, **settings})
    return make_sampler(
        config, str(model), dtype="float32", device="cpu", max_model_len=256, seed=0, log_path=None, say=lambda _: None
    )


def ask(sampler: Any) -> list[Completion]:
    contexts = [list(range(40, 60 + 7 * number)) for number in range(8)]

    async def everything() -> list[Completion]:
        asked = (sampler.sample(c, params, 7 + at) for at, c in enumerate(contexts) for params in WAYS.values())
        return list(await asyncio.gather(*asked))

    return asyncio.run(everything())


def same(found: list[Completion], expected: list[Completion]) -> None:
    """The same turns; what was cached when they began is by chance."""
    for one, other in zip(found, expected, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def same_numbers(found: Any, expected: Any) -> None:
    """The same values throughout, but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            same_numbers(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same_numbers(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-5) if isinstance(expected, float) else expected)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """What does not depend on the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = (
        "time/",
        "memory/",
        "tokens_per_second/",
        "engine/",
        "step_time",
        "budget/step_seconds",
        "tree/prefix_cache",
    )
    return [{name: value for name, value in line.items() if not name.startswith(timed)} for line in lines]


def trees_of(folder: Path) -> list[Any]:
    return [
        [dict(node) for node in tree.nodes]
        for path in sorted((folder / "trees").iterdir())
        for tree in read_trees(path)
    ]


def test_turns_trees_weights_and_metrics_are_those_of_the_engine_in_this_process(
    server: VllmServer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Turns of every kind by both routes, then two steps of training with an evaluation before, between and behind."""
    theirs, ours = start("server", tiny_model_dir, urls=[server.url]), start("vllm", tiny_model_dir)
    expected, found = ask(ours), ask(theirs)
    same(found, expected)
    assert {completion.finish_reason for completion in found} == {"stop", "length", "pruned"}
    (replica,) = theirs._servers
    replica._route = Completions()
    same(ask(theirs), expected)
    theirs.close()
    ours.close()

    folders = {}
    for engine, settings in (("vllm", {}), ("server", {"urls": [server.url]})):
        (tmp_path / engine).mkdir()
        run = small_run(
            tmp_path / engine,
            tiny_model_dir,
            sampler={"engine": engine, **settings},
            train={"num_steps": 2, "eval_steps": 1, "save_steps": 2, "prompts_per_step": 2},
        )
        run["model"] |= {"dtype": "float32", "device": "cpu"}
        train(make_config(run), Reporter(quiet=True))
        folders[engine] = tmp_path / engine / "run"
    same_numbers(metrics_of(folders["server"]), metrics_of(folders["vllm"]))
    same_numbers(trees_of(folders["server"]), trees_of(folders["vllm"]))
    weights = [load_file(folder / "checkpoint-2" / "model.safetensors") for folder in folders.values()]
    assert all(float((weights[0][name] - weights[1][name]).abs().mean()) <= 1e-6 for name in weights[0])
    assert not (folders["server"] / "server-weights").exists()

    with pytest.raises(UserError, match=rf"^{server.url}: does not compute model\.path"):
        start("server", tiny_model_dir, urls=[server.url])  # it still has the weights that were trained


def test_a_server_with_another_model_than_the_configs_is_refused(server: VllmServer, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"does not compute model\.path = .* in float32: .* nats away on average"
    ) as caught:
        start("server", other, urls=[server.url])
    assert str(caught.value).startswith(server.url)
