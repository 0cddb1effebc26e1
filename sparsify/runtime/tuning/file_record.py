"""The strategy stored in a file, tuned when it was written, and whether it applies here."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SparsifyError
from ...formats.file.container import is_shape
from ...formats.file.metadata import Metadata, read_contents
from ...formats.io.locate import model_file
from ..call_inputs import Shapes
from .cache import machine, strategy_of, to_json
from .search import Strategy

Sizes = tuple[tuple[int, ...], ...]
_MOST = 2**28  # numbers in an example, so that a file cannot exhaust the memory


@dataclass(frozen=True)
class Stored:
    """The input shapes stored in the file at `path`, and the strategy for them.

    Most files have no strategy (None, with `unfit` ""); `unfit` is the reason why a stored one does not apply here.
    """

    path: Path
    shapes: Sizes
    strategy: Strategy | None = None
    unfit: str = ""

    def example(self, model: nn.Module) -> tuple[Tensor, ...]:
        """Return inputs of these shapes, normal noise in the model's dtype, the same every time.

        Raises SparsifyError for a file without shapes.
        """
        if not self.shapes:
            raise SparsifyError(
                f"compile: {self.path} does not say what its model takes (input_shape): give an example_input"
            )
        weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(shape, generator=generator).to(weight) for shape in self.shapes)


def entry(shapes: Shapes, threads: int, strategy: Strategy) -> dict[str, Any]:
    """Return a strategy tuned here as a file stores it, plain JSON (docs/format.md)."""
    sizes = [list(shape) for shape in shapes]
    return {"machine": machine(), "threads": threads, "shapes": sizes, "way": to_json(strategy)}


def read(source: str | os.PathLike[str], threads: int) -> Stored:
    """Return the stored shapes and strategy of the file at `source`, for an engine with `threads` threads.

    A strategy of another machine, other versions or another number of threads is not used. Raises SparsifyError for a
    file that cannot be read, and for an invalid entry.
    """
    path = model_file(source)
    about = read_contents(path).metadata
    if not about.engine:
        return Stored(path, _of_one_image(about))
    sizes: Any = about.engine.get("shapes")
    made, count = about.engine.get("machine"), about.engine.get("threads")
    if not _are_shapes(sizes) or not isinstance(made, dict) or type(count) is not int:
        raise _broken(path, "shapes, machine and threads")
    shapes = tuple(map(tuple, sizes))
    here = {**machine(), "threads": threads}
    there = {**made, "threads": count}
    apart = [f"{key} {_short(there.get(key))} (here {here[key]})" for key in here if there.get(key) != here[key]]
    if apart:
        return Stored(path, shapes, unfit=f"it was tuned for {', '.join(apart)}")
    strategy = strategy_of(about.engine.get("way"), "tuned when the file was written")
    if strategy is None:
        raise _broken(path, "a strategy that this version knows")
    return Stored(path, shapes, strategy)


def _of_one_image(about: Metadata) -> Sizes:
    size = about.extra.get("input_shape")
    return ((1, *size),) if size and _are_shapes([size]) else ()


def _are_shapes(value: Any) -> bool:
    """Return whether a decoded JSON value is a list of shapes of tensors that are neither empty nor huge."""
    if not isinstance(value, list) or not value:
        return False
    return all(is_shape(one) and 0 < math.prod(one) <= _MOST for one in value)


def _short(value: Any) -> str:
    """Return a stored value as short text on one line."""
    return " ".join(str(value).split())[:40]


def _broken(path: Path, lacks: str) -> SparsifyError:
    return SparsifyError(
        f"{path}: its entry 'engine' does not hold {lacks}: write the file again (sparsify export --format engine)"
    )
