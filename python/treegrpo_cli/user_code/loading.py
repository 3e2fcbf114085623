"""`package.module:name` or `path/to/file.py:name` -> the object that a user wrote."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from treegrpo_cli.errors import UserError, nearest
from treegrpo_cli.user_code.raised import user_code_error
from treegrpo_cli.user_code.siblings import siblings_of


def load_dotted(path: str, key: str) -> Any:
    """Import `path` and return what it names.

    A package.module may be one of the working directory; a file may import its neighbours (see `siblings`).

    Raises:
        UserError: names `key`, where the module cannot be imported or has no such name.
    """
    module_name, colon, name = path.rpartition(":")
    if not (colon and module_name and name):
        raise UserError(f"{key}: {path!r} is not of the form package.module:name or path/to/file.py:name")
    module = _load_module(module_name, key)
    if not hasattr(module, name):
        public = [other for other in vars(module) if not other.startswith("_")]
        raise UserError(f"{key}: {module_name} has no {name!r}; {nearest(name, public)}")
    return getattr(module, name)


def _load_module(name: str, key: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _load_file(Path(name), key)
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    except UserError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's module raises is the user's to mend
        raised = user_code_error(error)
        raise UserError(f"{key}: cannot import {name}: {raised.reason}", raised.trace) from error


def _load_file(file: Path, key: str) -> ModuleType:
    """Run a file once; its path is its module's name, where dataclasses and type hints look it up."""
    if not file.is_file():
        raise UserError(f"{key}: no such file: {file}")
    name = str(file.resolve())
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None  # there is one for every name that ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with siblings_of(file.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
