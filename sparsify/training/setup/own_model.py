"""Whether a module given from Python is what the recipe names, so that its files may name it too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, nn

from ...errors import SparsifyError
from ...models import FROM_PYTHON, build_model
from ...surgery.mask_state.masks import all_masked_parameters
from ...surgery.shrink.cuts import cuts_of
from ...surgery.unwrap import unwrap
from ..recipe.settings import ModelSettings

Shapes = dict[str, Size]


def own_model_settings(model: nn.Module, named: ModelSettings) -> ModelSettings:
    """Return the model section of a recipe for a given `model`: the named one if that has the same state.

    Otherwise the name is python:<its class>, which `build_model` refuses.
    """
    arguments = arguments_of(model, named)
    if arguments is None:
        return ModelSettings(name=f"{FROM_PYTHON}{type(model).__name__}")
    return ModelSettings(name=named.name, arguments=arguments)


def arguments_of(model: nn.Module, named: ModelSettings) -> dict[str, Any] | None:
    """Return the arguments with which the named model has the state of `model`, name by name and shape by shape.

    The number of classes is taken from the size of the head. None if nothing fits, or if `model` was shrunk.
    """
    if named.name.startswith(FROM_PYTHON) or cuts_of(unwrap(model)) is not None:
        return None
    own = _shapes(model)
    try:
        usual = _shapes(built_on_meta(named.name, named.arguments))
        head = [name for name, shape in own.items() if name in usual and usual[name] != shape]
        arguments = {**named.arguments, **({"num_classes": own[head[0]][0]} if head and own[head[0]] else {})}
        fits = not head or _shapes(built_on_meta(named.name, arguments)) == own
    except SparsifyError:
        return None  # it takes no such arguments, or has no name: a model of its own
    return arguments if fits and own.keys() == usual.keys() else None


def built_on_meta(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return a named model, on the meta device where it can be built there."""
    try:
        with torch.device("meta"):
            return build_model(name, **arguments)
    except SparsifyError:
        with torch.random.fork_rng(devices=[]):  # some read numbers while they are built, which have to be there
            return build_model(name, **arguments)


def _shapes(model: nn.Module) -> Shapes:
    inner = unwrap(model)
    masks = {f"{weight.name}_mask" for weight in all_masked_parameters(inner)}
    return {name: value.shape for name, value in inner.state_dict().items() if name not in masks}
