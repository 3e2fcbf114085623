"""`[sampler]` of the settings."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.config.sections.base import Count, NonNegativeInt, Seconds, Section, TokensOrNone

ENGINES = tuple(sorted(found.name for found in iter_modules([str(Path(__file__).parents[2] / "samplers" / "engines")])))
"""Their names are those of the files there, which are not read for it: they may need much that is not installed."""

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[("auto", *ENGINES)]


class SamplerConfig(Section):
    """The engine that samples turns."""

    engine: EngineName = "auto"
    """The engine that generates turns. `auto` takes vLLM where it is installed, else transformers; `server` asks the
    vLLM servers of `urls`."""
    urls: list[str] = Field(default_factory=list, max_length=1024)
    """Addresses of vLLM servers for `engine = "server"`, such as `["http://127.0.0.1:8000"]`. With several, each prompt
    keeps to one of them; a server that is gone is left out until it is back."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "VLLM_API_KEY"
    """Name of the environment variable that holds the servers' API key. It is read when a run starts and written
    nowhere. If it is not set, no key is sent."""
    request_timeout_s: Seconds = 600.0
    """Seconds within which a server must answer a request, its queue included. A server that does not counts as
    gone."""
    request_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a request is repeated where a server refuses the connection, breaks it off, or says that it is
    overloaded. The pauses grow from about half a second."""
    server_wait_s: Seconds = 600.0
    """Seconds to wait for servers that do not answer: for each one at the start, and later when all are gone."""
    weights_dir: str = ""
    """Folder through which servers get new weights; they must see it under the same path. Empty means `server-weights`
    in `output_dir`. It needs as much space as the model."""
    max_num_seqs: Count = 256
    """Most turns that are decoded in one batch. More are faster until memory for keys and values runs out."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of the whole card that vLLM takes for weights and cache together. Lower it if the update runs out of
    memory. `kv_cache_bytes` replaces it."""
    kv_cache_bytes: NonNegativeInt = 0
    """Bytes for the engine's keys and values. 0 takes the rest of `gpu_memory_utilization` on a GPU, and enough for
    `max_num_seqs` short contexts on a CPU."""
    max_num_batched_tokens: TokensOrNone = 0
    """Most tokens of one step of vLLM. 0 means 16,384 on a card of 70 GiB or more, else 8,192; on a CPU it is at least
    a whole context."""
    enforce_eager: bool = False
    """Run vLLM without CUDA graphs: it starts sooner and takes less memory, but decodes more slowly."""
    sleep: Literal["auto"] | bool = "auto"
    """Whether the engine gives its memory back while the policy is updated. `auto`: vLLM on CUDA does, unless
    `scale.max_staleness` lets trees grow meanwhile."""
    lora: Literal["auto", "adapter", "merged"] = "auto"
    """How the engine gets adapters that are trained. `adapter` keeps them apart from its weights; `merged` adds
    them to these, where bfloat16 rounds small changes away. `auto` is `adapter`, unless the engine computes in float32
    or cannot keep them apart."""

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        for url in urls:
            if problem := _why_no_address(url):
                raise ValueError(f"{without_passwords(url)!r:.200} {problem}")
        cleaned = [url.rstrip("/") for url in urls]
        if twice := [url for url in cleaned if cleaned.count(url) > 1]:
            raise ValueError(f"{without_passwords(twice[0])!r:.200} is named twice")
        return cleaned

    @model_validator(mode="after")
    def _servers_have_addresses(self) -> SamplerConfig:
        if self.engine == "server" and not self.urls:
            raise ValueError('sampler.engine = "server" asks the servers of sampler.urls, and there is none')
        if self.urls and self.engine != "server":
            raise ValueError(f'sampler.urls are for sampler.engine = "server", got {self.engine!r}')
        return self


def _why_no_address(url: str) -> str:
    """Say why nobody can be asked at `url`, if so; the text does not repeat it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is no address, or its port is no number up to 65535"
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", url) or port == 0:
        return "is not an http(s) address such as http://127.0.0.1:8000"
    return "has a query or a fragment: give the address alone" if parts.query or parts.fragment else ""
