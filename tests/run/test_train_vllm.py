"""The training loop on the real vLLM engine: new weights reach it, and it samples from them."""

from pathlib import Path

import orjson
import pytest
from treegrpo_cli import read_trees
from treegrpo_cli.config.files import make_config
from treegrpo_cli.models.weights import Adapter
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.samplers.stepping import SteppedSampler

from tests.runs import small_run


@pytest.mark.usefixtures("vllm_on_cpu")
def test_every_step_samples_from_the_weights_of_the_step_before(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_run(
        tmp_path,
        tiny_model_dir,
        sampler={"engine": "auto"},
        optimizer={"learning_rate": 0.02},
        train={"num_steps": 3, "prompts_per_step": 3},
    )
    train(make_config(settings), Reporter())
    assert "rollouts run on vllm" in capsys.readouterr().err
    folder = Path(settings["output_dir"])
    steps = [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    steps = [line for line in steps if "reward" in line]
    assert all(line["grad_norm"] > 0 for line in steps)
    # an engine with stale weights, or a stale prefix cache, would be off by far more after steps of this size
    assert [line["sampling/sampling_logp_difference/max"] < 1e-4 for line in steps] == [True] * 3
    versions = [
        {
            node["policy_version"]
            for tree in read_trees(folder / "trees" / f"step-{step:05d}.jsonl.zst")
            for node in tree.nodes[1:]
        }
        for step in (1, 2, 3)
    ]
    assert versions == [{0}, {1}, {2}]
    assert (folder / "engine.log").exists()


@pytest.mark.usefixtures("vllm_on_cpu")
def test_adapters_reach_a_bfloat16_engine_after_every_step(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engine and trainer stay as close as they are before the first update, while adapters move far."""
    settings = small_run(
        tmp_path,
        tiny_model_dir,
        sampler={"engine": "vllm"},
        optimizer={"learning_rate": 0.02},
        train={"num_steps": 3, "prompts_per_step": 3, "eval_steps": 0},
    )
    settings["model"] |= {"lora_rank": 4, "dtype": "bfloat16", "device": "cpu"}
    sent: list[int] = []
    update = SteppedSampler.update_adapter

    def noted(self: SteppedSampler, adapter: Adapter, version: int) -> None:
        sent.append(version)
        update(self, adapter, version)

    monkeypatch.setattr(SteppedSampler, "update_adapter", noted)
    train(make_config(settings), Reporter(quiet=True))
    lines = (Path(settings["output_dir"]) / "metrics.jsonl").read_bytes().splitlines()
    apart = [orjson.loads(line)["sampling/sampling_logp_difference/mean"] for line in lines]
    assert sent == [0, 1, 2, 3]
    assert max(apart) < 0.1  # rounding; an adapter that stayed behind would be off by several times that
