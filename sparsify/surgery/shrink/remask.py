"""Put the masks of a shrunk model on the smaller one where they still remove something."""

from __future__ import annotations

from torch import nn

from ..conversion.convert import convert
from ..conversion.mask_extra import mask_also
from ..mask_state.masks import masked_parameters, masked_weights, set_masks
from .cuts import Cuts
from .indices import without


def mask_again(small: nn.Module, masked: nn.Module, cuts: Cuts) -> nn.Module:
    """Put the cut masks of `masked` on `small`, in place, and return `small`; `cuts` made `small` from `masked`.

    A cut mask that is all ones is left out; if all are, `small` stays a plain model.
    """
    weights = masked_weights(masked)
    names = dict(small.named_parameters(remove_duplicate=False))
    still = {}
    for name, weight in masked_parameters(masked).items():
        mask = without(weight.mask, cuts.removed.get(name, {}))
        # A module that computed its weight is now a plain one whose weight holds the zeros.
        if name in names and names[name].shape == mask.shape and not bool(mask.all()):
            still[name] = mask
    if not still:
        return small
    masked_now = [name for name in still if name in weights]
    plain = [name for name, parameter in names.items() if parameter.dim() > 1 and name not in masked_now]
    convert(small, ignore=plain)
    mask_also(small, [name for name in still if name not in weights])
    set_masks(small, still)
    return small
