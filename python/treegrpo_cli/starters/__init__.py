"""The name of a task -> a folder that trains as it stands: what `treegrpo init` writes."""

from treegrpo_cli.starters.tasks import STARTERS, Starter, find_starter
from treegrpo_cli.starters.writing import write_starter

__all__ = ["STARTERS", "Starter", "find_starter", "write_starter"]
