"""Ray is joined or started for a run, and gone with it, however that ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import orjson
import pytest
import ray
from ray._private import node, ray_constants, worker
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import dump_config, make_config
from treegrpo_cli.errors import UserError
from treegrpo_cli.run import preflight
from treegrpo_cli.scale import cluster
from treegrpo_cli.scale.cluster import (
    actor_options,
    address_of,
    check_reachable,
    open_cluster,
    variables_handed_on,
)
from treegrpo_cli.scale.parts import RayParts
from treegrpo_cli.train.checkpoint import checkpoints

from tests.command_line import refused
from tests.runs import small_run, treegrpo
from tests.scale.engine_runs import until
from tests.scale.processes import descendants, is_running
from tests.zygote import Command, zygote

AGENTS = ("ray::DashboardA", "ray::RuntimeEnv")
"""Processes of Ray that hear of a killed driver a minute later, as the kernel shortens their names."""


def at(address: str) -> Config:
    return make_config({"scale": {"engines": 1, "address": address}})


def opened(config: Config) -> None:
    with open_cluster(config, lambda _: None):
        pass


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://somewhere:10001", "scale.address: got ray://somewhere:10001; give host:port"),
        ("somewhere", "scale.address: got 'somewhere', expected host:port"),
        ("127.0.0.1:99999", "there is no Ray cluster at 127.0.0.1:99999"),
    ],
)
def test_an_address_that_names_no_cluster_is_refused(address: str, line: str) -> None:
    with pytest.raises(UserError, match="^" + line.replace(".", r"\.")):
        opened(at(address))


def test_where_nothing_listens_there_is_no_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=f"^there is no Ray cluster at 127.0.0.1:{port}: Connection refused$"):
        opened(at(f"127.0.0.1:{port}"))


@pytest.mark.parametrize(("answer", "line"), [(b"HTTP/1.1 400 Bad\r\n\r\n", "something else listens"), (b"", "timed")])
def test_what_listens_and_is_no_ray_is_refused_at_once(
    answer: bytes, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.2)

    def serve(server: socket.socket) -> None:
        with suppress(ConnectionError), server.accept()[0] as connection:
            connection.sendall(answer)
            while connection.recv(100):
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        Thread(target=serve, args=(server,), daemon=True).start()
        with pytest.raises(UserError, match=f"^there is no Ray cluster at {address}: {line}"):
            opened(at(address))


def test_a_cluster_that_runs_is_reachable(ray_cluster: list[str]) -> None:
    check_reachable(ray.get_runtime_context().gcs_address)


def test_nobody_else_gets_into_the_folder_of_our_own_cluster(ray_cluster: list[str]) -> None:
    around = Path(worker._global_node.get_temp_dir_path()).parent
    assert around.name.startswith("tg-ray-")
    assert around.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("kinds", "name"),
    [(["raylet"], "the raylet"), (["log_monitor", "gcs_server"], "the GCS server"), (["log_monitor"], ""), ([], "")],
)
def test_a_process_without_which_there_is_no_cluster_is_missed(
    kinds: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [(kind, object()) for kind in kinds]
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(dead_processes=lambda: ended))
    assert cluster.ended_process() == name
    assert {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER} == set(cluster.VITAL)
    assert callable(node.Node.dead_processes)


def test_a_run_whose_cluster_is_gone_ends_in_one_line_from_any_thread() -> None:
    program = (
        "import threading; from treegrpo_cli import signals; "
        "threading.Thread(target=signals.abandon, args=('the raylet has ended',)).start(); threading.Event().wait()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "treegrpo: the raylet has ended\n")


def test_an_address_of_the_environment_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "garbage")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS: got 'garbage', expected host:port$"):
        check_reachable("garbage")


def test_the_settings_name_the_cluster_before_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [address_of(at("")), address_of(at("local")), address_of(at("a:1"))] == ["", "", "a:1"]
    monkeypatch.setenv("RAY_ADDRESS", "b:2")
    assert [address_of(at("")), address_of(at("local")), address_of(at("a:1"))] == ["b:2", "", "a:1"]


def test_ray_that_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^\[scale\] needs Ray: pip install 'treegrpo\[scale\]'$"):
        RayParts()


def test_actors_get_the_variables_of_engines_and_modules_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    secrets = ("WANDB_API_KEY", "VLLM_API_KEY", "VLLM_KEY_OF_OURS")
    for name in secrets:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PYTHONPATH", f"here{os.pathsep}/there")
    found = variables_handed_on("VLLM_KEY_OF_OURS")
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["PYTHONPATH"] == f"{Path.cwd() / 'here'}{os.pathsep}/there"
    assert not found.keys() & set(secrets)


def test_ray_restarts_no_actor_and_repeats_no_call() -> None:
    options = actor_options(num_gpus=2, scheduling_strategy="SPREAD")
    assert (options["max_restarts"], options["max_task_retries"], options["num_gpus"]) == (0, 0, 2)
    assert options["scheduling_strategy"] == "SPREAD"


def wait_for_steps(command: Command, metrics: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while not (metrics.exists() and sum(b'"reward"' in line for line in metrics.read_bytes().splitlines()) >= number):
        assert command.poll() is None, command.communicate(1).stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)


def folders_of(pids: set[int]) -> set[Path]:
    """Where the Ray of these processes has its sockets and logs."""
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids]
    return {Path(found) for command in commands for found in re.findall(r"/tmp/tg-ray-\w+", command)}


def press_ctrl_c(command: Command) -> None:
    """What a terminal does: SIGINT to all of the group, Ray's own processes too."""
    own = os.getpgid(command.pid)
    group = [pid for pid in descendants(command.pid) if os.getpgid(pid) == own]
    assert len(group) > 2
    for pid in (*group, command.pid):
        os.kill(pid, signal.SIGINT)


def test_a_run_under_ray_stops_at_ctrl_c_goes_on_and_leaves_no_process_even_when_it_is_killed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    train = {"num_steps": 1000, "prompts_per_step": 1, "save_steps": 1, "eval_steps": 0}
    settings = small_run(tmp_path, tiny_model_dir, scale={"engines": 1}, train=train)
    (tmp_path / "c.toml").write_text(dump_config(make_config(settings)))
    metrics = tmp_path / "run" / "metrics.jsonl"
    command = zygote().start(["train", "c.toml"], cwd=tmp_path)
    wait_for_steps(command, metrics, 1)
    started = descendants(command.pid)
    [folder] = folders_of(started)
    press_ctrl_c(command)
    done = command.communicate(timeout=300)
    assert done.returncode == 130, done.stderr
    lines = done.stderr.splitlines()
    assert "rollouts run on 1 engine (transformers)" in done.stderr
    assert lines[-1].startswith("treegrpo: stopped after step ")
    assert not [line for line in lines if "ray" in line.lower().replace("starting ray ...", "")], done.stderr
    assert "gone" not in done.stderr
    until(lambda: not any(map(is_running, started)), 120)
    assert not folder.exists()
    steps = [orjson.loads(line)["step"] for line in metrics.read_bytes().splitlines()]

    command = zygote().start(["train", "run", "--resume"], cwd=tmp_path)
    wait_for_steps(command, metrics, len(steps) + 1)
    started = descendants(command.pid)
    [folder] = folders_of(started)
    os.kill(command.pid, signal.SIGKILL)
    command.communicate(timeout=300)
    agents = {pid for pid in started if Path(f"/proc/{pid}/comm").read_text().strip() in AGENTS}
    assert len(agents) == 2
    until(lambda: not any(map(is_running, started - agents)), 120)
    for pid in agents:  # they would go by themselves
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)
    assert checkpoints(tmp_path / "run")


def test_a_cluster_that_is_not_there_ends_a_command_in_one_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = small_run(tmp_path, tiny_model_dir, scale={"engines": 1, "address": "127.0.0.1:1"})
    (tmp_path / "c.toml").write_text(dump_config(make_config(settings)))
    done = treegrpo("train", "c.toml", "--quiet", cwd=tmp_path)
    assert refused(done) == "treegrpo: there is no Ray cluster at 127.0.0.1:1: Connection refused"
