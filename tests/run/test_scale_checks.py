"""What `[scale]` cannot do is said before Ray starts, all of it at once."""

from pathlib import Path
from typing import Any

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.errors import Problems
from treegrpo_cli.run.scale_checks import check_engines


def settings(tiny_model_dir: Path, scale: dict[str, Any], **sections: Any) -> Config:
    return Config.model_validate({"model": {"path": str(tiny_model_dir)}, "scale": scale, **sections})


@pytest.mark.parametrize(
    ("scale", "sections", "said"),
    [
        (
            {"engines": 1, "tensor_parallel": 3},
            {},
            "scale.tensor_parallel: the model's 4 attention heads cannot be dealt to 3 GPUs evenly",
        ),
        (
            {"engines": 1, "tensor_parallel": 2},
            {"sampler": {"engine": "transformers"}},
            "scale.tensor_parallel: only vLLM spreads a model over GPUs; set scale.tensor_parallel = 1",
        ),
        (
            {"engines": 2, "trainer_ranks": 2, "placement": "colocated"},
            {"sampler": {"sleep": False}},
            'sampler.sleep: a colocated engine sleeps while its rank trains; set sampler.sleep = "auto", or '
            'scale.placement = "separate"',
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_model_dir: Path, scale: dict[str, Any], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(Problems) as problems:
        check_engines(settings(tiny_model_dir, scale, **sections))
    assert problems.value.lines == (said,)


def test_two_engines_of_two_gpus_are_fine(tiny_model_dir: Path) -> None:
    check_engines(settings(tiny_model_dir, {"engines": 2, "tensor_parallel": 2, "trainer_ranks": 2}))


def test_siblings_that_must_differ_need_an_engine_of_one_process(tiny_model_dir: Path) -> None:
    config = settings(tiny_model_dir, {"engines": 1, "tensor_parallel": 2})
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"distinct_siblings": True})})
    with pytest.raises(Problems, match=r"rollout\.distinct_siblings: .* set scale\.tensor_parallel = 1"):
        check_engines(config)
