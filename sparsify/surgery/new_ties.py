"""Parameters that modules have come to share since the conversion: their masks must still be one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import SparsifyError
from .full_name import full_name
from .masks import MaskedWeight, all_masked_parameters, names_of_masked
from .module_walk import named_modules

_ADVICE = "tie weights before the conversion, or"


def refuse_new_ties(model: nn.Module, where: str) -> None:
    """Raise SparsifyError, which begins with `where`, for a masked parameter with a second mask or a dense use.

    `convert` makes none: something has assigned one module's parameter to another since.
    """
    masked = one_mask_each(model, where)
    for path, module in named_modules(model):
        held: dict[str, Any] = module.__dict__.get("_parameters", {})
        for name, parameter in held.items():
            if id(parameter) in masked and name not in names_of_masked(module):
                raise SparsifyError(
                    f"{where}: {full_name(path, name)} is the masked parameter {masked[id(parameter)].name} since the "
                    f"conversion, and has no mask: {_ADVICE} give each a parameter of its own"
                )


def one_mask_each(model: nn.Module, where: str) -> dict[int, MaskedWeight]:
    """Return the masked parameters by id, each as it is first named; SparsifyError for one with masks that differ."""
    first: dict[int, MaskedWeight] = {}
    for weight in all_masked_parameters(model):
        one = first.setdefault(id(weight.parameter), weight)
        if one.mask is weight.mask or one.mask.is_meta or torch.equal(one.mask, weight.mask):
            continue
        raise SparsifyError(
            f"{where}: {one.name} and {weight.name} are one parameter since the conversion, with masks that differ: "
            f"{_ADVICE} give both one mask: set_masks(model, {{'{one.name}': mask}})"
        )
    return first
