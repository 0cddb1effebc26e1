"""The search for a cut that preserves the outputs: which groups and attributes have to stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from ...errors import RunError
from ..channels.agreement import same_groups
from ..channels.study import Study
from ..module_walk import named_modules
from ..sizes.size_attributes import PrunedShapes, changed_numbers, layer_attributes, own_attributes
from ..sizes.size_sources import Sources
from .bias_absorption import absorbed, constant_inputs, cut_and_absorb
from .cuts import Cuts
from .equivalence import Proof

_TRIES = 32  # cuts to try if no operation can be blamed


class Attempts:
    """Cuts one model until its outputs are right.

    Which attributes are sizes is a guess, and some forwards do not accept smaller sizes. After each failure one thing
    changes: an attribute is `rejected` (keeps its value), or groups are `pinned` (kept) with a reason.
    """

    def __init__(
        self, model: nn.Module, example_input: Any, found: Study, proof: Proof, study_of: Callable[[Any], Study]
    ) -> None:
        self.model, self.found, self.proof, self.study_of = model, found, proof, study_of
        self.sources = Sources(model, example_input)
        self.inputs = constant_inputs(model, example_input, found)
        self.classes = {name: type(module) for name, module in named_modules(model)}
        self.pinned = np.zeros(found.channels.groups, dtype=bool)
        self.widened: set[str] = set()  # modules that have pinned the groups of their operations with explicit sizes
        self.rejected: set[tuple[type, str]] = set()  # attributes (class, name) that are not sizes after all
        self.required: set[tuple[type, str]] = set()  # attributes whose rejection did not help
        self.removed = np.zeros_like(self.pinned)
        self.reasons: list[str] = []

    def until_proved(self, round_to: int | None, examples: Sequence[Any] = ()) -> None:
        """Cut the model, in place, and store in `removed`, bool [groups], which groups were removed.

        Groups that differ for one of the `examples` are pinned first. Raises RunError, with the model unchanged, if no
        cut gives the same outputs.
        """
        for number, other in enumerate(examples):
            self.pin_what_differs(f"example {number + 2}", other)
        while True:
            removed = removable(self.found, self.found.channels.dead.numpy() & ~self.pinned, round_to)
            problem, where = self._cut(removed)
            self.removed = removed
            if not problem or self._without_an_attribute(removed, where):
                return
            if problem.startswith("for "):
                if self._pin_for_variants(removed):
                    continue
                if self._right_without(removed, self._changed(removed)):
                    return
            new_shapes = PrunedShapes(self.found, removed)
            more = (self._met_in(where, new_shapes) & removed) if where not in self.widened else np.zeros_like(removed)
            self.widened.add(where)
            while where and not more.any():
                more = self._met_in(where) & removed
                if not more.any():  # its sizes come from a module around it
                    where = where.rpartition(".")[0]
            if not more.any():
                if self._right_with_some(removed, problem):
                    return
                raise RunError(f"shrink: {type(self.model).__name__}: {problem}; nothing was changed")
            self.pinned |= more
            self.reasons.append(f"{where or 'the model'}: {int(more.sum())} dead groups stay: {problem}")

    def _right_with_some(self, removed: np.ndarray[Any, Any], problem: str) -> bool:
        """Search by halves for weights whose groups can go, and remove those; return whether the outputs are right."""
        channels = self.found.channels
        sides = {name: channels.labels[name][dim].numpy() for name, dim in channels.produced.items()}
        parts = [np.isin(np.arange(len(removed)), numbers) & removed for numbers in sides.values()]
        waiting, good = [[part for part in parts if part.any()]], np.zeros_like(removed)
        for _ in range(_TRIES):
            if not waiting:
                break
            some = waiting.pop()
            half = len(some) // 2
            if not self._cut(good | np.any(some, axis=0))[0]:
                good = good | np.any(some, axis=0)
                self.undo()
            elif half:
                waiting += [some[half:], some[:half]]
        if self._cut(good)[0]:
            return False
        self.removed = good
        self.reasons.append(f"the model: {int((removed & ~good).sum())} dead groups stay: {problem}")
        return True

    def _pin_for_variants(self, removed: np.ndarray[Any, Any]) -> bool:
        """Pin the groups that differ for one of the compared inputs; return whether any of `removed` is among them."""
        before = self.pinned.copy()
        for variant in self.proof.variants:
            self.pin_what_differs(variant.what, variant.input)
        return bool((self.pinned & ~before & removed).any())

    def pin_what_differs(self, what: str, other_input: Any) -> None:
        """Pin the groups that differ, or are not dead, for another input, which `what` names in reasons."""
        differs = ~same_groups(self.found.channels, self.study_of(other_input).channels)
        more = differs & ~self.pinned & self.found.channels.dead.numpy()
        self.pinned |= differs
        if more.any():
            self.reasons.append(f"{int(more.sum())} dead groups stay: for {what} the groups differ, or are not dead")

    def _cut(self, removed: np.ndarray[Any, Any]) -> tuple[str, str]:
        """Cut the model and check it; undo a wrong cut. Return (problem, its module), ("", "") if the cut is right."""
        new_shapes = PrunedShapes(self.found, removed)
        amounts = absorbed(self.found, new_shapes, self.inputs)
        added = tuple(one.bias for one in amounts if one.bias not in self.found.recording.state)
        cuts = Cuts(self._removed(new_shapes), self._attributes(new_shapes), added)
        cutting = partial(cut_and_absorb, cuts=cuts, amounts=amounts)
        undo = cutting(self.model)
        problem, where = self.proof.check(self.model, cutting, self.found, new_shapes)
        if problem:
            undo()
        self.undo = undo
        return problem, where

    def _removed(self, new_shapes: PrunedShapes) -> dict[str, dict[int, tuple[int, ...]]]:
        removed: dict[str, dict[int, tuple[int, ...]]] = {}
        for name, dims in self.found.channels.labels.items():
            for d in dims:
                indices = np.flatnonzero(~new_shapes.kept_along(self.found.recording.state[name], d))
                if len(indices):
                    removed.setdefault(name, {})[d] = tuple(indices.tolist())
        return removed

    def _attributes(self, new_shapes: PrunedShapes) -> dict[str, Any]:
        layers = layer_attributes(self.model, self.found, new_shapes)
        sources = own_attributes(self.model, self.found, new_shapes, self.sources)
        own = {path: new for path, (_, new) in sources.items() if self._names(path) not in self.rejected}
        return own | layers

    def _names(self, path: str) -> tuple[type, str]:
        """Return (class, name) of the attribute at a dotted path, which may end in the index of a tuple."""
        parts = path.split(".")
        for i in range(len(parts) - 1, -1, -1):
            if ".".join(parts[:i]) in self.classes:
                return self.classes[".".join(parts[:i])], ".".join(parts[i:])
        raise AssertionError(path)

    def _without_an_attribute(self, removed: np.ndarray[Any, Any], where: str) -> bool:
        """Reject attributes of the failing module's class, singly, then in pairs; return whether one try was right."""
        changed = self._changed(removed)
        cls = self._class_at(where, changed)
        names = [name for name in changed if name[0] is cls and name not in self.rejected]
        for name in [name for name in names if name not in self.required]:
            self.rejected.add(name)
            problem, place = self._cut(removed)
            if not problem:
                return True
            if self._class_at(place, changed) is cls:
                self.rejected.discard(name)
                self.required.add(name)
            else:
                return self._without_an_attribute(removed, place)
        return len(names) in (2, 3, 4) and self._right_without(removed, names, together=2)

    def _class_at(self, path: str, changed: Sequence[tuple[type, str]]) -> type | None:
        """Return the class of the innermost module at or above `path` that owns a changed attribute."""
        owners = {cls for cls, _ in changed}
        while path and self.classes.get(path) not in owners:
            path = path.rpartition(".")[0]
        return self.classes.get(path)

    def _changed(self, removed: np.ndarray[Any, Any]) -> list[tuple[type, str]]:
        """Return the attributes (class, name) that would change if none were rejected."""
        sources = own_attributes(self.model, self.found, PrunedShapes(self.found, removed), self.sources)
        return list(dict.fromkeys(self._names(path) for path in sources))

    def _right_without(
        self, removed: np.ndarray[Any, Any], names: Sequence[tuple[type, str]], together: int = 1
    ) -> bool:
        """Return whether rejecting `together` of these attributes makes the model right; they then stay rejected."""
        for some in combinations(names, together):
            before = set(self.rejected)
            self.rejected |= set(some)
            if not self._cut(removed)[0]:
                return True
            self.rejected = before
        return False

    def _met_in(self, module: str, new_shapes: PrunedShapes | None = None) -> np.ndarray[Any, Any]:
        """Return the groups that a module's own forward meets, bool [groups]; after three reasons, that of its class.

        With `new_shapes`, only operations (views, splits) whose explicit sizes would have to change count.
        """
        cls = self.classes.get(module)
        every = len(self.reasons) >= 3
        met = np.zeros(len(self.pinned) + 1, dtype=bool)
        for op in self.found.recording.ops:
            inside = op.module == module or (every and self.classes.get(op.module) is cls)
            if inside and (new_shapes is None or changed_numbers(op, new_shapes)):
                for value in (*op.inputs, *op.results):
                    for axis in self.found.coupling.axes.get(value, []):
                        met[self.found.ids[axis.numpy()].reshape(-1)] = True
        return met[:-1]


def removable(found: Study, dead: np.ndarray[Any, Any], round_to: int | None) -> np.ndarray[Any, Any]:
    """Return which of the dead groups can go, bool [groups].

    Every dimension keeps at least one channel, and a multiple of `round_to` if it has enough dead channels to keep.
    """
    removed = dead.copy()
    sides = {
        numbers.numpy().tobytes(): numbers.numpy() for d in found.channels.labels.values() for numbers in d.values()
    }
    changed = True
    while changed:
        changed = False
        for numbers in sides.values():
            goes = (numbers >= 0) & removed[numbers]
            left = len(numbers) - int(goes.sum())
            wanted = min(len(numbers), max(1, -(-left // round_to) * round_to if round_to else left))
            if left < wanted:
                back = list(dict.fromkeys(numbers[goes].tolist()))[: wanted - left]
                removed[back] = False
                changed = True
    return removed
