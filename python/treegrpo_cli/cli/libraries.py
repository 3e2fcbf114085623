"""torch, transformers and the log -> ready for a command: quiet, and their lines say whose they are."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from treegrpo_cli.errors import UserError


def prepare_libraries() -> None:
    """Keep the libraries' own bars and notes off the progress, and let warnings say whose they are.

    Raises UserError where a library is not installed.
    """
    if not all(find_spec(package) for package in ("torch", "transformers")):
        raise UserError("this command needs torch and transformers: pip install 'treegrpo[train]'")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(logging.Formatter("treegrpo: warning: %(message)s"))
