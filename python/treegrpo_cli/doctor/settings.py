"""A run's settings -> what is wrong with them, what they would take, and what memory the run needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from treegrpo_cli.config import Config
from treegrpo_cli.doctor.finding import Check, NotHereError
from treegrpo_cli.errors import Problems, UserError
from treegrpo_cli.models.devices import choose_device, choose_dtype
from treegrpo_cli.models.pretrained import shape_of_causal_lm
from treegrpo_cli.run.memory import check_memory, memory_lines
from treegrpo_cli.run.preflight import check, training_questions
from treegrpo_cli.samplers import choose_engine
from treegrpo_cli.train.paths import Subject, registered

SECTION = "settings"


def checks(config: Config) -> Iterator[Check]:
    """Yield what is looked at of a training run by these settings."""
    yield Check(SECTION, "data, model, tools, rewards", lambda: _preflight(config))
    yield Check(SECTION, "engine", lambda: _engine(config))
    yield Check(SECTION, "attention paths", lambda: _paths(config))
    yield Check(SECTION, "memory", lambda: _memory(config))


def _preflight(config: Config) -> str:
    check(config, training_questions(config), config.report_to, [partial(_check_device, config)])
    return "as they should be"


def _check_device(config: Config) -> None:
    choose_dtype(config.model.dtype, choose_device(config.model.device))


def _engine(config: Config) -> str:
    device, dtype = _device_and_dtype(config)
    return f"{choose_engine(config.sampler.engine, device.type)} on {device} in {_name(dtype)}"


def _paths(config: Config) -> str:
    """What the planner may choose among, and what speaks against the others."""
    device, dtype = _device_and_dtype(config)
    subject = Subject(_shape(config), device, dtype, config.loss.ratio)
    wanted = config.train.attention_path
    refusals = {path.name: path.refusal(subject) for path in registered()}
    if wanted != "auto":
        if refusals[wanted]:
            raise Problems([f"train.attention_path: {wanted} cannot train this model: {refusals[wanted]}"])
        return f"{wanted}, as train.attention_path asks"
    offered = [path.name for path in registered() if path.is_offered(device, dtype)]
    able = [name for name in offered if refusals[name] is None]
    against = dict.fromkeys(str(refusals[name]) for name in offered if refusals[name] is not None)
    return "; ".join([f"{', '.join(able)}, by the shape of each step", *against])


def _memory(config: Config) -> str:
    _device_and_dtype(config), _shape(config)
    check_memory(config)
    return "; ".join(memory_lines(config))


def _device_and_dtype(config: Config) -> tuple[torch.device, torch.dtype]:
    """Those of the run; where they cannot be had, the first line of the settings says why."""
    try:
        device = choose_device(config.model.device)
        return device, choose_dtype(config.model.dtype, device)
    except UserError:
        raise NotHereError("model.device or model.dtype cannot be used") from None


def _shape(config: Config) -> Any:
    try:
        return shape_of_causal_lm(config.model.path)
    except UserError:  # the line of the data and the model says why
        raise NotHereError("the model cannot be read") from None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
