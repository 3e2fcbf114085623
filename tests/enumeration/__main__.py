"""Writes the tables of a page anew: `python -m tests.enumeration docs/concepts/adaptive-credit.md`."""

import sys
from pathlib import Path

from tests.enumeration.noise import with_noise
from tests.enumeration.page import with_table

if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_noise(with_table(path.read_text(encoding="utf-8"))), encoding="utf-8")
