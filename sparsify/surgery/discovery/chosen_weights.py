"""A ParameterList or ParameterDict from which each call reads some entries: the others are weights as well."""

from __future__ import annotations

from torch import nn

from ..module_walk import owner_of
from .weight_uses import STORED, Use


def add_chosen(module: nn.Module, uses: dict[str, Use]) -> None:
    """Add to `uses` the entries of a list or dict that no traced call reads, if other entries of it are weights."""
    for path, use in list(uses.items()):
        owner, name = owner_of(module, path)
        if use.how not in STORED or not isinstance(owner, (nn.ParameterList, nn.ParameterDict)):
            continue
        dimensions = owner._parameters[name].dim()  # type: ignore[union-attr]
        for other, parameter in owner._parameters.items():
            if parameter is not None and parameter.dim() == dimensions and parameter.is_floating_point():
                reason = f"masked like {path}, although no traced call reads it"
                uses.setdefault(path.removesuffix(name) + other, Use("source", reason, use.layout))
