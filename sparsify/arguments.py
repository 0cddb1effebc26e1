"""Type checks of the public functions' arguments, with one-line errors. Needs no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from inspect import signature
from numbers import Integral
from types import NoneType
from typing import Any, ParamSpec, TypeVar

from .errors import SparsifyError

_P = ParamSpec("_P")
_R = TypeVar("_R")

PATH = (str, os.PathLike)
_WORDS = {NoneType: "None", Integral: "a whole number", str: "text", os.PathLike: "a path", Mapping: "a mapping"}
_WORDS |= {Callable: "a function", Sequence: "a list", Iterable: "a list of text"}


def takes(**kinds: Any) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Return a decorator that makes a function raise SparsifyError unless the named arguments have these types.

    Each kind is a type or a tuple of types. `Iterable` stands for names: one str, or several. Bools do not count as
    numbers, and bytes not as a list. The function runs outside inference mode, unless `model` was made in it.
    """

    def mark(function: Callable[_P, _R]) -> Callable[_P, _R]:
        """Return `function` with the check before its call."""
        parameters = signature(function)
        name = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = parameters.bind(*args, **kwargs).arguments
            for key, kind in kinds.items():
                if key in given and not _fits(given[key], kind if isinstance(kind, tuple) else (kind,)):
                    raise SparsifyError(f"{name}: {key} is {_shown(given[key])}; it takes {_listed(kind)}")
            with out_of_inference_mode(given.get("model")):
                return function(*args, **kwargs)

        return checked

    return mark


def out_of_inference_mode(model: Any) -> AbstractContextManager[Any]:
    """Return a context that leaves inference mode, whose tensors cannot be trained, unless `model` was made in it."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.is_inference_mode_enabled():
        return nullcontext()
    tensors = model.parameters() if hasattr(model, "parameters") else ()
    return torch.inference_mode(any(tensor.is_inference() for tensor in tensors))  # type: ignore[no-any-return]


def _fits(value: Any, kinds: tuple[Any, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if Iterable in kinds:
        names = not isinstance(value, list | tuple | set | frozenset) or all(isinstance(one, str) for one in value)
        return names and isinstance(value, kinds) and not isinstance(value, bytes) and not hasattr(value, "dtype")
    return isinstance(value, kinds) and not (isinstance(value, bytes) and bytes not in kinds)


def _shown(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | float | str):
        return f"{value!r:.60}"
    return f"of type {type(value).__name__}"


def _listed(kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(_WORDS.get(one, one.__name__) for one in kinds)
