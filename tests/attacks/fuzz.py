"""Lets the program read damaged and hostile inputs, and reports what it does not survive.

    python -m tests.attacks.fuzz                       a thousand inputs of every kind
    python -m tests.attacks.fuzz trees data --count 100000 --seed 7
    python -m tests.attacks.fuzz trees --only 4711     one input again

Every input follows from kind, seed and number, so that a finding can be repeated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

from tests.attacks.guard import Finding, run_guarded
from tests.attacks.targets import KINDS, make_attack


def fuzz(kind: str, numbers: range, seed: int) -> list[Finding]:
    """Return what inputs of a kind found."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="treegrpo-fuzz-") as folder:
        return list(run_guarded(make_attack(kind, Path(folder), seed), numbers))


def main() -> int:
    """Run the command line; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], help="default: all of them")
    parser.add_argument("--count", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this input alone")
    given = parser.parse_args()
    numbers = range(given.count) if given.only is None else range(given.only, given.only + 1)
    found = 0
    for kind in given.kinds or KINDS:
        findings = fuzz(kind, numbers, given.seed)
        found += len(findings)
        print(f"{kind}: {len(numbers)} inputs, {len(findings)} not survived")
        for finding in findings:
            print(f"  --seed {given.seed} --only {finding.number}: {finding.what}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
