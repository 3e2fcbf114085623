"""vLLM servers that somebody else runs -> one sampler: tokens in, tokens out.

To roll out and to evaluate, a server needs nothing but its address. To train, it reads new weights from a folder that
this process writes. What is checked before the first tree, and what each answer must be, is in the files beside this
one whose names begin alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, cast

from treegrpo_cli.errors import UserError
from treegrpo_cli.models.pretrained import context_limit, load_tokenizer, read_model_config
from treegrpo_cli.models.weights import Weights
from treegrpo_cli.samplers import server_model
from treegrpo_cli.samplers.routing import RoutedSampler
from treegrpo_cli.samplers.server_checks import TEXTS, Fingerprint
from treegrpo_cli.samplers.server_replica import ServerReplica, Wanted
from treegrpo_cli.samplers.server_weights import FolderUpdate, Labels, WeightsFolder
from treegrpo_cli.samplers.stepping import check_shapes
from treegrpo_cli.samplers.text import end_token_ids
from treegrpo_cli.samplers.vllm_engine import weight_shapes

if TYPE_CHECKING:
    import torch

    from treegrpo_cli.config import SamplerConfig

FOLDER = "server-weights"


class ServerSampler(RoutedSampler):
    """Samples on the servers of `sampler.urls`; starting it checks them."""

    def __init__(
        self,
        model_path: str,
        config: SamplerConfig,
        *,
        dtype: str,
        max_model_len: int,
        log_path: Path | None,
        trains: bool,
        say: Callable[[str], None],
    ) -> None:
        self._model_path, self._dtype, self._say = model_path, dtype, say
        self._weight_shapes = weight_shapes(model_path) if trains else {}
        labels = Labels()
        in_run = (log_path.parent if log_path else Path(gettempdir())) / FOLDER
        is_own = log_path is not None and not config.weights_dir
        self._folder = WeightsFolder(Path(config.weights_dir or in_run), labels, is_own=is_own)
        self._is_compared = False
        tokenizer = load_tokenizer(model_path)
        wanted = Wanted(
            tokenizer=tokenizer,
            end_ids=end_token_ids(model_path, tokenizer),
            vocab_size=read_model_config(model_path).get_text_config().vocab_size,
            max_model_len=context_limit(model_path, max_model_len),
            contexts=[tokenizer.encode(text) for text in TEXTS],
            trains=trains,
        )
        self._contexts = wanted.contexts
        self._servers = [ServerReplica(url, config, wanted, labels) for url in config.urls]
        super().__init__("vLLM servers", self._servers, self._write, say=say, return_s=config.server_wait_s)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        """Write all weights and have every server load them; the first time, see that they compute with them."""
        stream = Weights.of(weights)
        check_shapes(self._weight_shapes, stream.shapes)
        super().update_weights(stream, policy_version)
        if not self._is_compared:
            found = dict(self._each(lambda replica: (replica.name, cast(ServerReplica, replica).greedy())))
            self._compare(found, self._folder.current)
            self._is_compared = bool(found)

    def close(self) -> None:
        """Leave the servers as they are, and remove the folder of weights."""
        super().close()
        self._folder.clear()

    def _open(self) -> None:
        """Check all servers, at the same time; then, against our own model, those that still have its weights."""
        with ThreadPoolExecutor(len(self._servers)) as pool:
            opened = [pool.submit(server.open, self._say) for server in self._servers]
            try:
                for one in opened:
                    one.result()
            except BaseException:
                self.close()
                raise
        self._compare({each.name: each.fingerprint for each in self._servers if each.fingerprint}, None)

    def _compare(self, found: dict[str, Fingerprint], sent: Path | None) -> None:
        if found:
            server_model.compare(found, self._contexts, self._model_path, self._dtype, self._say, sent)

    def _write(self, weights: object, policy_version: int) -> FolderUpdate:
        if not isinstance(weights, Weights):
            raise UserError("a server takes whole weights, no adapters")
        return self._folder.publish(weights, policy_version)
