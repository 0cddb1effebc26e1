"""How far two masks of one model agree: by layer and in total, and what random masks would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import SparsifyError

if TYPE_CHECKING:
    from torch import Tensor

Masks: TypeAlias = "Mapping[str, Tensor]"


@dataclass(frozen=True)
class LayerOverlap:
    """Entries kept by two masks of one weight: by `one`, by the `other`, by `both`."""

    name: str
    shape: tuple[int, ...]
    one: int
    other: int
    both: int

    @property
    def either(self) -> int:
        """Entries that at least one of the masks keeps."""
        return self.one + self.other - self.both

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks keep nothing."""
        return self.both / self.either if self.either else 1.0

    @property
    def entries(self) -> int:
        """Entries of the weight."""
        return prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as in JSON."""
        return asdict(self) | {"shape": list(self.shape), "either": self.either, "iou": self.iou}


def overlap_by_layer(one: Masks, other: Masks, *, names: tuple[str, str] = ("one", "other")) -> list[LayerOverlap]:
    """Return the overlap of each weight's masks, in the order of `one`.

    Raises SparsifyError, which includes `names`, for masks of different models.
    """
    for first, second, (here, there) in ((one, other, names), (other, one, names[::-1])):
        if missing := [name for name in first if name not in second]:
            raise SparsifyError(f"{there}: no mask of {missing[0]}, which {here} has: they are of different models")
    rows = []
    for name, mask in one.items():
        if mask.shape != other[name].shape:
            shapes = [list(each[name].shape) for each in (one, other)]
            raise SparsifyError(f"{names[1]}: {name} is of shape {shapes[1]} and not {shapes[0]}, as in {names[0]}")
        both = int((mask & other[name]).sum())
        rows.append(LayerOverlap(name, tuple(mask.shape), int(mask.sum()), int(other[name].sum()), both))
    return rows


def total(rows: Sequence[LayerOverlap]) -> LayerOverlap:
    """Return the overlap of all layers together."""
    sums = [sum(getattr(row, key) for row in rows) for key in ("entries", "one", "other", "both")]
    return LayerOverlap("all layers", (sums[0],), *sums[1:])


def iou(one: Masks, other: Masks) -> float:
    """Return the intersection over union of two masks over all layers."""
    both = sum(int((one[name] & other[name]).sum()) for name in one)
    return both / max(1, sum(int((one[name] | other[name]).sum()) for name in one))


def iou_by_chance(one: Masks, other: Masks) -> float:
    """Return the intersection over union, of mean counts, of random masks that keep as many entries per layer."""
    both = sum(int(one[name].sum()) * int(other[name].sum()) / max(1, one[name].numel()) for name in one)
    return both / max(1, sum(int(one[name].sum()) + int(other[name].sum()) for name in one) - both)


def union_of(masks: Sequence[Masks]) -> dict[str, Tensor]:
    """Return the union of the masks of some cycles."""
    union = {name: mask.clone() for name, mask in masks[0].items()}
    for more in masks[1:]:
        for name, mask in more.items():
            union[name] |= mask
    return union
