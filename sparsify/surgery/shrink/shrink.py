"""shrink(): take dead channels out of a model, for good, and prove that nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...calls import inputs_of
from ...errors import RunError, SparsifyError
from ..agreement import same_groups
from ..analysis.coupling import Heads
from ..analysis.mac_counts import multiply_adds
from ..channels import check_dead, check_heads
from ..conversion.fold import fold
from ..masks import all_masked_parameters
from ..recording.ops import Recording
from ..recording.recorder import record
from ..rules.table import Rule, checked_rules
from ..study import Dead, Study, study
from .bias_absorption import absorbed, constant_inputs, cut_and_absorb, fixed_biases
from .cuts import Cuts, cuts_of
from .equivalence import Proof
from .size_attributes import PrunedShapes, changed_numbers, layer_attributes, own_attributes
from .size_sources import Sources


@dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` did.

    `model` is the smaller one, `cuts` what was taken out; `groups` and `removed` count groups of channels, all and
    gone; of those, `pruned` are dead because of masks, the others were dead before. `parameters` and `multiply_adds`
    are (before, after), counted on the two models; `difference` is the largest difference of the outputs over the
    largest output, in float64 and in float32, and `seconds` the median time of a forward pass on the example (before,
    after); both are None if no proof was asked for. `kept` says which dead groups stayed, and why, `uncounted` names
    operations ("module: operation") of which `multiply_adds` knows nothing. `proved`
    names the other inputs for which the outputs were compared as well; `training` tells how they compare in train mode
    ("equal", or what is not), dropout and drop path off, and is empty if the model does not run so. `bound` names the
    modules that compare sizes of their input in Python: for other sizes than those of the compared inputs they may do
    something else, and of these nothing is known.
    """

    model: nn.Module
    cuts: Cuts
    groups: int
    removed: int
    pruned: int
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    difference: tuple[float, float] | None
    seconds: tuple[float, float] | None
    kept: tuple[str, ...]
    proved: tuple[str, ...] = ()
    training: str = ""
    uncounted: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"shrunk: {self.removed:,} of {self.groups:,} channel groups are gone{self._why()}",
            _line("parameters", *(f"{size:,}" for size in self.parameters), _ratio(self.parameters)),
            _line("multiply-adds", *(f"{cost:,}" for cost in self.multiply_adds), _ratio(self.multiply_adds)),
        ]
        if self.seconds is not None and self.difference is not None:
            lines.append(_line("forward pass", *(f"{1000 * t:.1f} ms" for t in self.seconds), _ratio(self.seconds)))
            double, single = self.difference
            lines.append(f"  the outputs differ by {double:.0e} of the largest in float64, {single:.0e} in float32")
            others = f", and for {', '.join(self.proved)}" if self.proved else "; no other batch or size was taken"
            lines.append(f"  compared for the example{others}")
            if self.training not in ("", "equal"):
                lines.append(f"  eval only: in train mode {self.training}")
        if self.bound:
            more = f" and {len(self.bound) - 3} more" if len(self.bound) > 3 else ""
            lines.append(f"  bound to these sizes: {', '.join(self.bound[:3])}{more} may do something else for others")
        lines += [f"  not counted: multiply-adds of {operation}" for operation in self.uncounted]
        return "\n".join([*lines, *(f"  kept: {reason}" for reason in self.kept)])

    def _why(self) -> str:
        return f" ({self.pruned:,} pruned, {self.removed - self.pruned:,} dead before)" if self.removed else ""


def _line(what: str, *columns: str) -> str:
    before, after, ratio = columns
    return f"  {what:13}{before:>17} -> {after:>15}  {ratio}"


def _ratio(sizes: tuple[float, float]) -> str:
    return f"{100 * sizes[1] / sizes[0]:5.1f} % left" if sizes[0] else ""


def shrink(
    model: nn.Module,
    example_input: Any,
    *,
    round_to: int | None = None,
    verify: bool = True,
    heads: Heads = "whole",
    rules: Mapping[str, Rule] | None = None,
    examples: Sequence[Any] = (),
    dead: Dead = "masks",
) -> ShrinkReport:
    """Return a smaller plain model of the same class, with every channel gone that has no influence on the outputs.

    A channel is dead if it is zero whatever the input, if nothing reads it, or if it holds one other value everywhere
    that the biases of its readers can take in; it goes with the channels that it is tied to, if they are dead as well.
    With `dead` "masks" that has to follow from what the masks of `model` remove, whatever its parameters learn: what is
    only zero for now, as many a norm at the start of training, stays. With "zeros" the values of parameters count.
    `example_input` is a tensor, a tuple of positional arguments, a dict of keyword arguments or
    `sparsify.Inputs(*args, **kwargs)`. Sizes are left multiples
    of `round_to` where enough dead channels are there to stay. Unless `verify` is False the result is compared with
    `model` on the example input, in float64 and float32. `model` is not changed. Raises RunError, naming the module
    that differs first, if no smaller model gives the same outputs; SparsifyError for a `round_to` below 1
    or another word. It is compared for another batch and another size as well where the model takes them, and for
    `examples`: groups that are not the same, or not dead, in a pass of one of these stay.
    `heads`, `rules`: as for `analyse`; what was pruned with sizes of heads is to be shrunk with them.
    """
    if round_to is not None and round_to < 1:
        raise SparsifyError(f"shrink: round_to={round_to}: channel counts are rounded to multiples of 1 or more")
    check_heads("shrink", heads)
    check_dead("shrink", dead)
    example_input = inputs_of(example_input, "shrink", model)
    examples = [inputs_of(other, "shrink: examples", model) for other in examples]
    small = fold(model).eval()
    own = checked_rules("shrink", rules)
    recording = record(small, example_input)
    masks = removing_masks(model, recording)

    def study_of(recording: Recording) -> Study:
        recording = replace(recording, fixed_biases=fixed_biases(model, small))
        return study(recording, killable=False, heads=heads, dead=dead, masks=masks, rules=own)

    found = study_of(recording)
    count = sum(parameter.numel() for parameter in small.parameters())
    proof = Proof(small, example_input, examples, wanted=verify)
    attempt = _Attempts(small, example_input, found, proof, lambda other: study_of(record(small, other)))
    for number, other in enumerate(examples):
        attempt.pin_what_differs(f"example {number + 2}", other)
    removed = attempt.until_proved(round_to)
    small.train(model.training)
    return ShrinkReport(
        model=small,
        cuts=cuts_of(small) or Cuts({}),
        groups=found.channels.groups,
        removed=int(removed.sum()),
        pruned=int((removed & found.pruned).sum()),
        parameters=(count, sum(parameter.numel() for parameter in small.parameters())),
        multiply_adds=(_cost(recording), _cost(record(small, example_input)) if removed.any() else _cost(recording)),
        difference=attempt.proof.difference,
        seconds=attempt.proof.seconds,
        kept=(*attempt.reasons, *([_NO_MASKS] if dead == "masks" and not masks else [])),
        proved=tuple(variant.what for variant in proof.variants),
        training=proof.training,
        uncounted=found.channels.uncounted,
        bound=tuple(module or "the model" for module in proof.that_ask_for_sizes()) if verify else (),
    )


_NO_MASKS = "everything: no mask of this model removes anything; dead='zeros' also takes what is zero as it is now"


def removing_masks(model: nn.Module, recording: Recording) -> dict[str, Tensor]:
    """Return the masks that remove something, by the first name that their parameter has on the folded model's recording."""
    found = {}
    for weight in all_masked_parameters(model):
        value = recording.state.get(weight.name)
        if value is not None and value.shape == weight.mask.shape and not bool(weight.mask.all()):
            found[value.names[0]] = weight.mask
    return found


def _cost(recording: Recording) -> int:
    return sum(multiply_adds(op) for op in recording.ops[: recording.eval_count])


class _Attempts:
    """Cuts one model until its outputs are right: attributes are guesses, and some forwards take no smaller sizes."""

    def __init__(
        self, model: nn.Module, example_input: Any, found: Study, proof: Proof, study_of: Callable[[Any], Study]
    ) -> None:
        self.model, self.found, self.proof, self.study_of = model, found, proof, study_of
        self.sources = Sources(model, example_input)
        self.inputs = constant_inputs(model, example_input, found)
        self.classes = {name: type(module) for name, module in model.named_modules()}
        self.pinned = np.zeros(found.channels.groups, dtype=bool)
        self.widened: set[str] = set()  # modules of which the operations that are given numbers were held
        self.rejected: set[tuple[type, str]] = set()  # attributes that are not the source of a size after all
        self.required: set[tuple[type, str]] = set()  # those that it did not help to spare
        self.reasons: list[str] = []

    def until_proved(self, round_to: int | None) -> np.ndarray[Any, Any]:
        """Cut the model and return which groups went."""
        while True:
            removed = removable(self.found, self.found.channels.dead.numpy() & ~self.pinned, round_to)
            problem, where = self._cut(removed)
            if not problem or self._without_an_attribute(removed, where):
                return removed
            if problem.startswith("for "):
                if self._pin_for_variants(removed):
                    continue
                if self._right_without(removed, self._changed(removed)):
                    return removed
            new_shapes = PrunedShapes(self.found, removed)
            more = (self._met_in(where, new_shapes) & removed) if where not in self.widened else np.zeros_like(removed)
            self.widened.add(where)
            while not more.any():
                more = self._met_in(where) & removed
                if more.any() or not where:
                    break
                where = where.rpartition(".")[0]  # what the module was given comes from further out
            if not more.any():
                place = where or type(self.model).__name__
                raise RunError(f"shrink: {place}: {problem}; nothing was changed")
            self.pinned |= more
            self.reasons.append(f"{where or 'the model'}: {int(more.sum())} dead groups stay: {problem}")

    def _pin_for_variants(self, removed: np.ndarray[Any, Any]) -> bool:
        """Hold what is dead for the example alone, or goes together with others for another input; whether it helps."""
        before = self.pinned.copy()
        for variant in self.proof.variants:
            self.pin_what_differs(variant.what, variant.input)
        return bool((self.pinned & ~before & removed).any())

    def pin_what_differs(self, what: str, other_input: Any) -> None:
        """Hold the groups that are not the same, or not dead, in a pass of another input."""
        differs = ~same_groups(self.found.channels, self.study_of(other_input).channels)
        more = differs & ~self.pinned & self.found.channels.dead.numpy()
        self.pinned |= differs
        if more.any():
            self.reasons.append(f"{int(more.sum())} dead groups stay: for {what} other channels go together, or matter")

    def _cut(self, removed: np.ndarray[Any, Any]) -> tuple[str, str]:
        """Cut the model; if it is not right, take that back and return what was wrong and in which module."""
        new_shapes = PrunedShapes(self.found, removed)
        amounts = absorbed(self.found, new_shapes, self.inputs)
        added = tuple(one.bias for one in amounts if one.bias not in self.found.recording.state)
        cuts = Cuts(self._removed(new_shapes), self._attributes(new_shapes), added)
        cutting = partial(cut_and_absorb, cuts=cuts, amounts=amounts)
        undo = cutting(self.model)
        problem, where = self.proof.check(self.model, cutting, self.found, new_shapes)
        if problem:
            undo()
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
        """Return the class and the name of an attribute, whose dotted path may end in the index of a tuple."""
        parts = path.split(".")
        for i in range(len(parts) - 1, -1, -1):
            if ".".join(parts[:i]) in self.classes:
                return self.classes[".".join(parts[:i])], ".".join(parts[i:])
        raise AssertionError(path)

    def _without_an_attribute(self, removed: np.ndarray[Any, Any], where: str) -> bool:
        """Try to spare one attribute of the failing module's class; True if the model was right then."""
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
        """Return the class of a module, or of the one around it that has such attributes and makes what it is given."""
        owners = {cls for cls, _ in changed}
        while path and self.classes.get(path) not in owners:
            path = path.rpartition(".")[0]
        return self.classes.get(path)

    def _changed(self, removed: np.ndarray[Any, Any]) -> list[tuple[type, str]]:
        """Return the attributes that change where none is spared."""
        sources = own_attributes(self.model, self.found, PrunedShapes(self.found, removed), self.sources)
        return list(dict.fromkeys(self._names(path) for path in sources))

    def _right_without(
        self, removed: np.ndarray[Any, Any], names: Sequence[tuple[type, str]], together: int = 1
    ) -> bool:
        """Whether the model is right with some attributes spared, tried so many at once; they stay spared then."""
        for some in combinations(names, together):
            before = set(self.rejected)
            self.rejected |= set(some)
            if not self._cut(removed)[0]:
                return True
            self.rejected = before
        return False

    def _met_in(self, module: str, new_shapes: PrunedShapes | None = None) -> np.ndarray[Any, Any]:
        """Return which groups a module's own forward meets; after three tries those of all modules of its class.

        With `kept`, only operations count that are given numbers that would have to change: views, splits.
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
    """Return which dead groups may go (bool per group): something is left of every dimension; counts are rounded up."""
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
