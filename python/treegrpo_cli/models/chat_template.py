"""`model.chat_template` -> the text of a chat template: the setting itself, or the file that it names."""

from __future__ import annotations

from pathlib import Path

from treegrpo_cli.errors import UserError, said

MAX_TEMPLATE_BYTES = 1 << 20


def read_chat_template(setting: str) -> str:
    """Return the template.

    Raises:
        UserError: no such file, or one that holds no template.
    """
    if _is_template(setting):
        return setting
    try:
        if not Path(setting).is_file():
            raise UserError(f"model.chat_template: {setting!r} is neither a file nor a template")
        with Path(setting).open("rb") as file:
            content = file.read(MAX_TEMPLATE_BYTES + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"model.chat_template: cannot read {setting!r}: {said(error)}") from error
    if len(content) > MAX_TEMPLATE_BYTES:
        raise UserError(f"model.chat_template: {setting!r} is longer than {MAX_TEMPLATE_BYTES} bytes")
    if not _is_template(text):
        raise UserError(f"model.chat_template: {setting!r} holds no template")
    return text


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text
