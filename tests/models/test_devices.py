"""`model.dtype` and `model.device`: what `auto` becomes."""

import pytest
import torch
from treegrpo_cli.models.devices import choose_dtype
from treegrpo_cli.samplers import resolve_dtype


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", torch.float32), ("cuda", torch.bfloat16), ("cuda:1", torch.bfloat16)]
)
def test_auto_is_bfloat16_on_cuda_and_float32_elsewhere(device: str, expected: torch.dtype) -> None:
    assert choose_dtype("auto", torch.device(device)) == expected
    assert resolve_dtype("auto", device) == str(expected).removeprefix("torch.")


def test_a_dtype_that_is_asked_for_is_taken_on_every_device() -> None:
    for device in map(torch.device, ("cpu", "cuda")):
        assert choose_dtype("float32", device) == torch.float32
        assert choose_dtype("bfloat16", device) == torch.bfloat16
