"""Masks of averaged models: a copy that was averaged takes the masks of the model that it is a copy of.

torch's AveragedModel, timm's EMA and the like copy a model and then write weighted sums into the copy in place. Of bool
masks these come out as unions. Each masked module remembers, by weak reference, which module it is a copy of. If its
mask *and* its parameter were written to since, by none of sparsify's functions, and the mask keeps all that the one of
the source keeps, it was averaged, and takes that when it is next used. A copy that is trained, loaded into or pruned by
itself is left alone.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SparsifyError
from .averages import hide_masks_from_averages

_COPIED = copy.deepcopy(torch.ones(1, dtype=torch.bool))._version  # what a deep copy's version counter says at first


class MaskSource:
    """Where one module's masks come from while nobody but an average writes to them; in the module's `__dict__`."""

    def __init__(self, owner: nn.Module | None = None, source: nn.Module | None = None) -> None:
        self.owner = None if owner is None else weakref.ref(owner)
        self.source = None if source is None else weakref.ref(source)
        self.seen: dict[str, tuple[int, int, int]] = {}  # mask's id and version, parameter's version

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskSource:
        hide_masks_from_averages()  # each begins with a copy
        owner = None if self.owner is None else self.owner()
        return MaskSource(memo.get(id(owner)), owner)

    def __reduce__(self) -> Any:
        return MaskSource, ()


def remember_source(module: nn.Module) -> None:
    """Have copies of a module that carries masks know it."""
    module.__dict__.setdefault("mask_source", MaskSource(module))


def release(module: nn.Module) -> None:
    """Have a module's masks be its own from now on, since sparsify has written to them."""
    module.__dict__["mask_source"] = MaskSource(module)


def take_averaged_masks(module: nn.Module, names: tuple[str, ...]) -> None:
    """Give a module that was averaged the masks of the module that it is a copy of, in place."""
    link: MaskSource | None = module.__dict__.get("mask_source")
    if link is None or link.source is None or torch.compiler.is_compiling():
        return
    source = link.source()
    for name in names:
        parameter, mask = module._parameters.get(name), module._buffers.get(f"{name}_mask")
        if parameter is None or mask is None or mask.is_inference() or parameter.is_inference():
            continue
        before = link.seen.get(name, (id(mask), _COPIED, 0))
        if before[0] == id(mask) and mask._version != before[1] and parameter._version != before[2]:
            _take(mask, None if source is None else source._buffers.get(f"{name}_mask"))
        link.seen[name] = (id(mask), mask._version, parameter._version)


def _take(mask: Tensor, live: Tensor | None) -> None:
    if live is None or live.shape != mask.shape:
        return
    wanted = live.detach().to(mask.device)
    if bool((mask | ~wanted).all()):
        with torch.no_grad():
            mask.copy_(wanted)


def sync_masks(average: nn.Module, live: nn.Module) -> None:
    """Copy all masks of `live` to `average`, an average of it that some other library has made, in place.

    Wrappers' prefixes (`module.`) are looked through on both sides. Averages by torch.optim.swa_utils and timm need no
    such call. Raises SparsifyError, with nothing changed, if the two models do not carry the same masks.
    """
    from .masks import get_masks, set_masks

    inner, source = _with_masks(average), _with_masks(live)
    masks, own = get_masks(source), get_masks(inner)
    if not masks:
        raise SparsifyError("sync_masks: the live model carries no masks; call sparsify.convert on it first")
    missing = [name for name in masks if name not in own] + [name for name in own if name not in masks]
    if missing:
        where = "average" if missing[0] in masks else "live model"
        raise SparsifyError(f"sync_masks: '{missing[0]}' carries no mask in the {where}: average a converted model")
    set_masks(inner, {name: mask.to(own[name].device) for name, mask in masks.items()})


def _with_masks(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers such as AveragedModel and DistributedDataParallel."""
    for inner in _unwrapped(model):
        if any(not key.startswith("module.") for key in inner._parameters) or not hasattr(inner, "module"):
            return inner
    return model


def _unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    while True:
        yield model
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return
        model = inner
