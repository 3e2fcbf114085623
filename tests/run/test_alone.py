"""A run in one process: what others need is not loaded for it."""

import os
import subprocess
import sys
from pathlib import Path

from treegrpo_cli.config.files import dump_config, make_config

from tests.runs import small_run

OTHERS = ("ray", "treegrpo_cli.scale", "treegrpo_cli.samplers.server", "treegrpo_cli.train.sharding")
"""Modules, and the beginnings of others' names, of Ray, servers and ranks."""

CODE = f"""
import sys
from treegrpo_cli.cli.app import main
sys.argv = ["treegrpo", "train", "c.toml"]
try: main()
finally: print("loaded", sorted(name for name in sys.modules if name.startswith({OTHERS!r})))
"""


def test_a_run_without_ray_servers_and_ranks_loads_nothing_of_them(tiny_model_dir: Path, tmp_path: Path) -> None:
    train = {"num_steps": 1, "prompts_per_step": 1, "save_steps": 1, "eval_steps": 0}
    (tmp_path / "c.toml").write_text(dump_config(make_config(small_run(tmp_path, tiny_model_dir, train=train))))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # for the reward
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
