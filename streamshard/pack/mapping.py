"""A function of the user's between a source and the shards: a sample in, samples out."""

from __future__ import annotations

import copy
import functools
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamshard.codec.base import Codec
from streamshard.errors import SampleError
from streamshard.pack.callables import callable_of
from streamshard.pack.encode import KEY
from streamshard.pack.files import Files, Listed
from streamshard.pack.options import Function, Map
from streamshard.pack.sources import Sample, Source

_HERE = "map= ran in this process: workers know only functions at the top of a module"


@functools.cache
def _function_of(spec: str) -> Function:
    """The function of a spec, looked up once in every process."""
    return callable_of(spec, "is no function; --map takes module:function or file.py:function")


def name_of(function: Map) -> str:
    """What a function is called, so that another one can be told from it."""
    if isinstance(function, str):
        return function
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


class Mapped:
    """A source whose samples a function changes, multiplies or drops, in whichever process.

    Attributes:
        classes: Of the source.
        codecs: Of the source.
        notes: Of the source.
        place: Of the source.
        load: Loads, then calls the function.
        portable: Whether inputs and function may be sent to other processes.
        remarks: What to say of the function.
    """

    def __init__(self, source: Source, function: Map, *, portable: bool) -> None:
        """Take a source.

        Args:
            source: Where samples come from.
            function: The function, or what it is called.
            portable: See the class; a function may cost anything, so it is worth it.

        Raises:
            UsageError: There is no such function.
        """
        if isinstance(function, str):
            _function_of(function)
        self.classes: Sequence[str] | None = source.classes
        self.codecs: Mapping[str, Codec] = source.codecs
        self.notes, self.place = source.notes, source.place
        here = not isinstance(function, str) and "<" in getattr(function, "__qualname__", "")
        self.portable = portable and not here
        self.remarks = [_HERE] if portable and here else []
        self.load = _MappedLoad(source.load, function, source.place)
        self.inputs: Callable[[], Iterable[Any]] = source.inputs
        self._source = source

    def files(self) -> Files | None:
        """See `Listed`."""
        return self._source.files() if isinstance(self._source, Listed) else None


@dataclass(frozen=True)
class _MappedLoad:
    """Loads one input and gives what the function makes of it."""

    load: Callable[[Any], Sample | list[Sample]]
    function: Map
    place: Callable[[Any], str] | None

    def __call__(self, given: Any) -> list[Sample]:
        loaded = self.load(given)
        samples = loaded if isinstance(loaded, list) else [loaded]
        return [made for sample in samples for made in self._map(sample, given)]

    def _map(self, sample: Sample, given: Any) -> list[Sample]:
        key = sample[KEY]
        where = self.place(given) if self.place else f"key {key}"
        try:
            function = _function_of(self.function) if isinstance(self.function, str) else None
            # Values may be its caller's own, such as graphs, which it is free to change.
            copied = {part: copy.copy(value) for part, value in sample.items()}
            made = (function or self.function)(copied)  # type: ignore[operator]
        except Exception as error:
            raise SampleError(f"{where}: {_told(error)}") from None
        several = made if isinstance(made, list) else [made]
        wrong = [value for value in several if not isinstance(value, Mapping)]
        if wrong and made is not None:
            kind = type(wrong[0]).__name__
            raise SampleError(
                f"{where}: --map gave a {kind}; a sample (a dict), a list of them or None is wanted"
            )
        if isinstance(made, list):
            return [{**one, KEY: _key(one, key, number)} for number, one in enumerate(made)]
        return [] if made is None else [{KEY: key, **made}]


def _key(sample: Mapping[str, Any], key: str, number: int) -> Any:
    """The key that the function gave a sample of a list, or else the input's with its number."""
    own = sample.get(KEY, key)
    return f"{key}-{number}" if own == key else own


def _told(error: Exception) -> str:
    """An error of the user's function in one line, with the place in his code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"--map: {type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
