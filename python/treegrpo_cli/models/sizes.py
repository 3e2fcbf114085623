"""A causal LM's configuration -> the sizes by which its memory is counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class UncountableError(ValueError):
    """A configuration that does not name its sizes as other models do; the message says which."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Of a decoder: `queries` and `keys` are those of all heads together, `intermediate` the MLP of one token."""

    hidden: int
    queries: int
    keys: int
    intermediate: int
    num_layers: int
    vocabulary: int
    max_tokens: int | None
    """Positions that it has; None where nothing bounds them."""

    @classmethod
    def of(cls, model: Any) -> ModelSizes:
        """Read them off a causal LM. Raises UncountableError."""
        return cls.of_config(model.config)

    @classmethod
    def of_config(cls, config: Any) -> ModelSizes:
        """Read them off a causal LM's configuration. Raises UncountableError."""
        config = config.get_text_config()
        hidden, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
        size = _number(config, "head_dim") or hidden // heads
        return cls(
            hidden=hidden,
            queries=heads * size,
            keys=(_number(config, "num_key_value_heads") or heads) * size,
            intermediate=_intermediate(config, hidden),
            num_layers=_whole(config, "num_hidden_layers"),
            vocabulary=_whole(config, "vocab_size"),
            max_tokens=_number(config, "max_position_embeddings"),
        )

    def cached_bytes(self, item_bytes: int) -> int:
        """Return the bytes that keys and values of one token take in all layers."""
        return 2 * self.num_layers * self.keys * item_bytes


def _intermediate(config: Any, hidden: int) -> int:
    """The MLP's width, over all experts that a token goes through."""
    width = _number(config, "intermediate_size") or 4 * hidden
    experts = _number(config, "num_experts_per_tok")
    if experts is None:
        return width
    shared = _number(config, "shared_expert_intermediate_size") or 0
    return experts * (_number(config, "moe_intermediate_size") or width) + shared


def _whole(config: Any, name: str) -> int:
    number = _number(config, name)
    if number is None:
        raise UncountableError(f"the model's configuration has no {name}")
    return number


def _number(config: Any, name: str) -> int | None:
    """A positive whole number, of a list the greatest; None for anything else."""
    value = getattr(config, name, None)
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, int) for part in value):
        value = max(value)
    return value if isinstance(value, int) and value > 0 else None
