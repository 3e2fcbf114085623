"""Directory or Hub name -> configuration, tokenizer, weights: the one place where `model.path` is read.

transformers, tokenizers and safetensors fail in ways of their own; here each becomes one line that names the
setting. Weights are read from safetensors only: a pickle could run anything. Code beside a model is never run, and
nobody is asked whether it should be.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treegrpo_cli.errors import UserError
from treegrpo_cli.models import folder
from treegrpo_cli.models.chat_template import read_chat_template


def read_model_config(path: str | Path) -> Any:
    """Return the model's configuration. Raises UserError where there is none."""
    from transformers import AutoConfig

    with _reading(path, "a model"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def context_limit(model_path: str, max_model_len: int) -> int:
    """Return `max_model_len`, or what the model's positions allow where that is less or nothing is asked."""
    config = read_model_config(model_path).get_text_config()
    limit = int(getattr(config, "max_position_embeddings", 0) or 0)
    return min(max_model_len or limit, limit or max_model_len)


def load_tokenizer(path: str | Path, chat_template: str = "") -> Any:
    """Return the model's tokenizer, with another chat template where one is given: a file or the template itself.

    Raises UserError where there is none.
    """
    from transformers import AutoTokenizer

    with _reading(path, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        tokenizer.decode(tokenizer.encode("What is asked?"))  # its settings are read when it is used
    if chat_template:
        tokenizer.chat_template = read_chat_template(chat_template)
    return tokenizer


def load_causal_lm(path: str | Path, dtype: Any, config: Any = None) -> Any:
    """Return the causal LM in `dtype`, on the CPU; `config` takes the place of the stored one.

    Raises UserError where there is none, where its configuration asks for other weights than there are, or where
    weights are missing: transformers would draw them at random.
    """
    from transformers import AutoModelForCausalLM

    config = config or read_model_config(path)
    shape_of_causal_lm(path, config)
    with _reading(path, "a model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} for one")
    return model


def shape_of_causal_lm(path: str | Path, config: Any = None) -> Any:
    """Return the causal LM on torch's meta device, without weights; a folder's weights are seen to fit it.

    Raises UserError as `load_causal_lm` does.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config or read_model_config(path))
    with _reading(path, "a model"):
        if Path(path).is_dir() and not folder.weight_files(Path(path)):
            raise ValueError("no file named model.safetensors")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if Path(path).is_dir():
            folder.check_sizes(Path(path), model)
    return model


def check_weight_files(path: str | Path) -> None:
    """Raise UserError where a model's folder holds no safetensors, or broken ones. A Hub name is not looked at."""
    from safetensors import safe_open

    if not Path(path).is_dir():
        return
    with _reading(path, "a model"):
        files = folder.weight_files(Path(path))
        if not files:
            raise ValueError("it holds no *.safetensors")
        for file in sorted({*files, *Path(path).glob("*.safetensors")}):
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
        if Path(name).is_dir():
            folder.check_files(Path(name))
        yield
    except UserError:
        raise
    except BaseException as error:  # every file format beneath fails in its own way
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of the tokenizers' Rust
            raise
        raise UserError(f"model.path: cannot load {what} from {name!r}: {_reason(name, what, error)}") from error


def _reason(name: str, what: str, error: BaseException) -> str:
    if Path(name).is_dir() and folder.wants_code(Path(name), what == "a tokenizer"):
        return "it needs code from its own folder (auto_map), and such code is never run"
    return " ".join(str(error).split())[:300] or type(error).__name__
