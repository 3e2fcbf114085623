"""Config + tokenizer -> what training and evaluation play in: one environment, one dialect, one index."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from treegrpo_cli.envs import check_environment, close_environment
from treegrpo_cli.errors import UserError
from treegrpo_cli.rollout.dialects import Dialect, make_dialect
from treegrpo_cli.samplers import resolve_device
from treegrpo_cli.samplers.text import end_token_ids
from treegrpo_cli.samplers.vllm_engine import prepare_environment
from treegrpo_cli.workers import abandon, open_environment

if TYPE_CHECKING:
    from treegrpo_cli.config import Config


class World:
    """An environment, the dialect for its tools, and the tokenizer; any number of players share it."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.environment = open_environment(config)
        try:
            self.dialect = self._open_dialect(config)
        except BaseException:
            abandon(self.environment)
            raise
        self._check_timeout_s = config.environment.check_timeout_s
        self._checked = self._closed = False

    def _open_dialect(self, config: Config) -> Dialect:
        _prepare_engine(config)
        ends = end_token_ids(config.model.path, self.tokenizer) if config.model.path else ()
        dialect = make_dialect(config, self.tokenizer, self.environment.tools, ends)
        masked = any("mask" in term for term in config.advantage.score_terms)
        if masked and dialect.find_calls("") is None:
            raise UserError(
                f"advantage.terms: mask tool-calls: {dialect.reader_name} does not say where in a turn its tool "
                "calls stand; use environment.tool_parser=json or harmony, or the inline dialect (environment.dialect)"
            )
        return dialect

    async def check(self) -> None:
        """Raise UserError where the environment says that it cannot work; asked once."""
        if not self._checked:
            await check_environment(self.environment, self._check_timeout_s)
            self._checked = True

    async def close(self) -> None:
        """Close the environment, where it can be closed; once."""
        if not self._closed:
            self._closed = True
            await close_environment(self.environment)


def _prepare_engine(config: Config) -> None:
    """Have vLLM's environment set as its engine needs it before a chat template may call for one of its parsers."""
    if config.environment.dialect == "chat" and config.sampler.engine != "transformers" and find_spec("vllm"):
        prepare_environment(resolve_device(config.model.device))
