"""Masks that remove something before a pruning starts, and masks that come back after an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from ..errors import SparsifyError
from ..surgery.masks import MaskedWeight
from .selection.candidates import Candidates
from .settings.prune import Pruning


def ramps_from_present(candidates: Candidates, masks: Mapping[str, Tensor], pruning: Pruning) -> bool:
    """Whether a schedule goes from what `masks` remove to the target and only adds to it."""
    present = candidates.removed(masks)
    more = pruning.amount is not None or pruning.target >= present
    return bool(present) and more and not pruning.schedule.cyclical


def check_present(candidates: Candidates, masks: Mapping[str, Tensor], pruning: Pruning, where: str) -> None:
    """Raise SparsifyError, which begins with `where`, if `masks` already remove more than the target."""
    present = candidates.removed(masks)
    if pruning.amount is None and present > pruning.target and not pruning.schedule.cyclical:
        raise SparsifyError(
            f"{where}: {float(pruning.target):g} is to be removed, and {float(present):.4g} is already, whose "
            "values are gone; give more, or leave out 'prune' to train under the masks that are there"
        )


@contextmanager
def masks_restored(weights: Mapping[str, MaskedWeight]) -> Iterator[None]:
    """Restore the masks of `weights`, in place, if the block raises."""
    masks = {name: weight.mask.clone() for name, weight in weights.items()}
    try:
        yield
    except BaseException:
        for name, weight in weights.items():
            weight.mask.copy_(masks[name])
        raise
