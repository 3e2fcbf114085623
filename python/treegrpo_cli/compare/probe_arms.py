"""Arms -> the settings that a probe plays them with, the reference among them, checked to be comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from treegrpo_cli._core import derive_seed
from treegrpo_cli.compare.arms import Arm
from treegrpo_cli.config import Config
from treegrpo_cli.config.values import flat
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.run.evaluate import chain_config

REFERENCE = "reference"
"""What the arm of unbiased chains is called, in files too."""

SAME_FOR_ALL = ("data.train", "data.split", "data.limit", "data.shuffle", "model.path")
"""Settings without which arms would not meet the same prompts at the same policy."""

NO_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """What a probe is asked for.

    num_prompts: 0 = `train.prompts_per_step` of the first arm · against: what cosines are with, `chains` or `first` ·
    num_chains: of the reference, a prompt and repeat · places: length of the vectors that are kept of gradients, None =
    all entries of a small model's and `SKETCHED` of a larger one's, 0 = always all.
    """

    num_prompts: int = 0
    num_repeats: int = 10
    seed: int = 0
    against: str = "chains"
    num_chains: int = 12
    places: int | None = None


def probed_configs(arms: Sequence[Arm], options: ProbeOptions) -> dict[str, Config]:
    """Return the settings of every arm by its name, the reference last where it is none of them.

    Raises FileError for arms that cannot be compared.
    """
    configs = {arm.name: arm.config({"seed": options.seed}) for arm in arms}
    for arm in arms:
        if arm.name == REFERENCE:
            raise FileError(arm.path, f"an arm cannot be called {REFERENCE!r}: the probe has one of that name")
    _check_same(arms, configs)
    if options.against == "chains":
        configs[REFERENCE] = reference_config(configs[arms[0].name], options.num_chains)
    return configs


def reference_config(first: Config, num_chains: int) -> Config:
    """Return the settings of independent chains whose gradient is that of the mean reward, up to a constant.

    The others' mean is the baseline, nothing is divided by a standard deviation that the same rewards have, every
    prompt and token counts the same: no bias on average over repeats.
    """
    settings = chain_config(first, num_chains).model_dump()
    plain = Config()
    for section in ("budget", "selection"):
        settings.pop(section, None)
    rollout = {name: settings["rollout"][name] for name in settings["rollout"] if name != "allocation"}
    return Config.model_validate(
        settings
        | {
            "rollout": rollout,
            "advantage": {"estimator": "grpo", "center": "loo", "scale": "none"},
            "loss": plain.loss.model_dump() | {"denominator": "constant"},
        }
    )


def repeated(config: Config, repeat: int, num_prompts: int) -> Config:
    """Return the settings of one repeat of a step of so many prompts: only its random draws differ."""
    seed = derive_seed([config.seed, repeat]) % NO_LIMIT
    train = config.train.model_copy(update={"prompts_per_step": num_prompts})
    return config.model_copy(update={"seed": seed, "train": train})


def _check_same(arms: Sequence[Arm], configs: Mapping[str, Config]) -> None:
    first = arms[0]
    expected = flat(configs[first.name].model_dump())
    for arm in arms[1:]:
        given = flat(configs[arm.name].model_dump())
        for key in SAME_FOR_ALL:
            if given[key] != expected[key]:
                raise FileError(
                    arm.path,
                    f"{key} = {given[key]!r} and {expected[key]!r} in {first.path}: "
                    "a probe plays the same prompts at the same policy under each arm",
                )


def check_options(options: ProbeOptions, output: Path) -> None:
    """Raise UserError for options that no probe can have."""
    if options.num_repeats < 2:
        raise UserError(f"--repeats {options.num_repeats}: pairs of repeats need two of them")
    if options.num_prompts == 1:
        raise UserError("--prompts 1: intervals are over prompts, and need two of them or more")
    if options.against == "chains" and options.num_chains < 2:
        raise UserError(f"--reference-chains {options.num_chains}: a baseline of the others needs two of them")
    if output.exists() and not output.is_dir():
        raise FileError(output, "is no folder")
