"""Cuts: what a shrink removed, as data that can be applied to a fresh model of the same class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...errors import SparsifyError, did_you_mean
from ..mask_state.masks import all_masked_parameters
from ..module_walk import full_name, named_modules
from ..sizes.attributes import new_attributes, set_attributes
from .indices import Axes, check_axes, one_after_another, what_follows, without

Slot: TypeAlias = tuple[nn.Module, str, Tensor]  # a module, and the name of a parameter or buffer there


# With slots, so that code that walks through a module's attributes does not look inside.
@dataclass(frozen=True, slots=True)
class Cuts:
    """What was removed from a model.

    `removed` maps `state_dict` names to {dimension: sorted indices removed}; `attributes` maps dotted paths
    ("layer1.0.conv1.out_channels") to their new values; `added` names new parameters (a bias that absorbs the constant
    outputs of removed units).
    """

    removed: dict[str, dict[int, tuple[int, ...]]]
    attributes: dict[str, Any] = field(default_factory=dict)
    added: tuple[str, ...] = ()


def apply_cuts(model: nn.Module, cuts: Cuts) -> nn.Module:
    """Apply `cuts` to `model`, in place, and return `model`, which stores them (`cuts_of`).

    Cut parameters are new objects with the kept values, gradient, dtype, device, memory format and `requires_grad`. A
    parameter with several names stays one object (one of its names in `cuts` is enough). Added biases hold zeros. The
    model must be plain; if it was cut before, it stores both cuts combined.
    Raises SparsifyError, with nothing changed, for a model with masks, for tensors, dimensions, indices or attributes
    that it does not have, and if nothing would be left of a dimension.
    """
    cut(model, cuts)
    return model


def cuts_of(model: nn.Module) -> Cuts | None:
    """Return all cuts of `model`, relative to a fresh model of its class; None if there are none."""
    return model.__dict__.get("sparsify_cuts")


def every_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of `model` under all their names, including non-persistent buffers.

    Lazy tensors, which have no shape yet, are left out.
    """
    return {name: tensor for name, (_, _, tensor) in _slots(model).items() if not is_lazy(tensor)}


def compose(first: Cuts, second: Cuts) -> Cuts:
    """Return the cuts equivalent to `first`, then `second`; the indices of `second` are those after `first`."""
    removed = {name: dict(axes) for name, axes in first.removed.items()}
    for name, axes in second.removed.items():
        if name in first.added:
            continue  # it will be created with the length of the cut layer
        before = removed.setdefault(name, {})
        before.update({d: one_after_another(before.get(d, ()), indices) for d, indices in axes.items()})
    kept = {path: value for path, value in first.attributes.items() if path not in second.attributes}
    return Cuts(removed, {**kept, **second.attributes}, (*first.added, *second.added))


def beyond(first: Cuts, both: Cuts) -> Cuts:
    """Return the cuts that, applied after `first`, are equivalent to `both`; their indices are those after `first`."""
    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, axes in both.removed.items():
        for dimension, indices in axes.items():
            more = what_follows(first.removed.get(name, {}).get(dimension, ()), indices)
            if more:
                removed.setdefault(name, {})[dimension] = more
    attributes = {path: value for path, value in both.attributes.items() if first.attributes.get(path) != value}
    return Cuts(removed, attributes, tuple(name for name in both.added if name not in first.added))


def checked(cuts: Cuts, where: str) -> Cuts:
    """Return `cuts` normalised, without dimensions that lose nothing.

    Raises SparsifyError, which begins with `where`, for indices that are not ascending integers, a parameter both cut
    and added, and attributes that are neither integers nor lists of integers.
    """
    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, axes in cuts.removed.items():
        for dimension, given in axes.items():
            try:
                indices = tuple(map(index, given))
            except TypeError:
                raise SparsifyError(f"{where}: {name}: the indices of dimension {dimension} are not integers") from None
            if len(indices) > 1 and (np.diff(indices) <= 0).any():
                raise SparsifyError(f"{where}: {name}: the indices of dimension {dimension} are not ascending")
            if indices:
                removed.setdefault(name, {})[dimension] = indices
    for name in cuts.added:
        if name in removed or cuts.added.count(name) > 1:
            raise SparsifyError(f"{where}: {name} is added, so that it can be neither cut nor added again")
    attributes = {path: _plain(value, f"{where}: {path}") for path, value in cuts.attributes.items()}
    return replace(cuts, removed=removed, attributes=attributes, added=tuple(cuts.added))


def cut(model: nn.Module, cuts: Cuts) -> Callable[[], None]:
    """Apply `cuts` as `apply_cuts` does and return a function that undoes it."""
    cuts = checked(cuts, "apply_cuts")
    if next(all_masked_parameters(model), None) is not None:
        raise SparsifyError("apply_cuts: the model carries masks; cut the plain model (fold makes one) and convert it")
    slots = _slots(model)
    axes = _axes_by_tensor(slots, cuts)
    attributes = new_attributes(model, cuts.attributes)
    added = [_place_for_bias(model, slots, name) for name in cuts.added]
    # One new tensor per tensor, so that tied parameters stay tied.
    made = {key: _made(slots[name][2], which) for key, (name, which) in axes.items()}
    # Stored under all names, since a later cut may use another name, and a copy may not tie them.
    names = {name: axes[id(slot[2])][1] for name, slot in slots.items() if id(slot[2]) in axes}
    done = replace(cuts, removed={name: dict(which) for name, which in names.items()})
    before = cuts_of(model)
    undo_attributes = set_attributes(attributes)

    def undo() -> None:
        undo_attributes()
        for cut_name in names:
            setattr(*slots[cut_name])
        for module, name in added:
            setattr(module, name, None)
        model.__dict__.pop("sparsify_cuts", None)
        model.__dict__.update({} if before is None else {"sparsify_cuts": before})

    try:
        for cut_name in names:
            module, name, tensor = slots[cut_name]
            setattr(module, name, made[id(tensor)])
        for module, name in added:
            setattr(module, name, _zeros_for(module))
    except BaseException:
        undo()
        raise
    model.__dict__["sparsify_cuts"] = done if before is None else compose(before, done)
    return undo


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(item, where) for item in value)
    try:
        if not isinstance(value, bool):
            return index(value)
    except TypeError:
        pass
    raise SparsifyError(f"{where}: {value!r:.40} is neither an integer nor a list of integers")


def _slots(model: nn.Module) -> dict[str, Slot]:
    return {
        full_name(prefix, name): (module, name, tensor)
        for prefix, module in named_modules(model, remove_duplicate=False)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }


def _axes_by_tensor(slots: Mapping[str, Slot], cuts: Cuts) -> dict[int, tuple[str, Axes]]:
    """Return {id of a tensor: (name, indices removed)}; raise SparsifyError if names of one tensor disagree."""
    found: dict[int, tuple[str, Axes]] = {}
    for name, axes in cuts.removed.items():
        if name not in slots:
            hint = did_you_mean(name, slots)
            raise SparsifyError(f"apply_cuts: the model has no parameter or buffer '{name}'{hint}")
        tensor = slots[name][2]
        check_axes("apply_cuts", name, tensor, axes)
        other, same = found.setdefault(id(tensor), (name, axes))
        if same != axes:
            raise SparsifyError(f"apply_cuts: {other} and {name} are one tensor, and would be cut differently")
    return found


def _place_for_bias(model: nn.Module, slots: Mapping[str, Slot], name: str) -> tuple[nn.Module, str]:
    path, _, own = name.rpartition(".")
    module = dict(model.named_modules(remove_duplicate=False)).get(path)
    if module is None or own != "bias" or f"{name.removesuffix('bias')}weight" not in slots:
        raise SparsifyError(f"apply_cuts: '{name}' cannot be added: only the bias of a layer with a weight can")
    if module._parameters.get(own, module) is not None:
        raise SparsifyError(f"apply_cuts: '{name}' cannot be added: the layer has a bias, or never has one")
    return module, own


def _zeros_for(module: nn.Module) -> nn.Parameter:
    """Return a bias of zeros for the module's weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        size = weight.shape[1] * module.groups
    else:
        size = weight.shape[0]
    return nn.Parameter(weight.new_zeros(size), requires_grad=weight.requires_grad)


def _made(tensor: Tensor, axes: Axes) -> Tensor:
    left = without(tensor, axes)
    if isinstance(tensor, nn.Parameter):
        left = nn.Parameter(left, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            left.grad = without(tensor.grad, axes)
    left.__dict__.update(tensor.__dict__)  # attributes that training scripts set on tensors
    return left
