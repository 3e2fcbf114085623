"""Adapters merged into bfloat16 weights: what the rounding leaves, and what is refused for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.train.arriving import arriving, best_share, check_merged
from treegrpo_cli.train.policy import Policy

from tests.runs import small_run


def settings(model: Path, rate: float, dtype: str = "bfloat16", steps: int = 100) -> Any:
    return make_config(
        {
            "model": {"path": str(model), "lora_rank": 4, "dtype": dtype, "device": "cpu"},
            "optimizer": {"learning_rate": rate},
            "train": {"num_steps": steps},
        }
    )


def test_a_change_arrives_from_half_the_spacing_on() -> None:
    """bfloat16 has eight bits: between 1 and 2 its numbers are 2^-7 apart."""
    weight = torch.ones(4)
    for change, arrived in [(2**-9, 0.0), (0.9 * 2**-8, 0.0), (1.1 * 2**-8, 2**-7), (2**-7, 2**-7), (2**-6, 2**-6)]:
        moved, wanted = arriving(weight, torch.full((4,), change))
        assert moved / wanted == pytest.approx(arrived / change)


def test_the_share_is_that_of_the_weights_which_the_engine_gets(tiny_model_dir: Path) -> None:
    """Measured once more on all that is sent: every adapter moved as far as the run can, merged, rounded, compared."""
    for rate in (1e-5, 1e-3):
        config = settings(tiny_model_dir, rate)
        policy = Policy(config)
        before = dict(policy.weights(torch.bfloat16))
        exact = dict(policy.weights(torch.float32))
        estimate = best_share(policy, 100 * rate)
        generator = torch.Generator().manual_seed(7)
        adapter = policy.adapter()
        assert adapter is not None
        with torch.no_grad():
            for _, up in adapter.layers.values():
                up += 100 * rate * (2 * torch.randint(0, 2, up.shape, generator=generator) - 1)
        delta = {name: weight - exact[name] for name, weight in policy.weights(torch.float32)}
        sent = sum(float(((w.float() - before[n].float()) * delta[n]).sum()) for n, w in policy.weights(torch.bfloat16))
        wanted = sum(float((change * change).sum()) for change in delta.values())
        assert sent / wanted == pytest.approx(estimate, abs=0.1)


def test_rates_that_cannot_arrive_are_refused(tiny_model_dir: Path) -> None:
    for rate, steps in [(1e-6, 100), (1e-5, 1), (1e-300, 100)]:
        config = settings(tiny_model_dir, rate, steps=steps)
        with pytest.raises(UserError, match=r"sampler\.lora: .*at most \d+% .*sampler\.lora = \"adapter\"") as raised:
            check_merged(Policy(config), config)
        assert "\n" not in str(raised.value)
    for rate, dtype in [(1e-2, "bfloat16"), (1e-6, "float32")]:
        config = settings(tiny_model_dir, rate, dtype)
        check_merged(Policy(config), config)


def test_a_run_that_merges_what_cannot_arrive_ends_before_its_first_rollout(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    settings = small_run(
        tmp_path, tiny_model_dir, optimizer={"learning_rate": 1e-6}, train={"num_steps": 1, "eval_steps": 0}
    )
    settings["model"] |= {"lora_rank": 4, "dtype": "bfloat16", "device": "cpu"}
    merged = settings | {"sampler": {"engine": "transformers", "lora": "merged"}}
    with pytest.raises(UserError, match=r"sampler\.lora"):
        train(make_config(merged), Reporter(quiet=True))
    train(make_config(settings), Reporter(quiet=True))
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
