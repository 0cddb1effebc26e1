"""How an image file becomes a model's input, as data: written with a model, read where it is used. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import SparsifyError, nearest_file, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# The key of a file's `extra`, and what the file beside it is called: NAME.preprocess.json.
KEY = "preprocess"
_INTERPOLATION = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_MODES = {"L": 1, "RGB": 3}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image, in order; docs/export.md does it in ten lines.

    It is converted to `mode` ("L" or "RGB"), its shorter side resized to `resize` pixels by `interpolation`, the middle
    `crop` (height, width) cut out, divided by 255, and each channel normalised by `mean` and `std`. A model that takes
    other `channels` gets a grey image repeated, or the mean of colours. `classes` names the outputs, () if unknown.
    """

    mode: str
    resize: int
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    classes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON; `from_dict` reads it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def inputs(self, paths: Sequence[str | Path]) -> NDArray[np.float32]:
        """Return the images in the files as a batch, float32 (count x channels x height x width)."""
        return np.stack([self._input(path) for path in paths])

    def _input(self, path: str | Path) -> NDArray[np.float32]:
        from PIL.Image import Resampling

        image = _opened(path, self.mode)
        width, height = image.size
        short, long = sorted((width, height))
        if short != self.resize:
            other = int(self.resize * long / short)
            size = (self.resize, other) if width <= height else (other, self.resize)
            image = image.resize(size, Resampling(_INTERPOLATION[self.interpolation]))
        top, left = (round((have - want) / 2) for have, want in zip(image.size[::-1], self.crop, strict=True))
        # What lies outside of the image is black.
        image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        values: NDArray[Any] = np.asarray(image, np.float32).reshape(*self.crop, -1) / np.float32(255)
        mean, std = (np.asarray(given, np.float32) for given in (self.mean, self.std))
        values = np.asarray((values - mean) / std, np.float32)
        if values.shape[2] != self.channels:
            values = np.repeat(values.mean(2, keepdims=True), self.channels, 2)
        found: NDArray[np.float32] = values.transpose(2, 0, 1)
        return found


def from_dict(given: Mapping[str, Any], where: str) -> Preprocessing:
    """Return what `to_dict` gave; SparsifyError, which `where` begins, for anything else."""
    try:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
        }
        found = Preprocessing(**values)
        numbers = (*found.mean, *found.std, found.resize, *found.crop, found.channels)
        sound = (
            found.mode in _MODES
            and found.interpolation in _INTERPOLATION
            and len(found.mean) == len(found.std) == _MODES[found.mode]
            and len(found.crop) == 2
            and all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
            and all(isinstance(one, int) and one > 0 for one in (found.resize, *found.crop, found.channels))
        )
    except (TypeError, AttributeError):
        sound = False
    if not sound:
        raise SparsifyError(f"{where}: does not say how an image becomes an input (its keys: docs/export.md)")
    return found


def beside(path: str | PathLike[str]) -> Path:
    """Return the path of the preprocessing beside a model's file: model.preprocess.json for model.onnx."""
    return Path(path).with_suffix(f".{KEY}.json")


def read(path: str | Path) -> Preprocessing:
    """Return the preprocessing in a file that was written beside a model's; SparsifyError if it holds none."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SparsifyError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SparsifyError(f"{path}: not JSON: {error}") from None
    return from_dict(given if isinstance(given, Mapping) else {}, str(path))


def to_mode(image: Image, mode: str) -> Image:
    """Return an image as mode "L" (grey) or "RGB": 16 bits scaled to 8, transparency dropped.

    Pillow alone cuts what is above 255 off, so that images of 16 bits become white. Raises ValueError for pixels of 32
    bits, whose range of values is not known.
    """
    from PIL.Image import fromarray

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the second in older versions
        image = fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind} of 32 bits, of an unknown range; save it with 8 or 16 bits")
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # or Pillow warns of each
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _opened(path: str | Path, mode: str) -> Image:
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError
    from PIL.Image import open as open_image

    if Path(path).exists() and not Path(path).is_file():  # to open a pipe would wait for its writer
        raise SparsifyError(f"{path}: {'a folder' if Path(path).is_dir() else 'no regular file'}, not an image")
    try:
        with open_image(path) as image:
            image.load()
            return to_mode(image, mode)
    except FileNotFoundError:
        guess = nearest_file(Path(path), "*")
        raise SparsifyError(f"{path}: no such image{f'; did you mean {guess}?' if guess else ''}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, DecompressionBombError) as error:
        raise SparsifyError(f"{path}: cannot be read as an image ({one_line(error, 120)})") from None
