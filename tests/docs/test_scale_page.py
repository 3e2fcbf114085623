"""The pages on many GPUs and on servers: figures are those counted, lines those that are said."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config
from treegrpo_cli.config import Config
from treegrpo_cli.run.traffic import TOKEN_BYTES, bytes_sent, gathered_a_round, received
from treegrpo_cli.train.footprint import exchanged_parts

ROOT = Path(__file__).parents[2]
PAGE, SERVERS = ((ROOT / "docs" / "how-to" / f"{name}.md").read_text(encoding="utf-8") for name in ("scale", "servers"))
MODELS: dict[str, dict[str, Any]] = {
    "0.5 B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "heads": (14, 2)},
    "1.5 B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "heads": (12, 2)},
    "3 B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "heads": (16, 2)},
    "7 B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "heads": (28, 4)},
    "32 B": {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "heads": (40, 8)},
    "70 B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "heads": (64, 8)},
}
"""Qwen2.5's, and Llama's of 70 B; the three smallest have their embedding for an LM head."""
TIED = ("0.5 B", "1.5 B", "3 B")
CUDA = torch.device("cuda")
RANKS, MICRO_BATCH_TOKENS = 8, 16_384
FULL_STEP, SHARED_STEP = 512 * 6 * 4000, 9_598_925


def model_of(size: str) -> PreTrainedModel:
    shape = dict(MODELS[size])
    heads, key_heads = shape.pop("heads")
    vocabulary = 128_256 if size == "70 B" else 151_936 if size in TIED else 152_064
    shape |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": vocabulary}
    config = (LlamaConfig if size == "70 B" else Qwen2Config)(**shape, tie_word_embeddings=size in TIED)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def sizes_of(size: str) -> dict[str, float]:
    """Bytes by column, of training all weights in bfloat16."""
    model = model_of(size)
    weights, gradients = exchanged_parts(Config.model_validate({"model": {"dtype": "bfloat16"}}), model, CUDA)
    return {
        "to every engine, a step": bytes_sent(model, torch.bfloat16),
        "ranks, a round: gathered": gathered_a_round(weights, RANKS),
        "ranks, a round: summed": received(gradients.whole, RANKS),
        "trained state, over all ranks": weights.whole + 3 * gradients.whole,
        "host memory while loading": weights.whole,
    }


@pytest.mark.parametrize("size", MODELS)
def test_bytes_of_weights_on_the_page_are_those_counted(size: str) -> None:
    lines = PAGE.splitlines()
    [header] = [line for line in lines if line.startswith("| model |")]
    [row] = [line for line in lines if line.startswith(f"| {size} |")]
    names, told = ([cell.strip() for cell in line.strip("|").split("|")[1:]] for line in (header, row))
    counted = {name: num_bytes / 1e9 for name, num_bytes in sizes_of(size).items()}
    assert names == list(counted)
    assert told == [f"{gb:.{len(cell.partition('.')[2])}f}" for gb, cell in zip(counted.values(), told, strict=True)]


def test_bytes_of_trees_on_the_page_are_those_of_a_forests_columns() -> None:
    assert f"A forest has {TOKEN_BYTES} bytes a token" in PAGE
    assert f"has {FULL_STEP / 1e6:.1f} M tokens if nothing is shared: {TOKEN_BYTES * FULL_STEP / 1e6:.0f} MB" in PAGE
    measured = (ROOT / "tests" / "benchmarks" / "results" / "driver_share.md").read_text(encoding="utf-8")
    assert f"{SHARED_STEP:,} tokens a step" in measured
    assert "one copy of 14.1 bytes a token" in measured
    assert f"it is {14.1 * SHARED_STEP / 1e6:.0f} MB" in PAGE


def test_rounds_of_a_step_are_worked_out() -> None:
    rounds = round(SHARED_STEP / (MICRO_BATCH_TOKENS * RANKS))
    counted = sizes_of("3 B")
    total = rounds * (counted["ranks, a round: gathered"] + counted["ranks, a round: summed"])
    assert f"are {rounds} rounds" in PAGE
    assert f"{total / 1e12:.1f} TB for each rank and step" in PAGE


def test_lines_that_the_pages_quote_are_said_by_the_program() -> None:
    quoted = re.findall(r"^\| (?:[^|`]*\| )?`(?![\w.]+ = )([^`]* [^`]*)` \|", PAGE + SERVERS, flags=re.MULTILINE)
    quoted += re.findall(r"^    ((?:engine . is|warning).*)$", PAGE, flags=re.MULTILINE)
    words = words_of("scale", "samplers", "run")
    assert len(quoted) >= 18
    assert [line for line in quoted if said_share(line, words) < 0.4] == []


@pytest.mark.parametrize("wrong", ["[scale] wants Ray: get it", "engine 1 was killed and is gone"])
def test_a_line_that_is_said_nowhere_is_found(wrong: str) -> None:
    assert said_share(wrong, words_of("scale", "samplers", "run")) < 0.5


def words_of(*rooms: str) -> set[str]:
    """What stands in the strings of these rooms' files, between the values that they are filled with."""
    files = [path for room in rooms for path in (ROOT / "python" / "treegrpo_cli" / room).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {words for words in (string.strip(" :;,.()") for string in strings) if len(words) >= 7}


def said_share(line: str, words: set[str]) -> float:
    """The share of a line that such strings make up; the rest is what they are filled with, or was left out."""
    left = line
    for one in sorted(words, key=len, reverse=True):
        left = left.replace(one, "")
    return 1 - len(left) / len(line)
