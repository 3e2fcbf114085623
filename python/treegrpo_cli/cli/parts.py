"""Settings -> who trains and who samples: this process, or Ray's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treegrpo_cli.config import Config
    from treegrpo_cli.run.parts import Parts


def parts_of(config: Config) -> AbstractContextManager[Parts]:
    """Return the parts of a run, to be entered around it. Raises UserError where they need Ray, which is missing."""
    if not config.scale.uses_ray:
        from treegrpo_cli.run.parts import Parts

        return nullcontext(Parts())
    from treegrpo_cli.scale.parts import RayParts

    return RayParts()
