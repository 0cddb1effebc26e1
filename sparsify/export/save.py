"""save(): write a model in any of the formats of registry.py; formats/model/load.py is the reader."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import nn

from ..arguments import PATH, takes
from ..errors import SparsifyError, unknown
from ..formats.file.inspection import FileSummary as FileSummary
from ..formats.file.inspection import TensorRow as TensorRow
from ..formats.file.inspection import inspect_file as inspect_file
from ..formats.file.metadata import NOT_ARGUMENTS, Metadata
from ..formats.io.atomic import atomic_write
from ..formats.model.dtypes import CASTS
from ..formats.model.load import load as load
from ..formats.model.read import FileState as FileState
from ..formats.model.read import read_state as read_state
from ..formats.request import ExportRequest, ExportResult
from ..preprocess import KEY, beside
from ..processes.ranks import joined_ranks
from ..surgery.mask_state.sharding import sharded_name, whole_state
from ..surgery.progress import warn_of_schedule
from ..surgery.shrink.cuts import Cuts
from ..surgery.unwrap import unwrap
from ..transformers_models import PREFIX, portable
from .registry import FORMATS, check_format, check_place

_OF_SHARDS = ("sparse", "dense", "masks")


@takes(
    model=nn.Module,
    path=PATH,
    spec=(str, NoneType),
    arguments=(Mapping, NoneType),
    seeds=(Mapping, NoneType),
    metrics=(Mapping, NoneType),
    format=str,
    extra=(Mapping, NoneType),
    batch_size=(Integral, NoneType),
    threads=(Integral, NoneType),
)
def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    recipe: Any = None,
    seeds: Mapping[str, int] | None = None,
    metrics: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    format: str = "sparse",
    extra: Mapping[str, Any] | None = None,
    cuts: Cuts | None = None,
    example_input: Any = None,
    batch_size: int | None = None,
    threads: int | None = None,
    dynamic_shapes: Any = None,
) -> int:
    """Write `model` to `path` and return the bytes written; an old file is replaced only by a whole new one.

    - `format`: "sparse" stores a masked weight as its mask and kept values: masks and effective weights are restored
      bit for bit, values under a mask are not. "dense" stores the dense model's own names with removed entries as +0.0,
      for any safetensors reader. "engine" is the sparse file with the fastest strategy for this machine. docs/export.md
      has the others (`registry.FORMATS`).
    - `spec`, `arguments`: the model's name ("timm:resnet18") and constructor arguments ({"num_classes": 10}), so that
      `load` needs only the file.
    - `recipe` (a Recipe, or text), `seeds`, `metrics`, `extra`: stored in the metadata. `extra["preprocess"]`
      (`preprocess.Preprocessing.to_dict`) is also written beside the file, as NAME.preprocess.json.
    - `cuts`: the cuts of a model that was shrunk elsewhere; models returned by `shrink` record theirs.
    - `dtype`: "float16", "bfloat16", "float32" or a torch.dtype: casts floating values, which rounds them.
    - `example_input`: a tensor, a tuple of positional arguments, a dict of keyword arguments or `sparsify.Inputs`, for
      formats that store the model's computation.
    - `dynamic_shapes`: its dimensions that may vary, {"x": {0: "batch", 2: "height"}}; dimensions of one name have one
      size, {} fixes all. By default the first of each tensor, the batch.
    - `batch_size`: fixes the batch. With "engine", it and `threads` (default: torch's number) are tuned for.

    Every process of a model sharded by fully_shard calls it; the first one writes. Raises SparsifyError for an option
    that the format does not take, a model that it cannot hold and a path that cannot be written, RunError for a full
    disk. Warns (ScheduleWarning) if the model's pruner has updates left.
    """
    warn_of_schedule(model, stacklevel=3)  # the caller of the decorated function
    about = {"spec": spec, "arguments": arguments, "recipe": recipe, "seeds": seeds, "metrics": metrics, "extra": extra}
    options: dict[str, Any] = {"dtype": dtype, "cuts": cuts, "example_input": example_input}
    options |= {"batch_size": batch_size, "threads": threads, "dynamic_shapes": dynamic_shapes}
    return write(model, path, format, about, options).size


def write(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: str,
    about: Mapping[str, Any],
    options: Mapping[str, Any],
) -> ExportResult:
    """As `save`, with its arguments in two mappings; return the size and the notes."""
    from .. import __version__

    given = {name: value for name, value in options.items() if value is not None}
    row = check_format(format, given, where="save")
    if "dtype" in given:
        given["dtype"] = str(given["dtype"]).removeprefix("torch.")
        if given["dtype"] not in CASTS:
            raise unknown("dtype", given["dtype"], CASTS, where="save")
    known = {key: value for key, value in about.items() if value is not None}
    if hasattr(known.get("recipe"), "to_yaml"):
        known["recipe"] = known["recipe"].to_yaml()
    known["arguments"] = {k: v for k, v in known.get("arguments", {}).items() if k not in NOT_ARGUMENTS}
    if known.get("spec", "").startswith(f"{PREFIX}:"):  # the configuration goes into the file
        known["arguments"] = portable(known["spec"].partition(":")[2], known["arguments"])
    metadata = Metadata(format=format, cast=given.get("dtype"), writer=__version__, **known)
    check_place(row, path)
    inner = unwrap(model)
    if sharded_name(inner):
        return _write_shards(inner, path, format, metadata, given)
    written = row.write(ExportRequest(inner, path, metadata, **given))
    how = metadata.extra.get(KEY)
    if how is None or row.folder or format == "masks":
        return written
    atomic_write(beside(path), json.dumps(how, indent=2).encode() + b"\n")
    return written._replace(notes=(*written.notes, f"{beside(path)}: how an image becomes its input"))


def _write_shards(
    model: nn.Module, path: str | os.PathLike[str], format: str, metadata: Metadata, given: Mapping[str, Any]
) -> ExportResult:
    """Write a model sharded by fully_shard: all processes take part, the first writes."""
    if format not in _OF_SHARDS:
        raise SparsifyError(
            f"save: format '{format}' takes no model that fully_shard has cut (those are {', '.join(_OF_SHARDS)}); "
            "save it as sparse, and export the file"
        )
    ranks = joined_ranks(model)
    written = None
    with whole_state(model, keep=ranks.first), ranks.together():
        if ranks.first:
            written = FORMATS[format].write(ExportRequest(model, path, metadata, **given))
    result: ExportResult = ranks.of_first(written)
    return result
