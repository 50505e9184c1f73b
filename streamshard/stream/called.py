"""Functions of the user's, and the randomness that they are given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from streamshard.stream.parts import Place


class Function:
    """A function of one value, and perhaps of a generator."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self._takes_generator = function, takes_generator(function)

    def __call__(self, value: Any, place: Place) -> Any:
        """Call it for a sample, with all that it may draw from seeded for that sample."""
        place.seed_globally()
        if self._takes_generator:
            return self._function(value, generator=place.generator())
        return self._function(value)


def takes_generator(function: Callable[..., Any]) -> bool:
    """Whether it has a parameter `generator` that nobody has set yet.

    >>> takes_generator(lambda image, generator: image), takes_generator(lambda image: image)
    (True, False)
    """
    while isinstance(function, functools.partial):
        if "generator" in function.keywords:
            return False
        function = function.func
    if isinstance(function, torch.nn.Module):
        function = function.forward  # a module's own signature is any arguments
    try:
        parameter = inspect.signature(function).parameters.get("generator")
    except (TypeError, ValueError):  # of what is written in C
        return False
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )
