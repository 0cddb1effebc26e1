"""How an image file becomes a model's input, as data that is stored with a model. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import SparsifyError, check_regular, nearest_file, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# The key in a file's `extra`, and part of the name of the file next to it: NAME.preprocess.json.
KEY = "preprocess"
_INTERPOLATION = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_MODES = {"L": 1, "RGB": 3}


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an image; docs/export.md does it in ten lines.

    In order: convert to `mode` ("L" or "RGB"), resize the shorter side to `resize` pixels by `interpolation`, cut out
    the central `crop` (height, width), divide by 255, normalise each channel by `mean` and `std`. A model with other
    `channels` gets a grey image repeated, or the mean of the colours. `classes` names the outputs, () if unknown.
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
        """Return the fields as JSON-serialisable values for `from_dict`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def inputs(self, paths: Sequence[str | Path]) -> NDArray[np.float32]:
        """Return the preprocessed images of the files as a batch, float32 (count x channels x height x width)."""
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
        # Pixels outside the image are black.
        image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        values: NDArray[Any] = np.asarray(image, np.float32).reshape(*self.crop, -1) / np.float32(255)
        mean, std = (np.asarray(given, np.float32) for given in (self.mean, self.std))
        values = np.asarray((values - mean) / std, np.float32)
        if values.shape[2] != self.channels:
            values = np.repeat(values.mean(2, keepdims=True), self.channels, 2)
        found: NDArray[np.float32] = values.transpose(2, 0, 1)
        return found


def from_dict(given: Mapping[str, Any], where: str) -> Preprocessing:
    """Return the Preprocessing of a `to_dict` result; raises SparsifyError, which begins with `where`, for others."""
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
        raise SparsifyError(f"{where}: does not describe a preprocessing (its keys: docs/export.md)")
    return found


def class_names(extra: Mapping[str, Any]) -> list[str]:
    """Return the classes that a file's `extra` names, [] if it names none."""
    stored = extra.get(KEY)
    names = stored.get("classes") if isinstance(stored, Mapping) else None
    return list(names) if isinstance(names, list | tuple) else []


def beside(path: str | PathLike[str]) -> Path:
    """Return the path of the preprocessing file next to a model's file: model.preprocess.json for model.onnx."""
    return Path(path).with_suffix(f".{KEY}.json")


def read(path: str | Path) -> Preprocessing:
    """Return the preprocessing in a file that was written next to a model's; raises SparsifyError if it has none."""
    try:
        check_regular(path, piped=True)
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SparsifyError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SparsifyError(f"{path}: not JSON: {error}") from None
    return from_dict(given if isinstance(given, Mapping) else {}, str(path))


def to_mode(image: Image, mode: str) -> Image:
    """Return an image as mode "L" (grey) or "RGB", with 16 bits scaled to 8 and transparency dropped.

    Pillow alone clips values at 255, which makes 16-bit images white. Raises ValueError for 32-bit pixels, whose range
    of values is unknown.
    """
    from PIL.Image import fromarray

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the second in older versions
        image = fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind} of 32 bits, of an unknown range; save it with 8 or 16 bits")
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns about each image
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def _opened(path: str | Path, mode: str) -> Image:
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError
    from PIL.Image import open as open_image

    if os.path.exists(path) and not os.path.isfile(path):  # to open a pipe would wait for its writer
        raise SparsifyError(f"{path}: {'a folder' if os.path.isdir(path) else 'no regular file'}, not an image")
    try:
        with open_image(path) as image:
            image.load()
            return to_mode(image, mode)
    except FileNotFoundError:
        guess = nearest_file(Path(path), "*")
        raise SparsifyError(f"{path}: no such image{f'; did you mean {guess}?' if guess else ''}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, DecompressionBombError) as error:
        raise SparsifyError(f"{path}: cannot be read as an image ({one_line(error, 120)})") from None
