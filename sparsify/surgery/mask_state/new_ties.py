"""Checks that parameters tied after the conversion have the same mask in every module that holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...errors import SparsifyError
from ..module_walk import full_name, named_modules
from .masks import MaskedWeight, all_masked_parameters, names_of_masked

_ADVICE = "tie weights before the conversion, or"


def refuse_new_ties(model: nn.Module, where: str) -> None:
    """Raise SparsifyError, which begins with `where`, for a masked parameter with different masks or a dense use.

    `convert` never leaves such a parameter: one module's parameter was assigned to another module afterwards.
    """
    masked = one_mask_each(model, where)
    for path, module in named_modules(model):
        held: dict[str, Any] = module.__dict__.get("_parameters", {})
        for name, parameter in held.items():
            if id(parameter) in masked and name not in names_of_masked(module):
                raise SparsifyError(
                    f"{where}: {full_name(path, name)} was tied to {masked[id(parameter)].name} after the conversion, "
                    f"and has no mask: {_ADVICE} give each a parameter of its own"
                )


def one_mask_each(model: nn.Module, where: str) -> dict[int, MaskedWeight]:
    """Return the masked parameters by id, under their first name. Raises SparsifyError for one with different masks."""
    first: dict[int, MaskedWeight] = {}
    for weight in all_masked_parameters(model):
        one = first.setdefault(id(weight.parameter), weight)
        if one.mask is weight.mask or one.mask.is_meta or torch.equal(one.mask, weight.mask):
            continue
        raise SparsifyError(
            f"{where}: {one.name} and {weight.name} were tied after the conversion, and their masks differ: "
            f"{_ADVICE} give both the same mask with set_masks(model, {{'{one.name}': mask}})"
        )
    return first
