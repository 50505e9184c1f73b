"""Functions by name, as the command line says them: `module:function` or `file.py:function`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamshard.errors import UsageError
from streamshard.store.base import redact


def callable_of(spec: str, otherwise: str) -> Callable[..., Any]:
    """The callable that a spec leads to; the current folder is looked in too.

    Args:
        spec: `module:callable` or `file.py:callable`.
        otherwise: What to say of a spec that has not this form.

    Raises:
        UsageError: It has not, or there is nothing to call where it leads.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(f"{redact(spec)!r} {otherwise}")
    function = getattr(_module(place), name, None)
    if not callable(function):
        raise UsageError(f"{spec}: there is no callable {name!r} in {place}")
    return function  # type: ignore[no-any-return]


def _module(place: str) -> Any:
    if place.endswith(".py"):
        if not os.path.isfile(place):
            raise UsageError(f"{place}: no such file")
        module_spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert module_spec
        assert module_spec.loader
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module  # dataclasses look themselves up there
        with _imported_from(os.path.dirname(os.path.abspath(place))):
            module_spec.loader.exec_module(module)
        return module
    if place.startswith("."):
        raise UsageError(f"{place}: relative modules are not looked up; give the whole name")
    with _imported_from(os.getcwd()):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"{place}: no module named {error.name!r}") from None


@contextlib.contextmanager
def _imported_from(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
