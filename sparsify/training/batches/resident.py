"""Images that fit in memory: kept as tensors on the device and augmented there, a batch at a time.

No device then waits for images that are decoded and cropped one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import SparsifyError
from .shares import WHOLE, Share, Shared

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Images (count x channels x height x width, uint8) with their class indices (count, int64), and the names."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, in the units of the pixels."""

    mean: Tensor
    std: Tensor


def normalisation_of(pixels: Tensor) -> Normalisation:
    """Return mean and standard deviation of each channel over all images and positions, exact to float32."""
    levels = np.arange(256, dtype=np.float64)
    # From histograms: 50,000 small images as floats would take 600 MB.
    counts = np.stack([np.bincount(channel.numpy().ravel(), minlength=256) for channel in pixels.cpu().unbind(1)])
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
    # A constant channel carries no information; it becomes 0.
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return Normalisation(torch.from_numpy(mean).float(), torch.from_numpy(std).float())


@dataclass(frozen=True)
class View:
    """How images reach the model: size in pixels, channels, normalisation, and augmentation in training."""

    size: int
    channels: int
    normalisation: Normalisation
    crop_padding: int = 0
    padding_mode: str = "zero"
    flip: bool = False


class TensorLoader:
    """Batches of (images, class indices) on one device: images float32 (batch x channels x size x size), normalised.

    `epoch(index)` depends on the seed and the index alone, so that a run resumes within an epoch to the same bits.
    Shuffled loaders augment their images as `view` says and drop a last batch of a single image, on which batch norm
    cannot train.
    """

    def __init__(
        self,
        images: Images,
        view: View,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._view, self._seed, self._shuffle, self._batch_size = view, seed, shuffle, batch_size
        self._count, self._length = count_used(len(images.labels), batch_size, shuffle=shuffle, drop_last=drop_last)
        self._labels = images.labels.to(device)
        height, width = images.pixels.shape[2:]
        padding = view.crop_padding if shuffle else 0
        padded = _padded(images.pixels.to(device), padding, view.padding_mode)
        # All crops of all images, without a copy: count x channels x (2p + 1) x (2p + 1) x height x width.
        self._crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        self._mean = view.normalisation.mean.to(device)[:, None, None]
        self._std = view.normalisation.std.to(device)[:, None, None]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, index: int, start: int = 0, share: Share = WHOLE) -> Iterator[Batch]:
        """Yield this process's `share` of each batch of epoch `index`, from batch number `start` on."""
        order, shifts, flips = self._draw(index)
        for batch in range(start, self._length):
            first, end = batch * self._batch_size, min((batch + 1) * self._batch_size, self._count)
            within, counted = share.of(end - first)
            part = slice(first + within.start, first + within.stop)
            chosen = order[part]
            pixels = self._crops[chosen, :, shifts[part, 0], shifts[part, 1]]
            if flips is not None:
                pixels = torch.where(flips[part, None, None, None], pixels.flip(3), pixels)
            yield Shared.make(self._presented(pixels), self._labels[chosen], counted, end - first)

    def _draw(self, index: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return an epoch's order, crops and flips, drawn on the CPU so that every device sees the same."""
        device, total = self._labels.device, len(self._labels)
        if not self._shuffle:
            return torch.arange(total, device=device), torch.zeros(total, 2, dtype=torch.int64, device=device), None
        generator = generator_for(self._seed, index)
        order = torch.randperm(total, generator=generator)
        shifts = torch.randint(0, self._crops.shape[2], (total, 2), generator=generator)
        flips = torch.rand(total, generator=generator) < 0.5
        return order.to(device), shifts.to(device), flips.to(device) if self._view.flip else None

    def _presented(self, pixels: Tensor) -> Tensor:
        images = pixels.to(torch.float32).sub_(self._mean).div_(self._std)
        size, channels = self._view.size, self._view.channels
        if images.shape[2:] != (size, size):
            smaller = size < min(images.shape[2:])
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=smaller)
        if channels != images.shape[1]:
            # Grey becomes equal colours; colours become their mean.
            images = images.mean(1, keepdim=True).repeat(1, channels, 1, 1)
        return images


def count_used(count: int, batch_size: int, *, shuffle: bool, drop_last: bool) -> tuple[int, int]:
    """Return how many of an epoch's images are used and in how many batches. Raises SparsifyError if there are none."""
    rest = count % batch_size
    # Batch norm cannot train on a single image.
    used = count - rest if shuffle and (drop_last or rest == 1) else count
    if used == 0:
        raise SparsifyError(f"data.batch_size: {count} images make no batch of {batch_size} to train on")
    return used, -(-used // batch_size)


def generator_for(*numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by all of `numbers`: a seed, then the epoch, image or the like it is used for."""
    [state] = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) >> 1)


def _padded(pixels: Tensor, padding: int, mode: str) -> Tensor:
    if padding == 0:
        return pixels
    if mode == "zero":
        return F.pad(pixels, (padding,) * 4)
    if padding >= min(pixels.shape[2:]):
        raise SparsifyError(f"data.crop_padding: {padding} pixels cannot be reflected from images of that size")
    rows, columns = (_reflected(size, padding, pixels.device) for size in pixels.shape[2:])
    return pixels[:, :, rows][:, :, :, columns]


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    positions = torch.arange(-padding, size + padding, device=device).abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
