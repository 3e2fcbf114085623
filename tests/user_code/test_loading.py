"""A user's file is found by its path, with its neighbours, and shadows nothing."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from treegrpo_cli.errors import UserError
from treegrpo_cli.user_code import load_dotted, siblings


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    siblings._finder.found.clear()
    siblings._finder.folders.clear()
    siblings._second.clear()


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_file_imports_its_neighbours_and_their_packages(tmp_path: Path) -> None:
    write(tmp_path / "a" / "inner", __init__="", deep="VALUE = 3")
    folder = write(tmp_path / "a", own="import near_a; from inner.deep import VALUE", near_a="WORD = 'near'")
    assert load_dotted(f"{folder / 'own.py'}:near_a", "key").WORD == "near"
    assert load_dotted(f"{folder / 'own.py'}:VALUE", "key") == 3
    assert str(folder) not in sys.path


def test_a_neighbour_shadows_nothing_that_is_installed(tmp_path: Path) -> None:
    folder = write(tmp_path, own="import colorsys, yaml", colorsys="", yaml="")
    assert hasattr(load_dotted(f"{folder / 'own.py'}:colorsys", "key"), "rgb_to_hsv")
    assert hasattr(load_dotted(f"{folder / 'own.py'}:yaml", "key"), "safe_load")


def test_an_import_inside_a_function_finds_a_neighbour_later(tmp_path: Path) -> None:
    folder = write(tmp_path, own="def f():\n    import late_a\n    return late_a.WORD", late_a="WORD = 'late'")
    assert load_dotted(f"{folder / 'own.py'}:f", "key")() == "late"


def test_neighbours_of_one_name_in_two_folders_are_two_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, own="import near", other="import near", near=f"WORD = '{name}'")
    names = ["a/own", "b/own", "a/other", "b/other"]
    modules = [load_dotted(f"{tmp_path / name}.py:near", "key") for name in names]
    assert [module.WORD for module in modules] == ["a", "b", "a", "b"]
    assert (modules[0], modules[1]) == (modules[2], modules[3])
    assert sys.modules["near"] is modules[0]
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{tmp_path / 'a'} and {tmp_path / 'b'} both have a module 'near'")


def test_a_neighbour_of_another_folder_is_not_found(tmp_path: Path) -> None:
    write(tmp_path / "a", own="import near", near="")
    write(tmp_path / "b", own="import near")
    load_dotted(f"{tmp_path / 'a/own.py'}:near", "key")
    with pytest.raises(UserError, match="ModuleNotFoundError: No module named 'near'"):
        load_dotted(f"{tmp_path / 'b/own.py'}:near", "key")
    assert "near" in sys.modules


def test_a_neighbour_that_fails_is_the_users_mistake_with_its_traceback(tmp_path: Path) -> None:
    folder = write(tmp_path, own="import near_bad", near_bad="1 / 0")
    with pytest.raises(
        UserError, match=r"^key: cannot import .*own\.py: ZeroDivisionError: division by zero$"
    ) as error:
        load_dotted(f"{folder / 'own.py'}:x", "key")
    assert f'  File "{folder / "near_bad.py"}", line 1, in <module>' in error.value.trace
    assert "near_bad" not in sys.modules
