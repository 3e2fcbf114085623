"""Settings and fixtures that all tests share."""

import os
import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell that starts us in the background ignores Ctrl-C, and every command under test would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

for variable, value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(variable, value)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are of the CPU, also where there is a card


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model directory, made once a session: copy it before writing to it."""
    from tests.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def vllm_on_cpu() -> None:
    """Skip where the installed vLLM cannot run on the CPU, such as its build for CUDA."""
    from treegrpo_cli.samplers import why_no_vllm

    if reason := why_no_vllm("cpu"):
        pytest.skip(reason)
