"""`[limits]` of the settings."""

from __future__ import annotations

from treegrpo_cli.config.sections.base import PositiveInt, Seconds, Section
from treegrpo_cli.types import Limits


class LimitsConfig(Section):
    """How much of a file is read before it is refused, so that a small file cannot fill memory or never end."""

    max_file_bytes: PositiveInt = Limits.max_file_bytes
    """Most bytes of one file, after decompression."""
    max_line_bytes: PositiveInt = Limits.max_line_bytes
    """Most bytes of one line, which is a row or a tree."""
    max_line_objects: PositiveInt = Limits.max_line_objects
    """Most objects and lists in one line, or in a file that is one list."""
    max_lines: PositiveInt = Limits.max_lines
    """Most lines of one file, blank ones included."""
    max_rows: PositiveInt = Limits.max_rows
    """Most questions of one data set. `data.limit` reads the first of a longer one."""
    max_data_bytes: PositiveInt = Limits.max_data_bytes
    """Most bytes of all rows of one data set, counted as JSON: they stay in memory."""
    max_read_s: Seconds = Limits.max_read_s
    """Most seconds for reading and unpacking one file."""
    max_wait_s: Seconds = Limits.max_wait_s
    """Most seconds without a byte from a pipe."""

    @property
    def resolved(self) -> Limits:
        """The same as the readers take them."""
        return Limits(**self.model_dump())
