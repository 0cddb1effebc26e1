"""The memory layout of activations: planes, CHWN with zero padding."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 16  # floats


def rounded(count: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Planes:
    """Planes of `batch` images: [channel, row, column, image] (CHWN), with `pad` pixels of zero padding on all sides.

    The padding right of a row is also that left of the next. All sizes but height, width and pad count floats.
    """

    channels: int
    height: int
    width: int
    pad: int
    batch: int

    @property
    def row(self) -> int:
        """The pixels of one row."""
        return self.width * self.batch

    @property
    def row_stride(self) -> int:
        """The row stride."""
        return (self.width + self.pad) * self.batch

    @property
    def first(self) -> int:
        """From a plane's beginning to its first pixel: the rows above, aligned."""
        return rounded((self.pad * (self.width + self.pad) + self.pad) * self.batch) if self.pad else 0

    @property
    def span(self) -> int:
        """From the first pixel to the end of the last row."""
        return self.height * self.row_stride

    @property
    def size(self) -> int:
        """The plane stride; 1 for a single pixel of a single image."""
        if self.is_vector:
            return 1
        below = (self.pad * (self.width + self.pad) + self.pad) * self.batch
        # Whole vectors are computed, which may go beyond the last row but must not reach the next plane.
        return rounded(self.first + self.span + max(below, -self.span % ALIGNMENT, -self.row % ALIGNMENT))

    @property
    def is_vector(self) -> bool:
        """Whether there is one number for each channel."""
        return self.height == self.width == self.batch == 1 and self.pad == 0

    @property
    def floats(self) -> int:
        """The size of all planes, with slack for whole vectors that are read beyond the last."""
        return rounded(self.channels * self.size) + 2 * 8 * ALIGNMENT
