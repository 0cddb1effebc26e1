"""The masks a model carries: where they are, reading them, setting them in place.

A mask is a bool buffer `<parameter>_mask` in the module that owns the parameter. The module remembers which of its
parameters are masked, so that nothing is guessed from a buffer's name: in the tuple `masked_names` the weights that
`convert` masked, which sparsities count, and in `masked_also` the further parameters of `mask_also`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import SparsifyError, nearest
from .parametrized import computed_weight, computes_from


class MaskedWeight(NamedTuple):
    """One masked weight or parameter: its qualified name, the module that owns it and the parameter's name there."""

    name: str
    module: nn.Module
    parameter_name: str

    @property
    def parameter(self) -> nn.Parameter:
        """The raw parameter, values under the mask included."""
        return getattr(self.module, self.parameter_name)  # type: ignore[no-any-return]

    @property
    def mask(self) -> Tensor:
        """The live mask: a bool tensor shaped like the parameter, True = keep."""
        return getattr(self.module, f"{self.parameter_name}_mask")  # type: ignore[no-any-return]


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before it was converted; of a plain module, its class."""
    cls = type(module)  # asked for itself: a wrapper may answer for the module that it wraps
    return getattr(cls, "original_class", cls)


def names_of_masked(module: nn.Module) -> tuple[str, ...]:
    """Return the names of one module's own masked parameters: weights, then further parameters."""
    own = module.__dict__
    return (*own.get("masked_names", ()), *own.get("masked_also", ()))


def all_masked_weights(model: nn.Module) -> Iterator[MaskedWeight]:
    """Yield every masked weight in `state_dict` order; a parameter with several names is yielded under each."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in module.__dict__.get("masked_names", ()):
            yield MaskedWeight(f"{prefix}.{name}" if prefix else name, module, name)


def all_masked_parameters(model: nn.Module) -> Iterator[MaskedWeight]:
    """Yield every masked weight and every further parameter with a mask, as `all_masked_weights` does."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in names_of_masked(module):
            yield MaskedWeight(f"{prefix}.{name}" if prefix else name, module, name)


def masked_weights(model: nn.Module) -> dict[str, MaskedWeight]:
    """Return the masked weights by name in `state_dict` order, a shared parameter under its first name only.

    They are what `convert` masked. `masked_parameters` returns those of `mask_also` as well.
    """
    return _first_names(all_masked_weights(model))


def masked_parameters(model: nn.Module) -> dict[str, MaskedWeight]:
    """Return the masked weights and further parameters by name, module by module, each under its first name only."""
    return _first_names(all_masked_parameters(model))


def _first_names(weights: Iterator[MaskedWeight]) -> dict[str, MaskedWeight]:
    seen: set[int] = set()
    found: dict[str, MaskedWeight] = {}
    for weight in weights:
        if id(weight.parameter) not in seen:
            seen.add(id(weight.parameter))
            found[weight.name] = weight
    return found


def get_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return all live masks by parameter name: bool tensors, True = keep. Copy them before changing anything."""
    return {name: weight.mask for name, weight in masked_parameters(model).items()}


def set_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set masks in place by parameter name; parameters that are not named keep theirs.

    `masks` maps names to tensors shaped like their parameter; bool, or numbers that are exactly 0 or 1. All names are
    checked before any mask is changed. Raises SparsifyError for an unknown name, a wrong shape or other values.
    """
    weights = {weight.name: weight for weight in all_masked_parameters(model)}
    for name, mask in masks.items():
        if name not in weights:
            guess = nearest(name, weights)
            hint = f"; did you mean '{guess}'?" if guess else ""
            raise SparsifyError(f"set_masks: the model has no masked weight '{name}'{hint}")
        expected = weights[name].mask.shape
        if mask.shape != expected:
            raise SparsifyError(f"set_masks: {name}: mask has shape {tuple(mask.shape)}, weight {tuple(expected)}")
        if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            raise SparsifyError(f"set_masks: {name}: a mask holds only 0 and 1 (or False and True)")
    shared: dict[int, list[MaskedWeight]] = {}
    for weight in weights.values():
        shared.setdefault(id(weight.parameter), []).append(weight)
    with torch.no_grad():
        for name, mask in masks.items():
            # A parameter shared by two modules has one mask; .to(device) copies buffers one by one, so each is set.
            for weight in shared[id(weights[name].parameter)]:
                weight.mask.copy_(mask)


def is_computed(weight: MaskedWeight) -> bool:
    """Whether the weight that is used is computed from the parameter (weight standardisation, parametrizations)."""
    name, module = weight.parameter_name, weight.module
    return name in getattr(module, "computed_weights", ()) or computes_from(module, name)


def effective_weight(weight: MaskedWeight) -> Tensor:
    """Return, detached, what the masked operation multiplies with when its mask is all ones, shaped like the parameter.

    For nearly every weight that is the parameter itself (not a copy: do not change it). Where the module computes its
    weight (weight standardisation) it is the computed one, on which criteria score.
    """
    if not is_computed(weight):
        return weight.parameter.detach()
    if computes_from(weight.module, weight.parameter_name):
        return computed_weight(weight.module, weight.parameter_name)
    with torch.no_grad():
        computed: Tensor = weight.module.compute_effective_weight(weight.parameter_name)  # type: ignore[operator]
        return computed.detach()
