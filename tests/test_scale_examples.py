"""The settings and scripts for many GPUs, as far as they can be tried without one."""

import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from treegrpo_cli.config.documents import read_document
from treegrpo_cli.config.files import load_config

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = EXAMPLES / "scale"


def kuberay() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    return found


def test_every_settings_file_is_read() -> None:
    files = sorted(FOLDER.glob("*.toml"))
    assert [file.name for file in files] == ["7b-8x80gb.toml", "paper-3b-8x80gb.toml"]
    for file in files:
        scale = load_config(file).scale
        colocated = scale.placement == "colocated"
        assert (scale.engines if colocated else scale.engines + scale.trainer_ranks) == 8


def test_the_papers_settings_on_eight_gpus_are_those_on_one_but_for_what_the_file_names() -> None:
    one = read_document(EXAMPLES / "gpu" / "multi-hop-3b-80gb.toml")
    eight = read_document(FOLDER / "paper-3b-8x80gb.toml")
    assert eight.pop("scale") == {"engines": 8, "trainer_ranks": 8, "placement": "colocated"}
    assert eight.pop("output_dir") != one.pop("output_dir")
    assert eight["sampler"].pop("gpu_memory_utilization") != one["sampler"].pop("gpu_memory_utilization")
    assert eight == one


def test_what_slurm_and_kuberay_start_fills_the_gpus_that_they_ask_for() -> None:
    script = (FOLDER / "slurm.sbatch").read_text()
    asked = dict(
        line.removeprefix("#SBATCH --").split()[0].split("=")
        for line in script.splitlines()
        if "=" in line and line.startswith("#SBATCH")
    )
    [command] = [line for line in script.splitlines() if "sbatch examples/" in line]
    overrides = [word for word in shlex.split(command) if "=" in word]
    scale = load_config(FOLDER / "7b-8x80gb.toml", overrides).scale
    assert int(asked["nodes"]) * int(asked["gpus-per-node"]) == scale.engines + scale.trainer_ranks

    spec = kuberay()["spec"]
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    [worker] = group["template"]["spec"]["containers"]
    overrides = [word for word in shlex.split(spec["entrypoint"]) if "=" in word]
    scale = load_config(None, overrides).scale
    gpus = group["replicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus == scale.engines + scale.trainer_ranks
    assert scale.address == "auto"


def test_kuberay_starts_the_version_of_ray_that_is_pinned() -> None:
    pinned = (EXAMPLES.parent / "requirements" / "gpu.txt").read_text().splitlines()
    assert f"ray=={kuberay()['spec']['rayClusterSpec']['rayVersion']}" in pinned


STUBS = {
    "srun": 'echo "srun $*" >> log',
    "python": 'test -e joined || { touch joined; exit 1; }; echo "joined" >> log',
    "treegrpo": (
        "trap 'echo saved >> log; exit 3' TERM\necho \"$RAY_ADDRESS treegrpo $*\" >> log\nwhile :; do sleep 0.05; done"
    ),
    "hostname": 'if [ $# = 0 ]; then echo node-a; else echo "10.0.0.7 fe80::1"; fi',
    "sleep": "exec /bin/sleep 0.05",
}


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A folder with a virtual environment whose commands write down that they were called."""
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "activate").write_text(f"PATH={shlex.quote(str(commands))}:$PATH\n")
    for name, body in STUBS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    return tmp_path


def test_the_slurm_script_starts_ray_on_all_nodes_waits_for_them_and_hands_on_the_signal(node: Path) -> None:
    script = [str(FOLDER / "slurm.sbatch"), "settings.toml", "--resume"]
    run = subprocess.Popen(["/bin/bash", *script], cwd=node, env={"PATH": "/usr/bin:/bin", "SLURM_NNODES": "3"})
    try:
        told = "10.0.0.7:6379 treegrpo train settings.toml --resume"
        while told not in ((node / "log").read_text() if (node / "log").exists() else ""):
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(signal.SIGUSR1)
        assert run.wait(timeout=60) == 3
    finally:
        run.kill()
    lines = (node / "log").read_text().splitlines()
    started = [line for line in lines if line.startswith("srun")]
    assert any("--nodelist=node-a ray start --head --node-ip-address=10.0.0.7 --port=6379" in line for line in started)
    assert any("--nodes=2 --ntasks=2 --exclude=node-a ray start --address=10.0.0.7:6379" in line for line in started)
    assert lines.index("joined") < lines.index(told) < lines.index("saved")
