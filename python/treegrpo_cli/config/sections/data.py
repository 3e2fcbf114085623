"""`[data]` of the settings."""

from __future__ import annotations

from treegrpo_cli.config.sections.base import NonNegativeInt, Section


class DataConfig(Section):
    """Questions: JSON Lines, Parquet or a Hub name, in TRL's, verl's or Search-R1's columns, or question and answer."""

    train: str = ""
    """Questions to train on: a JSON Lines or Parquet file, or the name of a dataset on the Hugging Face Hub. It has no
    default."""
    eval: str = ""
    """Questions to evaluate on, kept out of training; in the same formats. Empty means none. `train.eval_steps` or
    `train.eval_tokens` says when they are asked."""
    split: str = "train"
    """Split that `train` means where it names a Hub dataset; files have no splits."""
    eval_split: str = "test"
    """Split that `eval` means where it names a Hub dataset."""
    limit: NonNegativeInt = 0
    """Read only this many rows of `train`, from its start; 0 reads all."""
    eval_limit: NonNegativeInt = 0
    """Read only this many rows of `eval`, from its start; 0 reads all. Fewer rows make evaluations faster, and their
    intervals wider."""
    shuffle: bool = True
    """Ask questions in a random order, another one on each pass through the data; `seed` fixes it. Otherwise they are
    asked as they stand."""
