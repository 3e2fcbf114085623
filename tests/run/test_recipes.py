"""The settings files for GPUs fit the cards that they name, by count, with room for what the count leaves out."""

from pathlib import Path

import pytest
from treegrpo_cli.config.files import load_config
from treegrpo_cli.run.memory import problems
from treegrpo_cli.run.memory_count import count

from tests.run.test_memory import CUDA, GIB, card, model_of, settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "gpu"
RECIPES = {
    "multi-hop-3b-80gb": ("3B", 79.1),
    "single-hop-3b-80gb": ("3B", 79.1),
    "lora-0.5b-24gb": ("0.5B", 22.0),
    "lora-1.5b-24gb": ("1.5B", 22.0),
}
"""The model of each, and the least GiB that cards of this name report."""


def test_every_settings_file_is_counted() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_card_with_a_tenth_to_spare(name: str) -> None:
    size, gib = RECIPES[name]
    config, model, device = load_config(FOLDER / f"{name}.toml"), model_of(size), card(gib)
    assert f"-{size}" in config.model.path
    assert problems(config, model, CUDA, "vllm", device) == []
    assert count(config, model, CUDA, "vllm").peak(device.total) < 0.9 * device.total


@pytest.mark.parametrize("hops", ["multi-hop", "single-hop"])
def test_the_papers_settings_are_refused_on_a_card_of_half_the_size(hops: str) -> None:
    config = load_config(FOLDER / f"{hops}-3b-80gb.toml")
    assert problems(config, model_of("3B"), CUDA, "vllm", card(39.4)) != []


@pytest.mark.parametrize("name", RECIPES)
def test_the_figures_in_the_docs_are_those_counted(name: str) -> None:
    size, gib = RECIPES[name]
    counted, total = count(load_config(FOLDER / f"{name}.toml"), model_of(size), CUDA, "vllm"), card(gib).total
    trainer, phases = counted.trainer, counted.phases(total)
    parts = (trainer.weights, trainer.gradients, trainer.moments, trainer.reference, trainer.micro_batch)
    told = [f"{num_bytes / GIB:.1f}" for num_bytes in (total, *parts, *phases.values())]
    [row] = [
        line for line in (ROOT / "docs" / "how-to" / "gpu.md").read_text().splitlines() if f"{name}.toml) |" in line
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")[1:]] == told


def test_the_refusal_in_the_docs_is_the_one_that_is_given() -> None:
    lines = problems(settings(model={"lora_rank": 16}), model_of("1.5B"), CUDA, "vllm", card(23.6))
    assert (
        [line for line in lines if f"    {line}\n" in (ROOT / "docs" / "how-to" / "gpu.md").read_text()] == lines != []
    )
