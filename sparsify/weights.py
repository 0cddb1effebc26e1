"""Load weights from files and state dicts: strictly, except for a head of another size, which is reported."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import SparsifyError, listed, one_line, text_in
from .surgery.mask_state.masks import all_masked_parameters
from .surgery.unwrap import COUNTERS, wrapper_prefix

# Where training scripts put the weights within a checkpoint; averaged ones first, as timm does when it loads them.
_CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")
_SLACK = 1_000_000
_MOST_TENSORS = 200_000  # the same limit as for files of this library


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: state-dict keys `loaded`, a head's keys `reinitialised`, a file's other keys `ignored`.

    `source` names the part of a checkpoint that held the weights, "" for a plain one; `prefix` is the prefix removed
    from its keys; `masks` counts the parameters with masks.
    """

    loaded: list[str]
    reinitialised: list[str]
    ignored: list[str]
    source: str
    prefix: str = ""
    masks: int = 0


def load_checkpoint(model: nn.Module, path: str | Path) -> LoadReport:
    """Load the weights in the file `path` into `model` in place and return what was loaded.

    The file is safetensors, or one of torch that holds tensors only (nothing in it is executed): a state dict, plain or
    under one of the usual keys (state_dict, model, their averaged forms), with or without the prefixes of
    DistributedDataParallel and torch.compile. Raises SparsifyError for another kind of file and, with the keys, for
    weights that do not fit.
    """
    state, source, ignored = read_weights(path)
    state, prefix = drop_prefix(state, model.state_dict())
    try:
        report = load_state(model, state, source=str(path))
    except SparsifyError as error:
        if not _is_cut(Path(path)):
            raise
        raise SparsifyError(f"{error}; the file is of a model that was cut: sparsify.load builds that") from None
    return LoadReport(report.loaded, report.reinitialised, ignored, source, prefix)


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "state dict") -> LoadReport:
    """Load `state` into `model` in place and return what was loaded; `source` names it in errors.

    Every key must be present with its shape, except that masks may be missing (they stay) and that a head for another
    number of classes keeps its values: the tensors that differ do so only in their first dimension, by the same
    ratio. Raises SparsifyError that lists the keys that do not fit; the model is unchanged then.
    """
    own = model.state_dict()
    masks = {f"{weight.name}_mask" for weight in all_masked_parameters(model)}
    missing = [key for key in own if key not in state and key not in masks]
    unexpected = [key for key in state if key not in own]
    differing = [key for key in own if key in state and own[key].shape != state[key].shape]
    head = differing if _is_head([(state[key], own[key]) for key in differing]) else []
    if missing or unexpected or len(head) < len(differing):
        shapes = [f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in differing]
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        problems = "; ".join(f"{what}: {listed(keys, 10)}" for what, keys in parts if keys)
        if found := _likely_prefix(state, own):
            problems += f"; of its keys {found[1]:,} are the model's behind '{found[0]}': save those alone, without it"
        raise SparsifyError(f"{source}: the weights do not fit the model: {problems}")
    fitting = {key: value for key, value in state.items() if key not in head}
    model.load_state_dict(fitting, strict=False)
    return LoadReport(list(fitting), head, [], "")


def drop_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return `state` without a prefix of all its keys ("model.", "net.") if the rest are those of `own`."""
    found = _likely_prefix(state, own)
    if found is None or not all(key.startswith(found[0]) for key in state):
        return dict(state), ""
    return {key.removeprefix(found[0]): value for key, value in state.items()}, found[0]


def split_masks(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and masks (bool, by weight) of a state dict with `NAME_mask` beside NAME or NAME_orig.

    Masked models write the former, torch.nn.utils.prune the latter. Values other than 0 and 1 are no mask.
    """
    masks: dict[str, Tensor] = {}
    left = dict(state)
    for key, mask in state.items():
        name = key.removesuffix("_mask")
        kept = next((one for one in (f"{name}_orig", name) if one in state), None)
        if (
            name == key
            or kept is None
            or state[kept].shape != mask.shape
            or not bool(((mask == 0) | (mask == 1)).all())
        ):
            continue
        masks[name] = mask.bool()
        del left[key]
        left = {name if one == kept else one: value for one, value in left.items()}
    return left, masks


def _likely_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Return the prefix that most keys of `state` have before those of `own`, and how many do; None if few."""
    first = next(iter(own), "")
    prefixes = {key.removesuffix(first) for key in state if first and key.endswith(f".{first}")}
    counts = {prefix: sum(f"{prefix}{key}" in state for key in own) for prefix in prefixes}
    best = max(counts, key=lambda prefix: counts[prefix], default="")
    return (best, counts[best]) if best and 2 * counts[best] > len(own) else None


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Return the state dict in a file, the part of the file that held it, and the other keys, ignored.

    Wrappers' prefixes are removed. Raises SparsifyError if the file is missing, damaged or holds no state dict.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise SparsifyError(f"{path}: no such checkpoint")
    if not os.access(path, os.R_OK):
        # The libraries would report it as missing or damaged.
        raise SparsifyError(f"{path}: may not be read (permission denied)")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    found, source = _unwrapped(content)
    if found is None:
        keys = listed([str(key) for key in content], 10) if isinstance(content, Mapping) else type(content).__name__
        raise SparsifyError(
            f"{path}: holds no state dict (known keys: {', '.join(_CONTAINERS)}); it holds {keys or 'nothing'}"
        )
    state = {key: value for key, value in found.items() if isinstance(value, Tensor) and key not in COUNTERS}
    ignored = [key for key in found if key not in state]
    prefix = wrapper_prefix(state)
    return {key.removeprefix(prefix): value for key, value in state.items()}, source, ignored


def _unwrapped(content: Any) -> tuple[Mapping[str, Any] | None, str]:
    if not isinstance(content, Mapping):
        return None, ""
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping) and content[key]:
            inner, source = _unwrapped(content[key])
            return inner, f"{key}.{source}" if source else key
    is_state = any(isinstance(value, Tensor) for value in content.values()) and all(
        isinstance(key, str) for key in content
    )
    return (content, "") if is_state else (None, "")


def _is_head(pairs: list[tuple[Tensor, Tensor]]) -> bool:
    """Return whether tensors differ only as heads for another number of classes do.

    A hidden layer of another width would also change the second dimension of the next layer.
    """
    ratios = {
        (given.shape[0] / own.shape[0] if given.ndim and given.shape[1:] == own.shape[1:] else None)
        for given, own in pairs
    }
    return len(ratios) <= 1 and None not in ratios


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "sparsify_checkpoint" in metadata:
                raise SparsifyError(f"{path}: the checkpoint of a run, not plain weights; export the run instead")
            if metadata.get("format") == "sparsify":
                raise SparsifyError(
                    f"{path}: a sparse file, not plain weights; read it with sparsify.load, or make it plain with: "
                    f"sparsify export {quote(str(path))} --format dense --out FILE"
                )
            if metadata.get("format") == "sparsify-masks":
                raise SparsifyError(f"{path}: masks alone, without weights; to put them on a model: convert --masks")
            names = file.keys()
            if len(names) > _MOST_TENSORS:
                raise SparsifyError(f"{path}: no model's file: more than {_MOST_TENSORS:,} tensors")
            return {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError) as error:
        what = f"but {text}" if (text := text_in(path)) else f"or a damaged one ({one_line(error, 160)})"
        raise SparsifyError(f"{path}: not a safetensors file, {what}") from None


def _is_cut(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, framework="pt") as file:
        return "cuts" in (file.metadata() or {})


def _read_torch(path: Path) -> Any:
    _check_unpacked(path)
    try:
        # timm and many scripts store their command line with the weights; a Namespace is a plain record.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # A plain pickle is refused or read like any other file; torch warns first.
            warnings.filterwarnings("ignore", message="Detected pickle protocol|'torch.load' received a zip file")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        text = text_in(path)
        raise SparsifyError(f"{path}: {f'not a torch file, but {text}' if text else _refusal(error)}") from None


def _refusal(error: Exception) -> str:
    """Return why torch did not read a file, without torch's advice how to run the code in it anyway."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        return (
            f"refused, since it is no torch file or holds more than tensors{what}, which could run code; "
            "save model.state_dict() instead"
        )
    reason = one_line(error, 160).partition(". ")[0]
    return f"not a torch file, or a damaged one{f' ({reason})' if reason else ''}"


def _check_unpacked(path: Path) -> None:
    """Raise SparsifyError for an archive whose content is larger than the file: torch never compresses."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # torch reports what is wrong with it
    if size > 2 * path.stat().st_size + _SLACK:
        raise SparsifyError(f"{path}: refused: a compressed archive of {size:,} bytes; torch.save compresses nothing")
