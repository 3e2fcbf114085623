"""A chat template of one's own: text or file, and what is none."""

from pathlib import Path

import pytest
from treegrpo_cli.errors import UserError
from treegrpo_cli.models.chat_template import MAX_TEMPLATE_BYTES, read_chat_template
from treegrpo_cli.models.pretrained import load_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


def test_a_template_is_given_as_text_or_as_a_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    for setting in (TEMPLATE, str(tmp_path / "own.jinja")):
        tokenizer = load_tokenizer(tiny_model_dir, setting)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "[Hi]"
    assert load_tokenizer(tiny_model_dir).chat_template not in (None, TEMPLATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is neither a file nor a template"),
        (b"hello", "holds no template"),
        (b"\xff{{", "cannot read .*: 'utf-8' codec"),
        (b"{{" + b" " * MAX_TEMPLATE_BYTES, f"is longer than {MAX_TEMPLATE_BYTES} bytes"),
    ],
)
def test_what_is_no_template_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "own.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^model.chat_template: .*{message}") as error:
        read_chat_template(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["a\0b", "x" * 5000, "\ud800"])
def test_a_path_that_can_be_none_is_one_line(setting: str) -> None:
    with pytest.raises(UserError, match=r"^model\.chat_template: "):
        read_chat_template(setting)
