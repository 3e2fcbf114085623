"""What users wrote: found by name, and called so that whatever it does stays its own failure."""

from treegrpo_cli.user_code.calling import call, run_apart
from treegrpo_cli.user_code.loading import load_dotted
from treegrpo_cli.user_code.options import keyword_options
from treegrpo_cli.user_code.raised import clean, looking_at_answers, one_line, user_code_error

__all__ = [
    "call",
    "clean",
    "keyword_options",
    "load_dotted",
    "looking_at_answers",
    "one_line",
    "run_apart",
    "user_code_error",
]
