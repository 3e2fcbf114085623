"""A password in an address stays in the settings and is shown nowhere else."""

from pathlib import Path

import pytest
from treegrpo_cli.cli.commands.arguments import print_settings
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import dump_config, load_config, make_config
from treegrpo_cli.config.secrets import without_passwords
from treegrpo_cli.rollout.records import config_digest, relevant_settings
from treegrpo_cli.run.resuming import differences


def config(password: str) -> Config:
    url = f"http://me:{password}@host:8000/retrieve"
    return make_config({"environment": {"name": "search", "options": {"retriever_url": url, "more": [url]}}})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cret@host/x", "http://***@host/x"),
        ("http://s3cret@host and https://a:b@c:1", "http://***@host and https://***@c:1"),
        ("http://me:s3@cret@host/x", "http://***@host/x"),
        ('url = "http://host/a@b"', 'url = "http://host/a@b"'),
        ("mail me@host", "mail me@host"),
        (3, 3),
    ],
)
def test_users_and_passwords_of_addresses_are_hidden(text: object, shown: object) -> None:
    assert without_passwords(text) == shown


def test_printed_settings_trees_and_differences_hide_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_settings(config("s3cret"))
    shown = [
        capsys.readouterr().out,
        relevant_settings(config("s3cret")),
        differences(config("s3cret"), config("s4cret")),
    ]
    for text in map(str, shown):
        assert "http://***@host:8000/retrieve" in text
        assert "cret" not in text
    assert config_digest(config("a")) == config_digest(config("b"))


def test_a_runs_own_settings_keep_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(dump_config(config("s3cret")))
    assert load_config(tmp_path / "config.toml") == config("s3cret")
