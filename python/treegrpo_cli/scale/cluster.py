"""`[scale]` -> a Ray cluster: joined, or started for this run and ended with it.

What crosses Ray are our own dataclasses of numbers, strings, numpy columns and tensors, between processes of one run;
Ray pickles them, so whoever can speak to the cluster can run code on it. That is why a cluster of our own listens on
loopback only, and why Ray's authentication by token is left on. Files of users are read by the driver, never by pickle.

This file and its neighbours in `scale` are the only ones that import ray.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.errors import UserError, said
from treegrpo_cli.signals import abandon

if TYPE_CHECKING:
    from treegrpo_cli.config import Config

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by default, and warns of until then
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # actors run in the driver's environment already
    "RAY_worker_niceness": "0",  # engines are no background work
}
"""What Ray reads in the driver and hands on to its own processes, unless the user set it."""

HANDED_ON = (
    *("OMP_", "MKL_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "VLLM_", "TORCH", "PYTORCH_", "NCCL_", "GLOO_"),
    *("TREEGRPO_", "DO_NOT_TRACK"),
)
"""Beginnings of the driver's variables that its actors get, also on another machine."""

CONNECT_S = 10.0
LOOK_S = 0.2

VITAL = {"raylet": "the raylet", "gcs_server": "the GCS server"}
"""Of a machine and of a cluster, as Ray and as we call them."""

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of gRPC, which Ray's first process speaks, begins: HTTP/2's preface and an empty frame of settings."""
FRAME_HEAD, SETTINGS_FRAME = 9, 4


def address_of(config: Config) -> str:
    """Return the cluster to join, `host:port` or `auto`; empty where one is started for this run."""
    return config.scale.cluster


@contextmanager
def open_cluster(config: Config, say: Callable[[str], None]) -> Iterator[None]:
    """Be connected to Ray: to the cluster of `scale.address`, else of RAY_ADDRESS, else to one that ends with this.

    Where this process is connected already, it stays so. Raises UserError where there is no such cluster, or it does
    not let us in.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = address_of(config)
    folder = None if address else tempfile.mkdtemp(prefix="tg-ray-", dir="/tmp")  # a short path, for sockets
    say(f"joining the Ray cluster at {address} ..." if address else "starting Ray ...")
    connection = _Connection(address, folder, variables_handed_on(config.sampler.api_key_env))
    try:
        connection.open()
        yield
    finally:
        connection.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def prepare_environment() -> None:
    """Set what Ray reads at its first import, unless the user set it."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def actor_options(
    *, num_cpus: float = 0, num_gpus: float = 0, max_concurrency: int = 1000, **place: Any
) -> dict[str, Any]:
    """Return what an actor of ours is started with: Ray never restarts it, and repeats no call.

    Who watches it knows what is to be done first. `place` are more of Ray's options; its environment comes with the
    job.
    """
    return {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "max_concurrency": max_concurrency,
        "max_restarts": 0,
        "max_task_retries": 0,
        **place,
    }


def enter_environment(environment: Environment) -> None:
    """Be, in an actor, where the driver is: its folder, where there is such a one here, and its path of modules."""
    folder, path = environment
    if os.path.isdir(folder):
        os.chdir(folder)
    sys.path += [entry for entry in path if entry not in sys.path]


Environment = tuple[str, list[str]]
"""The driver's working directory and its `sys.path`."""


def environment() -> Environment:
    """Return where this process is."""
    return os.getcwd(), [entry or os.getcwd() for entry in sys.path]


def unwrapped(error: BaseException) -> BaseException:
    """Return what an actor raised, out of what Ray puts around it; any other error as it is."""
    from ray.exceptions import RayTaskError

    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


@contextmanager
def unwrapping() -> Iterator[None]:
    """Let through what actors raise as they raised it: a UserError is one line again."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise unwrapped(error) from error


class _Connection:
    """Ray's client in this process, in a thread of its own.

    `ray.init` takes SIGTERM over when it runs in the main thread; ours stays as it was. The processes of a cluster of
    our own die with the thread that started them (PR_SET_PDEATHSIG), so that it lives as long as they: with a kill -9
    of this process, too. (Two small agents of Ray follow a minute after that: they first try to tell the dead ones.)
    """

    def __init__(self, address: str, folder: str | None, variables: dict[str, str]) -> None:
        self._address, self._folder, self._variables = address, folder, variables
        self._is_open, self._shall_close = Event(), Event()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._live, name="ray", daemon=True)

    def open(self) -> None:
        """Connect. Raises UserError."""
        if self._address:
            check_reachable(self._address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._thread.start()
            self._is_open.wait()
        if self._error is not None:
            where = f"the Ray cluster at {self._address}" if self._address else "Ray does not start"
            raise UserError(f"{where}: {type(self._error).__name__}: {said(self._error)}") from self._error

    def close(self) -> None:
        """Disconnect, and end the cluster where it is our own."""
        self._shall_close.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _live(self) -> None:
        import ray

        try:
            self._init()
        except BaseException as error:  # the thread that waits raises it
            self._error = error
        self._is_open.set()
        while not self._shall_close.wait(LOOK_S):
            self._check_alive()
        ray.shutdown()

    def _check_alive(self) -> None:
        """End the program where a process that Ray cannot do without is gone: Ray would end it without a word."""
        if self._folder is not None and (name := ended_process()):
            shutil.rmtree(self._folder, ignore_errors=True)
            abandon(f"{name} of Ray has ended, and the run with it; --resume continues from the last checkpoint")

    def _init(self) -> None:
        import ray

        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        settings["runtime_env"] = {"env_vars": self._variables}
        with _quietly():
            if self._address:
                ray.init(self._address, **settings)
                return
            with _on_loopback():  # everybody may write to Ray's own folder; ours, around it, lets nobody else in
                ray.init("local", include_dashboard=False, _temp_dir=f"{self._folder}/r", **settings)


def ended_process() -> str:
    """Return which of the two processes that hold a cluster of our own together has ended; empty where both live."""
    from ray._private import worker

    node = worker._global_node
    dead = () if node is None else (kind for kind, _ in node.dead_processes())
    return next((VITAL[kind] for kind in dead if kind in VITAL), "")


def check_reachable(address: str) -> None:
    """Raise UserError where no Ray listens: Ray itself would wait for minutes, and then end the process."""
    if address == "auto":
        return
    if "://" in address:
        raise UserError(
            f"{_key(address)}: got {address}; give host:port, and start the run on a machine of the cluster"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{_key(address)}: got {address!r}, expected host:port")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as connection:
            answers = bool(os.environ.get("RAY_USE_TLS")) or _speaks_grpc(connection)
    except (OSError, OverflowError) as error:
        raise UserError(f"there is no Ray cluster at {address}: {said(error)}") from error
    if not answers:
        raise UserError(f"there is no Ray cluster at {address}: something else listens there")


def _key(address: str) -> str:
    """Where the user gave this address."""
    return "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else "scale.address"


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other end answers as HTTP/2 does, with its own settings. Raises OSError where it says nothing."""
    connection.sendall(HELLO)
    head = b""
    while len(head) < FRAME_HEAD and (more := connection.recv(FRAME_HEAD - len(head))):
        head += more
    return len(head) == FRAME_HEAD and head[3] == SETTINGS_FRAME


def variables_handed_on(secret: str) -> dict[str, str]:
    """Return the variables that actors share with the driver, wherever they run.

    Ray shows them to all who see the cluster: not `secret`, the one with the servers' API key, which the driver reads.
    """
    names = os.environ.keys() - {secret, SamplerConfig().api_key_env}
    found = {name: os.environ[name] for name in names if name.startswith(HANDED_ON)}
    if path := os.environ.get("PYTHONPATH"):
        found["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in path.split(os.pathsep) if entry)
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what Ray says of dead workers off the terminal, which `log_to_driver` does not: who watches them says it."""
    from ray._private import worker

    before, worker.listen_error_messages = worker.listen_error_messages, lambda *_: None
    try:
        yield
    finally:
        worker.listen_error_messages = before


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a cluster of one machine be reachable from that machine alone, as Ray has it on macOS."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
