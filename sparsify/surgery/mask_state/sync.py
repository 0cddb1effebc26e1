"""sync_masks(): copy the masks of the model that trains to an average of it."""

from __future__ import annotations

from torch import nn

from ...arguments import takes
from ...errors import SparsifyError
from ..unwrap import unwrap
from .masks import get_masks, set_masks


@takes(average=nn.Module, live=nn.Module)
def sync_masks(average: nn.Module, live: nn.Module) -> None:
    """Copy all masks of `live`, the model that trains, to `average`, an average of its weights, in place.

    Either may be wrapped (DistributedDataParallel, torch.compile). Averages of torch.optim.swa_utils and timm do this
    themselves. Raises SparsifyError, with nothing changed, if the two models do not have masks on the same parameters.
    """
    inner, source = unwrap(average), unwrap(live)
    masks, own = get_masks(source), get_masks(inner)
    if not masks:
        raise SparsifyError("sync_masks: the live model carries no masks; call sparsify.convert on it first")
    missing = [name for name in masks if name not in own] + [name for name in own if name not in masks]
    if missing:
        where = "average" if missing[0] in masks else "live model"
        raise SparsifyError(f"sync_masks: '{missing[0]}' carries no mask in the {where}: average a converted model")
    set_masks(inner, {name: mask.to(own[name].device) for name, mask in masks.items()})
