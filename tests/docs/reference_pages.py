"""The pages of docs/reference that are made of the source, by their names."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.docs import page_of_commands, page_of_estimators, page_of_metrics, page_of_python

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": page_of_commands.page,
    "estimators.md": page_of_estimators.page,
    "metrics.md": page_of_metrics.page,
    "python.md": page_of_python.page,
}
