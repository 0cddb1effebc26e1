"""Attributes of modules that hold sizes and change with the channels.

A forward with `x.view(b, n, self.num_heads, self.head_dim)` needs another `num_heads`. The recording shows which sizes
change in which module; an attribute of that module with the old number (or a tuple that contains it) is assumed to be
the source. Running the cut model shows whether the assumption was right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from ..channels.study import Study
from ..module_walk import full_name
from ..recording.broadcast_forms import varying
from ..recording.ops import FILLS, Op, Value
from .size_sources import SPLITS, Sources, Use

# Operations whose arguments give the sizes of their result.
_SHAPED = ("view", "_unsafe_view", "reshape", "expand", "repeat", *FILLS)
# Modules whose sizes are those of their tensors.
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_SIZED = (nn.Linear, nn.modules.conv._ConvNd, nn.PReLU, nn.Embedding, nn.EmbeddingBag, *_RECURRENT, *_NORMS)


class Change(NamedTuple):
    """A number in a module's forward that changes, or all the sizes of a split."""

    module: str
    operation: str
    old: int | tuple[int, ...]
    new: int | tuple[int, ...]


class PrunedShapes:
    """The shapes of Values after the `removed` groups (bool [groups]) are cut."""

    def __init__(self, study: Study, removed: np.ndarray[Any, Any]) -> None:
        self._study = study
        self._removed = np.append(removed, False)  # the last entry is for id -1, which stays

    def is_removed(self, numbers: Any) -> np.ndarray[Any, Any]:
        """Return a bool array: whether each channel number is removed."""
        removed: np.ndarray[Any, Any] = self._removed[self._study.ids[np.asarray(numbers)]]
        return removed

    def kept_along(self, value: Value, dim: int) -> np.ndarray[Any, Any]:
        """Return which indices of a Value along a dimension are kept, bool [size]."""
        stay = np.ones(value.shape[dim], dtype=bool)
        coupling = self._study.coupling
        for axis in [*coupling.axes.get(value, []), *coupling.offered.get(value, [])]:
            if dim in varying(axis):
                others = tuple(d for d in range(axis.dim()) if d != dim)
                stay &= ~self.is_removed(axis.numpy()).all(axis=others)
        return stay

    def of(self, value: Value) -> tuple[int, ...]:
        """Return the shape of a Value after the cut."""
        return tuple(int(self.kept_along(value, d).sum()) for d in range(len(value.shape)))


def changes(study: Study, new_shapes: PrunedShapes) -> list[Change]:
    """Return the explicit numbers in operations that have to change, in order and without duplicates."""
    found: dict[Change, None] = {}
    for op in study.recording.ops:
        for old, new in changed_numbers(op, new_shapes):
            found[Change(op.module, op.name, old, new)] = None
    return list(found)


def changed_numbers(op: Op, new_shapes: PrunedShapes) -> list[tuple[Any, Any]]:
    """Return (old, new) of the explicit numbers of one operation that have to change."""
    return [(old, new) for old, new in _arguments(op, new_shapes) if old != new]


def _arguments(op: Any, new_shapes: PrunedShapes) -> Iterator[tuple[Any, Any]]:
    value = op.args[0] if op.args and isinstance(op.args[0], Value) else None
    if op.name in _SHAPED:
        yield from zip(op.results[0].shape, new_shapes.of(op.results[0]), strict=True)
    elif op.name == "split_with_sizes":
        dim = op.args[2] if len(op.args) > 2 else 0
        old = tuple(result.shape[dim] for result in op.results)
        new = tuple(new_shapes.of(result)[dim] for result in op.results)
        yield old, new
        yield from zip(old, new, strict=True)
    elif op.name in ("split", "unsafe_split") and value is not None:
        dim = op.args[2] if len(op.args) > 2 else 0
        yield op.args[1], new_shapes.of(op.results[0])[dim]
        yield value.shape[dim], new_shapes.of(value)[dim]  # forwards divide this by the number of parts
    elif op.name == "slice" and value is not None:
        dim = op.args[1] if len(op.args) > 1 else 0
        stay = new_shapes.kept_along(value, dim)
        for bound in op.args[2:4]:
            if isinstance(bound, int) and 0 < bound < value.shape[dim]:
                yield bound, int(stay[:bound].sum())
    elif op.name == "convolution" and op.args[8] > 1:
        yield op.args[8], new_groups(op, new_shapes)
    elif op.name == "native_group_norm":
        per = op.args[4] // op.args[6]
        yield op.args[6], new_shapes.of(op.args[0])[1] // per if op.args[6] > 1 else 1


def new_groups(op: Any, new_shapes: PrunedShapes) -> int:
    """Return the number of groups of a convolution after the cut."""
    groups = int(op.args[8])
    return int(new_shapes.kept_along(op.args[0], 1).reshape(groups, -1).any(axis=1).sum())


def layer_attributes(model: nn.Module, study: Study, new_shapes: PrunedShapes) -> dict[str, int]:
    """Return {dotted path: new value} of the attributes of torch.nn's layers that hold sizes of cut tensors."""
    found: dict[str, int] = {}
    groups = {op.args[1].names[0]: new_groups(op, new_shapes) for op in study.recording.ops if _convolves(op)}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, new in _sizes(path, module, study, new_shapes, groups):
            if getattr(module, attribute, new) != new:
                found[full_name(path, attribute)] = new
    return found


def _convolves(op: Any) -> bool:
    return op.name == "convolution" and bool(op.args[1].names)


def _sizes(
    path: str, module: nn.Module, study: Study, new_shapes: PrunedShapes, all_groups: dict[str, int]
) -> Iterator[tuple[str, int]]:
    if isinstance(module, _RECURRENT):
        yield from _recurrent_sizes(path, module, study, new_shapes)
    value = study.recording.state.get(full_name(path, "weight"))
    if value is None and isinstance(module, _NORMS):  # without parameters: its input has the size
        given = (op.inputs[0] for op in study.recording.ops if op.module == path and op.inputs)
        value = next(given, None)
        shape = new_shapes.of(value)[1:] if value is not None else ()
    else:
        shape = new_shapes.of(value) if value is not None else ()
    if value is None or not shape:
        return
    if isinstance(module, nn.Linear):
        yield "in_features", shape[1]
        yield "out_features", shape[0]
    elif isinstance(module, nn.Bilinear):
        yield from zip(("out_features", "in1_features", "in2_features"), shape, strict=True)
    elif isinstance(module, nn.modules.conv._ConvNd):
        groups = all_groups.get(value.names[0], module.groups)
        inputs, outputs = (0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else (1, 0)
        many, few = (groups, 1) if inputs == 1 else (1, groups)
        yield "groups", groups
        yield "in_channels", shape[inputs] * many
        yield "out_channels", shape[outputs] * few
    elif isinstance(module, (nn.modules.batchnorm._NormBase, nn.PReLU)):
        yield ("num_parameters" if isinstance(module, nn.PReLU) else "num_features"), shape[0]
    elif isinstance(module, nn.GroupNorm):
        yield "num_channels", shape[0]
        old = module.num_channels // module.num_groups
        yield "num_groups", max(1, shape[0] // old) if module.num_groups > 1 else 1
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield "embedding_dim", shape[1]


def _recurrent_sizes(path: str, module: Any, study: Study, new_shapes: PrunedShapes) -> Iterator[tuple[str, int]]:
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    into, back = (study.recording.state[full_name(path, f"weight_{name}{layer}")] for name in ("ih", "hh"))
    gates = into.shape[0] // module.hidden_size
    yield "input_size", new_shapes.of(into)[1]
    yield "hidden_size", new_shapes.of(into)[0] // gates
    if layer and module.proj_size:
        yield "proj_size", new_shapes.of(back)[1]


def own_attributes(
    model: nn.Module, study: Study, new_shapes: PrunedShapes, known: Sources
) -> dict[str, tuple[int, int]]:
    """Return {dotted path: (old, new)} of the attributes that the changed numbers come from.

    An attribute used for a size that changes is a source; one used only for other numbers is not. An attribute without
    observed uses is a source if it holds the old number and the model's outputs depend on it.
    """
    found = changes(study, new_shapes)
    if not found:
        return {}
    sources = _guessed(model, found, known)
    needed = _required_size(study, new_shapes, found)
    for path in [path for path in sources if path not in known.uses]:
        if not known.matters(path, sources[path][1]):
            del sources[path]
    for path, seen in known.uses.items():
        direct = {new for use in seen if use.direct and use.dim is not None for new in needed(use)}
        direct = direct or {new for use in seen if use.direct for new in needed(use)}
        if direct or not any(new != use.number for use in seen for new in needed(use)):
            sources.pop(path, None)
        old = next((use.number for use in seen if use.direct), 0)
        if len(direct) == 1 and direct != {old}:
            sources[path] = (old, direct.pop())
    return sources


def _required_size(study: Study, new_shapes: PrunedShapes, found: list[Change]) -> Callable[[Use], set[int]]:
    """Return a function that maps a use of a number to the numbers that it has to become, empty if unknown."""
    shapes: dict[tuple[str, tuple[int, ...]], set[tuple[int, ...]]] = {}
    for op in study.recording.ops:
        if op.name in _SHAPED:
            shapes.setdefault((op.module, op.results[0].shape), set()).add(new_shapes.of(op.results[0]))
    splits = [(c.module, c.old, c.new) for c in found if isinstance(c.old, tuple) and isinstance(c.new, tuple)]
    numbers: dict[tuple[str, Any], set[Any]] = {}
    for change in found:
        numbers.setdefault((change.module, change.old), set()).add(change.new)

    def needed(use: Use) -> set[int]:
        if use.dim is None:
            return numbers.get((use.module, use.number), set())
        if use.function in SPLITS:
            here = [(old, new) for module, old, new in splits if module == use.module and use.dim < len(old)]
            return {new[use.dim] for old, new in here if old[use.dim] == use.number}
        return {shape[use.dim] for shape in shapes.get((use.module, use.shape), ())}

    return needed


def _guessed(model: nn.Module, found: list[Change], read: Sources) -> dict[str, tuple[int, int]]:
    """Return {dotted path: (old, new)} of attributes that hold an old number in the module whose operation changes."""
    wanted: dict[str, dict[Any, set[Any]]] = {}
    for change in found:
        wanted.setdefault(change.module, {}).setdefault(change.old, set()).add(change.new)
    sources: dict[str, tuple[int, int]] = {}
    for path, numbers in wanted.items():
        prefix = f"{path}." if path else ""
        module = model.get_submodule(path)
        known = isinstance(module, _SIZED) and type(module).__module__.startswith("torch.nn.")
        for name, held in vars(module).items() if not known else ():
            if not read.is_read(module, name):
                continue
            new = numbers.get(held, ()) if _is_sizes(held) else ()
            if len(new) == 1:
                changed = zip(held, next(iter(new)), strict=True) if isinstance(held, tuple) else [(held, *new)]
                items = {f"{prefix}{name}.{i}": pair for i, pair in enumerate(changed)}
                sources |= items if isinstance(held, tuple) else {f"{prefix}{name}": items.popitem()[1]}
            elif isinstance(held, (tuple, list)):
                for i, item in enumerate(held):
                    if type(item) is int and len(numbers.get(item, ())) == 1:
                        sources[f"{prefix}{name}.{i}"] = (item, next(iter(numbers[item])))
    return {path: pair for path, pair in sources.items() if pair[0] != pair[1]}


def _is_sizes(held: Any) -> bool:
    """Return whether an attribute is an integer, or a tuple of integers that may be the sizes of a split."""
    return type(held) is int or (isinstance(held, tuple) and all(type(item) is int for item in held))
