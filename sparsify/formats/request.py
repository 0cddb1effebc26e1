"""The argument and the result of a format's writer. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .file.metadata import Metadata, metadata_text

if TYPE_CHECKING:
    from torch import nn

    from ..surgery.shrink.cuts import Cuts


@dataclass(frozen=True)
class ExportRequest:
    """A model to write: unwrapped, with its metadata and the options its format takes (None: not given).

    `dtype` names the type that floating values are cast to; `example_input` (a tensor, a tuple, a dict or
    `sparsify.Inputs`) is the input that an exporter runs the model on; `dynamic_shapes` names the dimensions that may
    vary, by default the batch, which `batch_size` fixes. `threads` is the number that the engine is tuned for.
    """

    model: nn.Module
    path: str | os.PathLike[str]
    metadata: Metadata
    dtype: str | None = None
    example_input: Any = None
    batch_size: int | None = None
    dynamic_shapes: Any = None
    cuts: Cuts | None = None
    threads: int | None = None


class ExportResult(NamedTuple):
    """The size of what was written, in bytes, and notes for the user, a line each."""

    size: int
    notes: tuple[str, ...] = ()


def about_text(metadata: Metadata) -> dict[str, str]:
    """Return the metadata as text by key (`sparsify.spec`, ...), for formats with key-value metadata."""
    text = metadata_text(metadata, {}, {})
    return {f"sparsify.{key}": value for key, value in text.items() if key not in ("format", "version")}
