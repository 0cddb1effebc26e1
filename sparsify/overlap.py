"""The overlap of two masks of one model, by layer and in total, and the overlap expected by chance."""

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
    """The overlap of two masks of one weight: entries kept by `one`, by the `other`, and by `both`."""

    name: str
    shape: tuple[int, ...]
    one: int
    other: int
    both: int

    @property
    def either(self) -> int:
        """The number of entries that at least one mask keeps."""
        return self.one + self.other - self.both

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks keep nothing."""
        return self.both / self.either if self.either else 1.0

    @property
    def entries(self) -> int:
        """The number of the weight's entries."""
        return prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serialisable values."""
        return asdict(self) | {"shape": list(self.shape), "either": self.either, "iou": self.iou}


def overlap_by_layer(one: Masks, other: Masks, *, names: tuple[str, str] = ("one", "other")) -> list[LayerOverlap]:
    """Return the overlap of each weight's masks, in the order of `one`.

    Raises SparsifyError, which contains `names`, for masks of different models.
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
    """Return the intersection over union of two models' masks over all layers together."""
    both = sum(int((one[name] & other[name]).sum()) for name in one)
    return both / max(1, sum(int((one[name] | other[name]).sum()) for name in one))


def iou_by_chance(one: Masks, other: Masks) -> float:
    """Return the IoU of random masks with the same counts in every layer, from the expected size of each overlap."""
    both = sum(int(one[name].sum()) * int(other[name].sum()) / max(1, one[name].numel()) for name in one)
    return both / max(1, sum(int(one[name].sum()) + int(other[name].sum()) for name in one) - both)


def union_of(masks: Sequence[Masks]) -> dict[str, Tensor]:
    """Return the union of several models' masks, by name."""
    union = {name: mask.clone() for name, mask in masks[0].items()}
    for more in masks[1:]:
        for name, mask in more.items():
            union[name] |= mask
    return union
