"""Directory or Hub name -> configuration, tokenizer, weights: the one place where `model.path` is read.

transformers, tokenizers and safetensors fail in ways of their own; here each becomes one line that names the
setting. Weights are read from safetensors only: a pickle could run anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treegrpo_cli.errors import UserError


def read_model_config(path: str | Path) -> Any:
    """Return the model's configuration. Raises UserError where there is none."""
    from transformers import AutoConfig

    with _reading(path, "a model"):
        return AutoConfig.from_pretrained(path)


def load_tokenizer(path: str | Path) -> Any:
    """Return the model's tokenizer. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    with _reading(path, "a tokenizer"):
        return AutoTokenizer.from_pretrained(path)


def load_causal_lm(path: str | Path, dtype: Any, config: Any = None) -> Any:
    """Return the causal LM in `dtype`, on the CPU; `config` takes the place of the stored one.

    Raises UserError where there is none, or where weights are missing: transformers would draw them at random.
    """
    from transformers import AutoModelForCausalLM

    with _reading(path, "a model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            config=config or read_model_config(path),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} for one")
    return model


def check_weights(path: str | Path) -> None:
    """Raise UserError where a model's folder holds no safetensors, or broken ones. A Hub name is not looked at."""
    from safetensors import safe_open

    if not Path(path).is_dir():
        return
    with _reading(path, "a model"):
        files = sorted(Path(path).glob("*.safetensors"))
        if not files:
            raise ValueError("it holds no *.safetensors")
        for file in files:
            with safe_open(file, framework="numpy"):
                pass


@contextmanager
def _reading(path: str | Path, what: str) -> Iterator[None]:
    name = str(path)
    if not name:
        raise UserError("model.path: give a model's directory or Hub name")
    is_hub_name = name.count("/") <= 1 and name[0] not in "./~"
    if not Path(name).is_dir() and (Path(name).exists() or not is_hub_name):
        raise UserError(f"model.path: no such directory: {name!r}")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every file format beneath fails in its own way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"model.path: cannot load {what} from {name!r}: {reason}") from error
