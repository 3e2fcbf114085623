"""One command: SmolLM2-135M learns arithmetic in words with a calculator, by Tree-GRPO, on a CPU.

    python examples/smollm2/run.py
    python examples/smollm2/run.py --settings examples/smollm2/chains.toml seed=1 output_dir=runs/mine

What `prepare.py` makes is made once, in runs/smollm2. All else goes to `treegrpo train`: KEY=VALUE, --resume.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import prepare

WORLD = Path("runs/smollm2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is not there, and train; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("tree.toml"))
    options, others = parser.parse_known_args(arguments)
    if not (WORLD / "policy" / "model.safetensors").exists():
        prepare.main([str(WORLD)])
    command = [sys.executable, "-m", "treegrpo_cli", "train", str(options.settings), *others]
    return subprocess.run(command).returncode  # noqa: S603 - the program itself


if __name__ == "__main__":
    sys.exit(main())
