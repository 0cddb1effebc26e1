"""Files of masks without weights, and putting them on a model (docs/masks.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from types import NoneType
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...arguments import PATH, takes
from ...errors import SparsifyError, did_you_mean
from ...quantities import sizes
from ...surgery.mask_state.masks import all_masked_parameters, masked_parameters, set_masks
from ...surgery.masking.masked_classes import detach_masks
from ...surgery.unwrap import unwrap
from ...transformers_models import CONFIG
from ..file.container import Part, container_chunks
from ..file.mask_file import FORMAT, SUFFIX, are_masks_alone, names_of_dense, read_masks, shortest, table_of
from ..file.metadata import Contents, metadata_text, read_contents
from ..io.atomic import atomic_write
from ..io.locate import model_file
from ..request import ExportRequest, ExportResult
from .dtypes import bits, from_bits
from .load import ensure_masked
from .model_state import collect, text_of_cuts
from .read import read_file


def write_masks(request: ExportRequest) -> ExportResult:
    """Write the masks of a model, those on biases and norms too, without its weights."""
    if text_of_cuts(request.model, None):
        raise SparsifyError(
            "save: masks: the model was cut smaller, so that its masks fit no fresh model of its class; "
            "save it with its weights (format 'sparse')"
        )
    state = collect(request.model)
    if not state.masks:
        raise SparsifyError("save: masks: the model carries no masks")
    parts: list[Part] = []
    table: dict[str, dict[str, Any]] = {}
    for name, mask in state.masks.items():
        flat, shape = bits(mask).view(np.bool_), tuple(mask.shape)
        encoding, stored = shortest(flat, shape)
        table[name] = {"encoding": encoding, "shape": shape, "kept": int(np.count_nonzero(flat))}
        if name in state.also:
            table[name]["also"] = True
        parts.append(Part(name + SUFFIX, "U8", stored.shape, stored.view))
    names = (name for name, _ in request.model.named_parameters(remove_duplicate=False))
    tables = {"masks": table, "dense": [name for name in names if name not in table]}
    text = metadata_text(request.metadata, {}, {}) | {"format": FORMAT}
    text |= {key: json.dumps(value, separators=(",", ":")) for key, value in tables.items()}
    return ExportResult(atomic_write(request.path, container_chunks(parts, text)))


@takes(path=PATH, model=(nn.Module, NoneType))
def load_masks(path: str | os.PathLike[str], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the masks in a file by parameter name: bool tensors, True = keep; no weights are loaded.

    `path` is a file of masks alone, a sparse file, a run's folder or "hf:OWNER/NAME". With a `model` the masks are put
    on it, in place, and its weights stay as they are; a plain model is converted first, so that exactly the file's
    masked parameters carry masks. Names and shapes must match.
    Raises SparsifyError, one line, for a file that is damaged or has no masks, and for a mask without a parameter in
    the model, of another shape, or on a parameter that cannot carry one; the model is then unchanged.
    """
    path = model_file(path)
    contents = read_contents(path)
    if are_masks_alone(contents):
        rows = {row.name: row for row in table_of(path, contents)}
        arrays = read_masks(path, contents)
        masks = {name: from_bits(mask.view(np.uint8), "BOOL", rows[name].shape) for name, mask in arrays.items()}
        also = {name for name, row in rows.items() if row.also}
        known = {*rows, *names_of_dense(path, contents)}
    else:
        (state, masks, _), _ = read_file(path)
        known = {*state}
        also = {name for name, entry in contents.masked.items() if entry.also}
    if not masks:
        raise SparsifyError(f"{path}: holds no masks")
    if model is not None:
        inner = unwrap(model)
        _check(os.fspath(path), inner, masks, known, contents)
        _put(os.fspath(path), inner, masks, also)
    return masks


def _check(
    path: str, model: nn.Module, masks: Mapping[str, Tensor], known: Collection[str], contents: Contents
) -> None:
    """Raise SparsifyError unless the model has the parameters of the masks' model, masked ones in their shapes.

    `known` names the tensors of that model. Every masked parameter of the model needs a mask in the file.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unknown = [name for name in masks if name not in parameters]
    if unknown:
        hint = did_you_mean(unknown[0], parameters)
        raise SparsifyError(f"{path}: {_of(len(unknown), masks)} no parameter in the model: '{unknown[0]}'{hint}")
    said = contents.metadata
    given = ", ".join(f"{key}={value}" for key, value in said.arguments.items() if key != CONFIG)
    built = f"; the masks are of {said.spec}{f' with {given}' if given else ''}" if said.spec else ""
    lacking = [name for name in parameters if name not in known]
    if lacking:
        raise SparsifyError(
            f"{path}: the masks are of a model without {_more(lacking)}, which the given one has{built}"
        )
    other = [name for name, mask in masks.items() if mask.shape != parameters[name].shape]
    if other:
        first, cut = other[0], ", which was cut smaller" if contents.cuts else ""
        raise SparsifyError(
            f"{path}: {_of(len(other), masks)} another shape than the parameter in the model: "
            f"'{first}' {sizes(masks[first].shape)} for {sizes(parameters[first].shape)}{built}{cut}"
        )
    in_file = {id(parameters[name]) for name in masks}
    bare = [name for name, weight in masked_parameters(model).items() if id(weight.parameter) not in in_file]
    if bare:
        raise SparsifyError(
            f"{path}: holds no mask for {_more(bare)}, masked in the model; give a plain model, or one masked alike"
        )


def _put(path: str, model: nn.Module, masks: Mapping[str, Tensor], also: Collection[str]) -> None:
    """Put checked masks on a model, which is unchanged if that fails."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weights = {id(parameters[name]) for name in masks if name not in also}
    plain = next(all_masked_parameters(model), None) is None
    try:
        # A weight with several names is masked under each of them.
        ensure_masked(
            path, model, {n for n, p in parameters.items() if id(p) in weights}, [n for n in masks if n in also]
        )
        set_masks(model, masks)
    except BaseException:
        if plain:
            for module in model.modules():
                detach_masks(module)
        raise


def _more(names: list[str]) -> str:
    return f"'{names[0]}'{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def _of(count: int, masks: Mapping[str, Tensor]) -> str:
    return f"{count} of {len(masks)} masks {'has' if count == 1 else 'have'}"
