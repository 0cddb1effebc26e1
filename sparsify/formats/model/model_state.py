"""Collecting a model's state for a file, and copying it back into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...errors import SparsifyError, listed
from ...quantities import sizes
from ...surgery.mask_state.masks import all_masked_parameters, all_masked_weights, is_computed
from ...surgery.mask_state.new_ties import one_mask_each
from ...surgery.shrink.cuts import Cuts, checked, cuts_of, every_tensor
from ...surgery.sizes.attributes import new_attributes
from ..file.cuts_text import cuts_text, read_cuts


@dataclass(frozen=True)
class ModelState:
    """A model's tensors by name, each stored once.

    `masks`: masked parameter -> mask; `raw`: the masked weights whose values under the mask matter; `aliases`: other
    name of a shared tensor -> its first name; `also`: the masked parameters that are not weights.
    """

    tensors: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    raw: frozenset[str]
    aliases: Mapping[str, str]
    also: frozenset[str]


def collect(model: nn.Module) -> ModelState:
    """Return the state of `model` for a file, without copying.

    Raises SparsifyError for an entry that is no tensor, and for a parameter with two masks that differ.
    """
    one_mask_each(model, "save")
    masked = {weight.name: weight for weight in all_masked_parameters(model)}
    hidden = {f"{name}_mask" for name in masked}
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in hidden:
            continue
        if not isinstance(tensor, Tensor):
            raise SparsifyError(f"save: {name} is not a tensor but {type(tensor).__name__}; a file holds tensors only")
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor
    missing = [name for name in masked if name not in tensors and name not in aliases]
    if missing:
        raise SparsifyError(f"save: the masked weights {', '.join(missing)} are not in the model's state_dict")
    masks: dict[str, Tensor] = {}
    raw = set()
    for name, weight in masked.items():
        stored = aliases.get(name, name)
        masks.setdefault(stored, weight.mask)
        dense_use = any(alias not in masked for alias in (stored, *(a for a, to in aliases.items() if to == stored)))
        if dense_use or is_computed(weight):
            raw.add(stored)
    weights = {aliases.get(weight.name, weight.name) for weight in all_masked_weights(model)}
    return ModelState(tensors, masks, frozenset(raw), aliases, frozenset(masks.keys() - weights))


def text_of_cuts(model: nn.Module, cuts: Cuts | None) -> str:
    """Return `cuts` (None: those recorded in the model) as text for a file, "" for none.

    Recorded cuts of tensors and attributes that the model no longer has, e.g. of a replaced head, are left out. Raises
    SparsifyError if `cuts` does not fit the model.
    """
    known = cuts_of(model) if cuts is None else cuts
    if known is None:
        return ""
    found = checked(known, "save")
    shapes = {name: tuple(tensor.shape) for name, tensor in every_tensor(model).items()}
    if cuts is None:
        here = {path: value for path, value in found.attributes.items() if _has(model, path, value)}
        removed = {name: axes for name, axes in found.removed.items() if name in shapes}
        found = Cuts(removed, here, tuple(name for name in found.added if name in shapes))
    for name in [*found.removed, *found.added]:
        if name not in shapes:
            raise SparsifyError(f"save: cuts names '{name}', which the model does not have")
    if found == Cuts({}):
        return ""
    text = cuts_text(found)
    stored = read_cuts(text)
    try:
        for name, shape in shapes.items():
            stored.original(name, shape)
    except ValueError as error:
        raise SparsifyError(f"save: cuts does not fit the model: {error}") from error
    return text


def _has(model: nn.Module, path: str, value: int | tuple[int, ...]) -> bool:
    try:
        return bool(new_attributes(model, {path: value}))
    except SparsifyError:
        return False


def check_names(where: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise SparsifyError, one line, unless `state` names exactly the model's tensors (masks aside) in their shapes."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and (tensor.is_meta or is_lazy(tensor)):
            raise SparsifyError(f"{where}: the model's {name} has no values yet (meta device or lazy module)")
    masks = {f"{weight.name}_mask" for weight in all_masked_parameters(model)}
    check_fit(where, {name: value for name, value in model.state_dict().items() if name not in masks}, state)


def check_fit(where: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise SparsifyError, one line, unless `state` has the names of a model's `own` tensors, in their shapes."""
    shapes = [
        f"{name} is {sizes(state[name].shape)}, the model's {sizes(own[name].shape)}"
        for name in own
        if name in state and isinstance(own[name], Tensor) and state[name].shape != own[name].shape
    ]
    found = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": shapes,
    }
    problems = [f"{len(names)} {what}: {listed(names)}" for what, names in found.items() if names]
    if problems:
        raise SparsifyError(f"{where}: its tensors do not fit the model ({'; '.join(problems)})")


def adopt_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the model's tensors the dtypes of `state`, in place; shared parameters stay shared."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)


@torch.no_grad()
def put(model: nn.Module, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Copy tensors and masks into a model with checked names; a masked weight not in `masks` gets all ones."""
    live = {}
    for weight in all_masked_parameters(model):
        live[f"{weight.name}_mask"] = masks.get(weight.name, torch.ones((), dtype=torch.bool).expand(weight.mask.shape))
    model.load_state_dict({**state, **live}, strict=True)
