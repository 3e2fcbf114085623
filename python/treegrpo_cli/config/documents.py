"""TOML or YAML file -> tree of settings: bounded in size, depth and time, whatever the file holds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from treegrpo_cli.data.chunks import read_chunks
from treegrpo_cli.errors import FileError, said
from treegrpo_cli.types import Limits

LIMITS = Limits(max_file_bytes=2**18)
"""A file of settings has a few kilobytes."""

MAX_YAML_VALUES = 100_000
"""With every alias written out: aliases of aliases grow without end."""


def read_document(path: Path) -> dict[str, Any]:
    """Return the table that a file holds, TOML by its name or else YAML.

    Raises:
        FileError: a file that cannot be read, is too large, or holds no table.
    """
    kind = "TOML" if path.suffix == ".toml" else "YAML"
    try:
        text = b"".join(read_chunks(path, LIMITS)).decode()
        tree = tomllib.loads(text) if kind == "TOML" else _read_yaml(text)
    except UnicodeDecodeError:
        raise FileError(path, "not a text file") from None
    except RecursionError:
        raise FileError(path, f"not {kind}: nested too deep") from None
    except FileError:
        raise
    except (ValueError, yaml.YAMLError) as error:  # tomllib's own, and a number of thousands of digits
        raise FileError(path, f"not {kind}: {said(error)}") from None
    if not isinstance(tree, dict):
        raise FileError(path, f"expected a table of settings, got {type(tree).__name__}")
    return tree


def _read_yaml(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_values(node, {}) > MAX_YAML_VALUES:
            raise ValueError(f"more than {MAX_YAML_VALUES} values, with aliases written out")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values of a document with its aliases written out; an alias of what stands around it has no end."""
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1  # while it is counted
        inside = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]
