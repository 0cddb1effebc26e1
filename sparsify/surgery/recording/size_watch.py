"""Find modules that compare sizes of their input in Python: for untried sizes they may take another branch.

Under `SizeWatch` the sizes of tensors are numbers that report comparisons. A number of channels is the same for every
input, so only modules whose comparisons differ between two inputs count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..module_walk import named_modules
from .context import module_names

Asked: TypeAlias = dict[str, list[tuple[Any, ...]]]  # module -> what was compared, in order

# Python modules whose comparisons are only checks, or select how to compute the same result.
_SAME_FOR_ALL_SIZES = ("torch.", "torchvision.ops.", "einops.", f"{__name__.partition('.')[0]}.")
TELLING = ("size", "__len__", "numel")
_watching: list[SizeWatch] = []


class SizeWatch(TorchFunctionMode):
    """Records in `asked` the comparisons of sizes that a model's modules make while it runs inside the block."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.asked: Asked = {}
        self._running: list[str] = []
        self._names = module_names(model, self._running)
        self._lists = _own_lists(model)

    def __enter__(self) -> SizeWatch:
        self._names.__enter__()
        for owner, name, held in self._lists:
            owner[name] = _WATCHED[type(held)](held)
        _watching.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _watching.remove(self)
        self._names.__exit__(None, None, None)
        for owner, name, held in self._lists:
            owner[name] = held

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        if isinstance(outcome, torch.Size):
            return torch.Size(tuple(known_sizes(size, {size}) for size in outcome))
        if type(outcome) is int and getattr(func, "__name__", "") in TELLING:
            if func is Tensor.__len__:
                self.note("len", outcome)  # Python returns a plain number
            return known_sizes(outcome, {outcome})
        return outcome

    def note(self, *what: Any) -> None:
        """Record a comparison by the module whose forward runs."""
        self.asked.setdefault(self._running[-1] if self._running else "", []).append(what)


def modules_that_ask(runs: Sequence[Mapping[str, list[tuple[Any, ...]]]]) -> list[str]:
    """Return the modules whose comparisons of sizes differ between these runs."""
    modules = dict.fromkeys(module for run in runs for module in run)
    return [module for module in modules if any(run.get(module) != runs[0].get(module) for run in runs)]


def _note(*what: Any) -> None:
    caller = sys._getframe(2).f_globals.get("__name__", "")
    checks = caller.startswith(_SAME_FOR_ALL_SIZES) and caller != nn.ModuleList.__module__
    if _watching and not checks:
        _watching[-1].note(*what)


def _asking(kind: type, name: str) -> Callable[..., Any]:
    plain = getattr(kind, name)

    def ask(self: Any, *others: Any) -> Any:
        _note(name, _plain(self), *map(_plain, others), *(sorted(_made_of(one)) for one in (self, *others)))
        return plain(self, *others)

    return ask


def _handing_on(kind: type, name: str) -> Callable[..., Any]:
    plain = getattr(kind, name)

    def hand_on(self: Any, *others: Any) -> Any:
        outcome = plain(self, *others)
        if outcome is NotImplemented and type(others[0]) is float:  # Python would ask the other for a plain number
            outcome = getattr(float, name)(float.__new__(float, int.__int__(self)), *others)
        return known_sizes(outcome, _made_of(self).union(*map(_made_of, others)))

    return hand_on


def _plain(value: Any) -> Any:
    """Return a number without its sizes; for any other operand, the name of its type."""
    if isinstance(value, (int, float)):
        return float.__add__(value, 0.0) if isinstance(value, float) else int.__int__(value)
    return type(value).__name__


def _made_of(value: Any) -> set[int]:
    """Return the sizes that a number was computed from."""
    found: set[int] = getattr(value, "sizes", set())
    return found


def known_sizes(outcome: Any, sizes: set[int]) -> Any:
    """Return numbers that carry the sizes they were computed from; other values unchanged."""
    if type(outcome) is tuple:
        return tuple(known_sizes(one, sizes) for one in outcome)
    if type(outcome) not in (int, float):
        return outcome
    made = _WatchedSize(outcome) if type(outcome) is int else _Ratio(outcome)
    made.sizes = sizes
    return made


class _WatchedSize(int):
    """A size that reports comparisons, as do the numbers computed from it."""

    sizes: set[int]


class _Ratio(float):
    """A fractional number computed from a size."""

    sizes: set[int]


def _own_lists(model: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """Return (attributes, name, list) of the lists and tuples that modules hold, since a size may index them."""
    owners = [vars(module) for _, module in named_modules(model) if not isinstance(module, torch.jit.ScriptModule)]
    return [(owner, name, held) for owner in owners for name, held in owner.items() if type(held) in _WATCHED and held]


class _Selected:
    """Mixin of a list or tuple that reports which item a size selects, since Python would use the plain number."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, (_WatchedSize, _Ratio)):
            _note("item", _plain(index), sorted(_made_of(index)))
        return super().__getitem__(index)  # type: ignore[misc]


class _List(_Selected, list[Any]):
    pass


class _Tuple(_Selected, tuple[Any, ...]):
    pass


_WATCHED: dict[type, Callable[[Any], Any]] = {list: _List, tuple: _Tuple}
_COMPARING = "__lt__ __le__ __gt__ __ge__ __eq__ __ne__ __bool__".split()
_MAKING = "add sub mul floordiv truediv mod divmod pow".split()
for _kind in (_WatchedSize, _Ratio):
    _base: type = _kind.__mro__[1]
    for _name in [*_COMPARING, "__float__", "__int__"]:
        setattr(_kind, _name, _asking(_base, _name))
    for _name in [*(f"__{side}{name}__" for name in _MAKING for side in ("", "r")), "__neg__", "__abs__"]:
        setattr(_kind, _name, _handing_on(_base, _name))
    for _name in ("__round__", "__ceil__", "__floor__", "__trunc__"):
        setattr(_kind, _name, _handing_on(_base, _name))
