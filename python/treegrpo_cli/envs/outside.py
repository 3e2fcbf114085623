"""A failure of user code -> whether the world outside failed: a connection, a disk, a service that kept silent.

Such a failure says nothing about what the policy did and may be over a moment later. A file that does not exist is
the policy's own affair.
"""

from __future__ import annotations

import errno
import sys

from treegrpo_cli.errors import NoAnswerError, ToolError, UserCodeError

_LOST_CONNECTIONS = {"httpx": "TransportError", "aiohttp": "ClientConnectionError"}
"""Libraries whose errors of the network are no OSErrors -> the class of those."""

_ABOUT_A_PATH = frozenset(
    {
        errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM,
        errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP,
    }
)  # fmt: skip
_ABOUT_A_FILE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def is_outside(error: UserCodeError) -> bool:
    """Whether what user code raised was a time limit, a lost connection, or a ToolError of its own."""
    cause = error.__cause__
    if isinstance(cause, (ToolError, NoAnswerError)):
        return True
    if isinstance(cause, OSError):  # TimeoutError and ConnectionError are two
        return not isinstance(cause, _ABOUT_A_FILE) and cause.errno not in _ABOUT_A_PATH
    loaded = ((sys.modules.get(library), name) for library, name in _LOST_CONNECTIONS.items())
    classes = tuple(getattr(module, name) for module, name in loaded if hasattr(module, name))
    return isinstance(cause, classes)
