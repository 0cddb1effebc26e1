"""The weights that a pruner prunes, and the stored values of removed ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ...errors import SparsifyError, listed
from ...processes.shards import local
from ...surgery.ignore_patterns import class_names, ignored_names
from ...surgery.mask_state.masks import (
    MaskedWeight,
    all_masked_parameters,
    is_computed,
    masked_parameters,
    masked_weights,
)
from ...surgery.mask_state.parametrized import computed_names
from ...surgery.module_walk import owner_of
from ...surgery.tracing.bytecode_scan import CONV_AND_LINEAR

_LOG = logging.getLogger("sparsify")


def pruned_weights(model: nn.Module, ignore: Iterable[str], only: Iterable[str] = ()) -> list[str]:
    """Return the names of the masked weights in `only` (by default all) and not in `ignore`, in `state_dict` order.

    "first" and "last" count weights without a mask too, so that it makes no difference whether a weight was ignored
    when the model was converted. Raises SparsifyError if nothing is left.
    """
    masked = masked_weights(model)
    if not masked:
        raise SparsifyError(
            "Pruner: the model has no masked weight; call sparsify.convert(model) first, or ignore fewer weights"
        )
    only = list(only)
    ignored = matching_weights(model, ignore, ("ignore",))
    wanted = matching_weights(model, only, ("only",)) if only else masked
    left = [name for name in masked if name in wanted and name not in ignored]
    if not left:
        said = "'ignore' leaves" if not only else "'only' and 'ignore' leave"
        raise SparsifyError(f"Pruner: {said} none of the {len(masked)} masked weights")
    return left


def matching_weights(model: nn.Module, patterns: Iterable[str], key: tuple[str | int, ...]) -> dict[str, str]:
    """Return the weights, masked or not, that patterns match, each with its pattern; errors name the `key`."""
    maskable = maskable_weights(model)
    others = [name for name, _ in model.named_parameters() if name not in maskable]
    aliases, classes = computed_names(model), class_names(model)
    return ignored_names(maskable, patterns, others=others, aliases=aliases, classes=classes, key=key)


def maskable_weights(model: nn.Module) -> list[str]:
    """Return the names of the masked weights and of all weights of convolutions and linear layers."""
    seen = computed_names(model)
    maskable = []
    for path, parameter in model.named_parameters():
        module, name = owner_of(model, path)
        if name in module.__dict__.get("masked_names", ()):
            maskable.append(path)
            continue
        layer, read = owner_of(model, seen.get(path, path))
        # Of the parameters that a weight is computed from, the one that could carry its mask.
        if read == "weight" and isinstance(layer, CONV_AND_LINEAR) and parameter.shape == layer.weight.shape:
            maskable.append(path)
    return maskable


def weights_named(model: nn.Module, names: Iterable[str]) -> dict[str, MaskedWeight]:
    """Return the masked weights and parameters of these names; SparsifyError for those that have no mask any more."""
    present = masked_parameters(model)
    gone = [name for name in names if name not in present]
    if gone:
        raise SparsifyError(
            f"Pruner: the model has no masked weight {listed(gone)} any more, which this pruner prunes: "
            "convert the changed model, and make a new pruner for it"
        )
    return {name: present[name] for name in names}


def check_have_values(weights: Mapping[str, MaskedWeight]) -> None:
    """Raise SparsifyError if weights are on the meta device."""
    if empty := [name for name, weight in weights.items() if weight.parameter.is_meta]:
        raise SparsifyError(f"Pruner: {listed(empty)}: on the meta device, without values; load the weights first")


def copy_to_aliases(model: nn.Module) -> None:
    """Copy the mask of a shared parameter's first module to its other modules, in place."""
    first: dict[int, Tensor] = {}
    for weight in all_masked_parameters(model):
        mask = first.setdefault(id(weight.parameter), weight.mask)
        if mask is not weight.mask:
            weight.mask.copy_(mask)


class RemovedValues:
    """The stored values of removed weights by the setting `masked_weights`: zero, freeze or decay.

    `values` holds the frozen ones by weight name. If the module computes its weight from the stored one (weight
    standardisation, parametrizations), zeros would change the kept entries too, so "zero" is treated as "decay".
    """

    def __init__(self, setting: str) -> None:
        self.setting = setting
        self.values: dict[str, Tensor] = {}
        self.warned = False

    def snapshot(self, weights: Iterable[MaskedWeight]) -> None:
        """Store the present values of removed weights, or zero them, by the setting."""
        weights = list(weights)
        computed = [weight.name for weight in weights if is_computed(weight)]
        if self.setting == "zero" and computed and not self.warned:
            self.warned = True
            _LOG.warning(
                "masked_weights: zero: the stored values of %s stay, since the weights that are used are computed from "
                "them",
                ", ".join(computed),
            )
        if self.setting == "zero":
            self.restore(weights)
        elif self.setting == "freeze":
            self.values = {weight.name: weight.parameter.detach().clone() for weight in weights}

    def restore(self, weights: Iterable[MaskedWeight]) -> None:
        """Undo, in place, what the optimiser did to the stored values of removed weights."""
        with torch.no_grad():
            for weight in weights:
                if self.setting == "zero" and not is_computed(weight):
                    local(weight.parameter).masked_fill_(~local(weight.mask), 0)
                elif weight.name in self.values:
                    value, mask = local(weight.parameter), local(weight.mask)
                    value.copy_(torch.where(mask, value, local(self.values[weight.name])))
