"""Export to a folder for the Hugging Face hub: config.json, the sparse file and a model card (docs/hub.md)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets import normalised_by_timm
from ..errors import SparsifyError
from ..formats.file.container import read_header
from ..formats.file.inspection import FileSummary, inspect_file
from ..formats.io.atomic import atomic_write
from ..formats.io.atomic_folder import atomic_folder
from ..formats.io.locate import MODEL_FILE
from ..formats.request import ExportRequest, ExportResult
from ..preprocess import class_names
from .model_card import card, trained_on

if TYPE_CHECKING:
    from torch import nn

CONFIG, CARD = "config.json", "README.md"
# Keys of timm's configuration about the model itself, and about the images it was trained on.
_OF_THE_MODEL = ("fixed_input_size", "min_input_size", "pool_size", "first_conv", "classifier")
_OF_ITS_IMAGES = ("interpolation", "crop_pct", "crop_mode", "mean", "std")
_SEAL = "<!-- written by sparsify, {} -->\n"


def write_hub(request: ExportRequest) -> ExportResult:
    """Write the folder, whole or not at all; an older one is replaced if it is unchanged since it was written."""
    # Imports torch, which checking a path does not need.
    from ..formats.model.write import write_sparse

    with atomic_folder(request.path, ours=is_as_written) as folder:
        metadata = replace(request.metadata, format="sparse")
        size = write_sparse(replace(request, path=folder / MODEL_FILE, metadata=metadata)).size
        saved = inspect_file(folder / MODEL_FILE)
        config = json.dumps(_config(request.model, saved), indent=2).encode() + b"\n"
        text = card(saved).encode()
        size += atomic_write(folder / CONFIG, config)
        size += atomic_write(folder / CARD, text + _seal(text, config, folder / MODEL_FILE))
    return ExportResult(size, (f"put it on the hub with: hf upload OWNER/NAME {request.path}",))


def is_as_written(folder: Path) -> bool:
    """Return whether `folder` holds exactly what `write_hub` wrote, unchanged."""
    if {path.name for path in folder.iterdir()} != {CONFIG, CARD, MODEL_FILE}:
        return False
    try:
        lines = (folder / CARD).read_bytes().splitlines(keepends=True)
        text, config = b"".join(lines[:-1]), (folder / CONFIG).read_bytes()
        return lines[-1:] == [_seal(text, config, folder / MODEL_FILE)]
    except (OSError, SparsifyError):
        return False


def _seal(text: bytes, config: bytes, model: Path) -> bytes:
    """Return the card's last line: a checksum of the folder, by which an unchanged folder is recognised."""
    # The checksum of the file's header covers those of its tensors.
    header = read_header(model).metadata.get("header_crc32", "")
    return _SEAL.format(f"{zlib.crc32(text + config + header.encode()):08x}").encode()


def _config(model: nn.Module, saved: FileSummary) -> dict[str, Any]:
    """Return the contents of config.json: timm's keys for a model of timm, and `sparsify` for `load`."""
    about = saved.metadata
    shape = about.extra.get("input_shape")
    classes = about.arguments.get("num_classes", getattr(model, "num_classes", None))
    config: dict[str, Any] = {"architecture": about.spec or type(model).__name__}
    if classes is not None:
        config["num_classes"] = classes
    published = getattr(model, "pretrained_cfg", None)
    if (about.spec or "").startswith("timm:") and isinstance(published, Mapping):
        config |= _timm_config(model, published, saved)
    config["sparsify"] = {
        "file": MODEL_FILE,
        "spec": about.spec,
        "arguments": dict(about.arguments),
        "input_shape": shape,
        "sparsity": saved.sparsity,
        "masked_weights": saved.masked_entries,
        "kept": saved.kept,
        "numbers": saved.entries,
        "cut": saved.original_entries != saved.entries,
        "dtype": about.cast,
        "writer": about.writer,
    }
    return config


def _timm_config(model: nn.Module, published: Mapping[str, Any], saved: FileSummary) -> dict[str, Any]:
    """Return the keys by which timm builds the architecture (`timm.create_model("hf-hub:OWNER/NAME")`)."""
    about = saved.metadata
    data = trained_on(about)
    keys = _OF_THE_MODEL + _OF_ITS_IMAGES if data is None or normalised_by_timm(data) else _OF_THE_MODEL
    weights = {key: published[key] for key in keys if published.get(key) is not None}
    shape = about.extra.get("input_shape") or published.get("input_size")
    pool = getattr(model, "global_pool", None)
    found = {
        "architecture": published.get("architecture") or about.spec,
        "label_names": class_names(about.extra) or None,
        "num_features": getattr(model, "num_features", None),
        "global_pool": pool if isinstance(pool, str) else getattr(pool, "pool_type", None),
        "model_args": {key: value for key, value in about.arguments.items() if key != "num_classes"} or None,
    }
    weights |= {"input_size": shape, "num_classes": getattr(model, "num_classes", None)}
    return {key: value for key, value in found.items() if value is not None} | {"pretrained_cfg": weights}
