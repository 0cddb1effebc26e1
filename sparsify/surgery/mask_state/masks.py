"""The masks of a model: where they are stored, how to read them and set them in place.

A mask is a bool buffer `<parameter>_mask` in the module that owns the parameter. The module lists its masked
parameters, so that no buffer is taken for a mask by its name: the tuple `masked_names` holds the weights that `convert`
masked, which sparsities count; `masked_also` the extra parameters of `mask_also`; the dict `masked_layouts` maps
parameter names to layouts that differ from those of torch.nn's modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...arguments import takes
from ...errors import SparsifyError, did_you_mean
from ...processes.shards import copy_into, count
from ..module_walk import full_name, named_modules
from .live_masks import bool_mask
from .parametrized import computed_names, computed_weight, computes_from, formed_since


class Layout(NamedTuple):
    """The roles of a weight's dimensions: it is one matrix [outputs, inputs * kernel positions], or several.

    There is one matrix for each index of the dimensions `matrices` (experts). `groups` is that of a transposed
    convolution: the first input dimension is split into that many parts, each of which makes a matrix.
    """

    matrices: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    groups: int = 1


ROWS = Layout((), (0,), (1,))  # of a matrix


class MaskedWeight(NamedTuple):
    """A masked parameter: its qualified name, the module that owns it and its name in that module."""

    name: str
    module: nn.Module
    parameter_name: str

    @property
    def parameter(self) -> nn.Parameter:
        """The stored parameter, with the values under the mask.

        Raises SparsifyError if the parameter was parametrized after the conversion.
        """
        if formed_since(self.module, self.parameter_name):
            raise SparsifyError(
                f"{self.name} was parametrized after the conversion, and its mask does not follow: take the "
                "parametrization off, fold the model, parametrize it, and convert it again"
            )
        return getattr(self.module, self.parameter_name)  # type: ignore[no-any-return]

    @property
    def mask(self) -> Tensor:
        """The live mask: a bool tensor shaped like the parameter, True = keep."""
        return bool_mask(self.module, self.parameter_name)


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before it was converted; for a plain module, its class."""
    cls = type(module)  # not `__class__`, which a wrapper may take from the module that it wraps
    return getattr(cls, "original_class", cls)


def names_of_masked(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the masked parameters that one module owns: weights, then extra parameters."""
    own = module.__dict__
    return (*own.get("masked_names", ()), *own.get("masked_also", ()))


def all_masked_weights(model: nn.Module) -> Iterator[MaskedWeight]:
    """Yield every masked weight in `state_dict` order; a parameter with several names is yielded under each."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in module.__dict__.get("masked_names", ()):
            yield MaskedWeight(full_name(prefix, name), module, name)


def all_masked_parameters(model: nn.Module) -> Iterator[MaskedWeight]:
    """Yield every masked weight and masked extra parameter, under each of its names."""
    for prefix, module in named_modules(model, remove_duplicate=False):
        for name in names_of_masked(module):
            yield MaskedWeight(full_name(prefix, name), module, name)


def masked_weights(model: nn.Module) -> dict[str, MaskedWeight]:
    """Return the weights that `convert` masked, by name in `state_dict` order; shared ones under their first name only.

    `masked_parameters` also returns the parameters of `mask_also`.
    """
    return _first_names(all_masked_weights(model))


def masked_parameters(model: nn.Module) -> dict[str, MaskedWeight]:
    """Return the masked weights and extra parameters by name, module by module, each under its first name only."""
    return _first_names(all_masked_parameters(model))


def masked_sources(model: nn.Module) -> dict[str, str]:
    """Return {masked parameter: the weight that a parametrization computes from it}, which a folded model holds."""
    computed = computed_names(model)
    return {weight.name: computed[weight.name] for weight in all_masked_weights(model) if weight.name in computed}


def _first_names(weights: Iterator[MaskedWeight]) -> dict[str, MaskedWeight]:
    seen: set[int] = set()
    found: dict[str, MaskedWeight] = {}
    for weight in weights:
        if id(weight.parameter) not in seen:
            seen.add(id(weight.parameter))
            found[weight.name] = weight
    return found


def kept_of(weights: Iterable[MaskedWeight]) -> tuple[int, int]:
    """Return (kept entries, all entries) of the masks of `weights`."""
    masks = [weight.mask for weight in weights]
    return sum(map(count, masks)), sum(mask.numel() for mask in masks)


@takes(model=nn.Module)
def get_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's masks by parameter name: bool tensors, True = keep. Clone a mask before changing it."""
    return {name: weight.mask for name, weight in masked_parameters(model).items()}


@takes(model=nn.Module, masks=Mapping)
def set_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set masks in place by parameter name; parameters that are not named keep theirs.

    `masks` maps names to tensors shaped like their parameter, bool or numbers that are exactly 0 or 1. Raises
    SparsifyError for an unknown name, a wrong shape or other values, before any mask is changed.
    """
    weights = {weight.name: weight for weight in all_masked_parameters(model)}
    for name, mask in masks.items():
        if name not in weights:
            hint = did_you_mean(name, weights)
            raise SparsifyError(f"set_masks: the model has no masked weight '{name}'{hint}")
        if not isinstance(mask, Tensor) or mask.layout is not torch.strided or mask.is_meta:
            raise SparsifyError(f"set_masks: {name}: a mask is a dense tensor with values")
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
                copy_into(weight.mask, mask)


def layout(weight: MaskedWeight) -> Layout:
    """Return which dimensions of a masked weight are its outputs and inputs."""
    own: dict[str, Layout] = weight.module.__dict__.get("masked_layouts", {})
    return own.get(weight.parameter_name) or usual_layout(weight.module, weight.mask.dim())


def usual_layout(module: nn.Module, dimensions: int) -> Layout:
    """Return the layout that torch.nn gives a weight with this number of dimensions in a module like `module`."""
    kernel = tuple(range(2, dimensions))
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and kernel:
        return Layout((), (1,), (0,), kernel, module.groups)
    if isinstance(module, nn.Bilinear) and kernel:
        return Layout((), (0,), (1, 2))
    return Layout((), (0,), (1,) if dimensions > 1 else (), kernel)


def alike(one: Layout, other: Layout, shape: torch.Size) -> bool:
    """Return whether two layouts give the same matrices for this shape; dimensions of size 1 are not compared."""
    larger = [tuple(tuple(d for d in dimensions if shape[d] > 1) for dimensions in each[:4]) for each in (one, other)]
    return larger[0] == larger[1] and one.groups == other.groups


def matrix_shapes(shape: torch.Size, layout: Layout) -> tuple[torch.Size, ...]:
    """Return the shape (outputs, inputs, *kernel) of each matrix of a weight of `shape`."""
    outputs, inputs, count = (
        prod(shape[d] for d in dimensions) for dimensions in (layout.outputs, layout.inputs, layout.matrices)
    )
    return (torch.Size((outputs, inputs, *(shape[d] for d in layout.kernel))),) * count


def is_computed(weight: MaskedWeight) -> bool:
    """Return whether the forward computes its weight from the parameter (weight standardisation, parametrizations)."""
    name, module = weight.parameter_name, weight.module
    return name in getattr(module, "computed_weights", ()) or computes_from(module, name)


def effective_weight(weight: MaskedWeight) -> Tensor:
    """Return the detached weight that the operation uses under an all-ones mask, shaped like the parameter.

    For most weights this is the parameter itself, not a copy: do not change it. If the module computes its weight
    (weight standardisation, a sum of parameters), it is the computed weight, which criteria score. Random numbers drawn
    on the way are the same each time, and no random state changes.
    """
    if not is_computed(weight):
        return weight.parameter.detach()
    if computes_from(weight.module, weight.parameter_name):
        return computed_weight(weight.module, weight.parameter_name)
    with torch.no_grad():
        computed: Tensor = weight.module.compute_effective_weight(weight.parameter_name)  # type: ignore[operator]
        return computed.detach()
