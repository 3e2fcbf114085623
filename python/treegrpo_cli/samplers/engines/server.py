"""`sampler.engine = "server"`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from treegrpo_cli.samplers.engine import Engine, Start, register

if TYPE_CHECKING:
    from treegrpo_cli.samplers.base import Sampler


@register
class ServerEngine(Engine):
    """vLLM servers that run already."""

    name = "server"
    is_here = False

    def why_not(self, device: str) -> str | None:
        """It needs a client for HTTP alone."""
        return None if find_spec("httpx") else "httpx is not installed (pip install 'treegrpo[train]')"

    def why_no_sleep(self, device: str) -> str | None:
        """Its memory is none of ours."""
        return 'sampler.sleep: a server keeps its memory; set sampler.sleep = "auto"'

    def why_no_distinct(self, device: str) -> str | None:
        """It cannot be told what not to draw."""
        return (
            "rollout.distinct_siblings: a server cannot leave out what was drawn before; "
            'set sampler.engine = "transformers"'
        )

    def why_no_entropies(self) -> str | None:
        """It would have to send the log-probability of every token there is."""
        return (
            "sampler.engine: a server gives no entropies, which rollout.entropies, the selection or an estimator "
            'reads here; set sampler.engine = "vllm"'
        )

    def why_no_adapter(self) -> str | None:
        """It takes whole weights."""
        return 'sampler.lora: servers take adapters merged into the weights; set sampler.lora = "merged"'

    def start(self, given: Start) -> Sampler:
        """Find the servers, and check them."""
        from treegrpo_cli.samplers.server import ServerSampler

        return ServerSampler(
            given.model_path,
            given.config,
            dtype=given.dtype,
            max_model_len=given.max_model_len,
            log_path=given.log_path,
            trains=given.trained is not None,
            say=given.say,
        )
