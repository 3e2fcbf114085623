"""A check -> a finding: right, wrong, or not here, with what there is to say; nothing that a check raises flies on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from treegrpo_cli.errors import Problems, Stopped, UserError, bounded, debugging, said

Verdict: TypeAlias = Literal["right", "wrong", "not here"]


class WrongError(Exception):
    """What was checked is not as it should be; the message says how."""


class NotHereError(Exception):
    """It cannot be checked on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one thing; `said` is one line."""

    section: str
    subject: str
    verdict: Verdict
    said: str

    def __str__(self) -> str:
        return f"{self.verdict:<8}  {self.subject}: {self.said}"


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at: `look` returns what there is to say where it is right, and raises where it is not."""

    section: str
    subject: str
    look: Callable[[], str]

    def find(self) -> list[Finding]:
        """Look, and say what was found: one finding, or one for each of several problems."""
        verdict: Verdict = "wrong"
        try:
            lines, verdict = [self.look()], "right"
        except NotHereError as reason:
            lines, verdict = [str(reason)], "not here"
        except Problems as problems:
            lines = list(problems.lines)
        except (WrongError, UserError) as error:
            lines = [str(error)]
        except Stopped:
            raise
        except Exception as error:  # whatever a library or a kernel raises is what the user came to hear
            if debugging():
                raise
            lines = [f"{type(error).__name__}: {said(error)}"]
        return [Finding(self.section, self.subject, verdict, bounded(" ".join(line.split()))) for line in lines]
