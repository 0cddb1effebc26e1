"""The records of a lowered graph: buffers, instructions of kernels, and calls of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from ..kernels.opcodes import Opcode
from ..kernels.planes import Planes
from .packed_rows import PackedRows

UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Buffer:
    """Planes that hold a tensor of this shape, with elements in the order [image, channel, row, column].

    If `last`, the order is [image, row, column, channel].
    """

    number: int
    planes: Planes
    shape: tuple[int, ...]
    last: bool = False

    @property
    def channel_dim(self) -> int | None:
        """The dimension of the tensor that consists of the channels, None if there is none."""
        planes, shape = self.planes, self.shape
        if len(shape) > 1 and shape[-1] == planes.channels and self.channels_last:
            return len(shape) - 1
        return 1 if self.begins_with_channels else None

    @property
    def channels_last(self) -> bool:
        """Whether the channels of each pixel are contiguous in the tensor, as in images of one pixel."""
        return self.last or self.planes.height * self.planes.width == 1

    @property
    def begins_with_channels(self) -> bool:
        """Whether the tensor's dimensions are images, channels and those of pixels."""
        return not self.last and self.shape[:2] == (self.planes.batch, self.planes.channels)


@dataclass(frozen=True)
class Instruction:
    """One kernel's work. `reads` and `writes` are numbers of buffers; `at` is the plane of `writes` it begins at."""

    opcode: Opcode
    name: str
    planes: Planes  # of the output
    source: Planes
    reads: tuple[int, ...]
    writes: int
    at: int = 0
    rows: PackedRows | None = None
    scalars: tuple[float, float] = UNBOUNDED
    tensor: fx.Node | None = None  # PACK, UNPACK: the node
    numbers: Mapping[str, int] = field(default_factory=dict)
    factors: Buffer | None = None  # BINARY: a number for each plane and image

    @property
    def touches(self) -> tuple[int, ...]:
        """The buffers that it reads or writes, -1 for none."""
        return (*self.reads, self.writes, -1 if self.factors is None else self.factors.number)


@dataclass(frozen=True)
class Call:
    """One PyTorch operation on torch tensors."""

    node: fx.Node
