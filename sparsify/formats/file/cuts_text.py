"""The cuts of a shrunk model as text in a file's header, and back; docs/format.md specifies it. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import SparsifyError
from ..codec.bitpack import count
from ..types import Array, Shape
from .container import MAX_RANK

if TYPE_CHECKING:
    from ...surgery.shrink.cuts import Cuts

# An index takes some 40 bytes of memory, a position one: limits on what a small header can claim.
MOST_INDICES, MOST_POSITIONS = 2**22, 2**26
_KEYS = {"indices", "axes"}


@dataclass(frozen=True)
class Group:
    """Removed indices, as bits (index i is bit i mod 8 of byte i // 8), and their axes: tensor name -> dimensions."""

    bits: Array
    axes: Mapping[str, tuple[int, ...]]

    @property
    def removed(self) -> int:
        """Number of indices removed."""
        return count(self.bits)

    @property
    def last(self) -> int:
        """The highest index removed."""
        return len(self.bits) * 8 - 8 + int(self.bits[-1]).bit_length() - 1


@dataclass(frozen=True)
class StoredCuts:
    """The cuts of a model as stored in a file."""

    groups: tuple[Group, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    added: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything was cut."""
        return bool(self.groups or self.attributes or self.added)

    def of(self, name: str) -> Iterator[tuple[int, Group]]:
        """Yield each cut dimension of a tensor and the group removed there."""
        for group in self.groups:
            for dimension in group.axes.get(name, ()):
                yield dimension, group

    def original(self, name: str, shape: Shape) -> Shape | None:
        """Return the shape that a tensor had before it was cut to `shape`; None if it was not cut.

        Raises ValueError if the cuts do not fit `shape`.
        """
        sizes = list(shape)
        for dimension, group in self.of(name):
            if dimension >= len(sizes) or not sizes[dimension]:
                raise ValueError(f"nothing is left of dimension {dimension} of the tensor {name!r} that was cut")
            sizes[dimension] += group.removed
            if group.last >= sizes[dimension]:
                raise ValueError(f"index {group.last} was cut out of {sizes[dimension]} in the tensor {name!r}")
        return tuple(sizes) if tuple(sizes) != shape else None


def cuts_text(cuts: Cuts) -> str:
    """Return `cuts` as text, which does not depend on the order in which they are listed."""
    sets: dict[tuple[int, ...], dict[str, list[int]]] = {}
    for name in sorted(cuts.removed):
        for dimension in sorted(cuts.removed[name]):
            sets.setdefault(tuple(cuts.removed[name][dimension]), {}).setdefault(name, []).append(dimension)
    if sum(map(len, sets)) > MOST_INDICES or sum(indices[-1] for indices in sets) > MOST_POSITIONS - 8 * len(sets):
        raise SparsifyError(f"save: a file holds up to {MOST_INDICES:,} removed indices; this model has more")
    text: dict[str, Any] = {"removed": [{"indices": _hex(indices), "axes": axes} for indices, axes in sets.items()]}
    if cuts.attributes:
        text["attributes"] = cuts.attributes
    if cuts.added:
        text["added"] = cuts.added
    return json.dumps(text, separators=(",", ":"))


def read_cuts(text: str) -> StoredCuts:
    """Return the cuts in a header. Raises ValueError for anything that `cuts_text` does not write."""
    found = json.loads(text)
    if not isinstance(found, dict) or not {"removed"} <= set(found) <= {"removed", "attributes", "added"}:
        raise ValueError("its cuts are not removed indices, attributes and added tensors")
    removed, attributes, added = found["removed"], found.get("attributes", {}), found.get("added", [])
    if not isinstance(removed, list) or not isinstance(attributes, dict) or not isinstance(added, list):
        raise ValueError("its cuts are not removed indices, attributes and added tensors")
    groups = tuple(_group(value) for value in removed)
    if sum(group.removed for group in groups) > MOST_INDICES or sum(len(g.bits) for g in groups) > MOST_POSITIONS // 8:
        raise ValueError(f"its cuts remove more than {MOST_INDICES:,} indices, or too high ones")
    axes = [(name, dimension) for group in groups for name, found in group.axes.items() for dimension in found]
    names = {name for name, _ in axes}
    if len(set(axes)) < len(axes):
        raise ValueError("its cuts remove indices twice from one dimension of a tensor")
    if not all(isinstance(name, str) and name not in names for name in added) or len(set(added)) < len(added):
        raise ValueError("its cuts add a tensor twice, or one that is cut")
    return StoredCuts(groups, {path: _value(path, value) for path, value in attributes.items()}, tuple(added))


def cuts_from(stored: StoredCuts) -> Cuts:
    """Return `stored` as `surgery.shrink.cuts.Cuts`."""
    from ...surgery.shrink.cuts import Cuts

    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    for group in stored.groups:
        indices = tuple(np.flatnonzero(np.unpackbits(group.bits, bitorder="little")).tolist())
        for name, dimensions in group.axes.items():
            removed.setdefault(name, {}).update(dict.fromkeys(dimensions, indices))
    return Cuts(removed, dict(stored.attributes), stored.added)


def _hex(indices: tuple[int, ...]) -> str:
    bits = np.zeros(indices[-1] + 1, dtype=np.bool_)
    bits[list(indices)] = True
    return np.packbits(bits, bitorder="little").tobytes().hex()


def _group(value: Any) -> Group:
    if not isinstance(value, dict) or set(value) != _KEYS or not isinstance(value["indices"], str):
        raise ValueError("its cuts have no indices and axes")
    text, axes = value["indices"], value["axes"]
    packed = bytes.fromhex(text)
    if packed.hex() != text or not packed or not packed[-1]:
        raise ValueError(f"the indices {text!r:.40} of its cuts are not hexadecimal digits that end in a byte but 00")
    if not isinstance(axes, dict) or not axes or not all(map(_are_dimensions, axes.values())):
        raise ValueError("its cuts do not name tensors and their dimensions")
    return Group(np.frombuffer(packed, np.uint8), {name: tuple(dimensions) for name, dimensions in axes.items()})


def _are_dimensions(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and 0 <= item < MAX_RANK for item in value)


def _value(path: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(path, item) for item in value)
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError(f"the attribute {path!r} of its cuts is neither an integer nor a list of integers")
    return value
