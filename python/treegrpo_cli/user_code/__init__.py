"""What users wrote: found by name, and called so that whatever it does stays its own failure."""

from treegrpo_cli.user_code.calling import call
from treegrpo_cli.user_code.loading import load_dotted
from treegrpo_cli.user_code.raised import one_line

__all__ = ["call", "load_dotted", "one_line"]
