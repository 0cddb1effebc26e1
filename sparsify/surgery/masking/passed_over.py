"""Warnings for operations of other libraries that ignore masks, issued where a masked module can detect them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any

from torch import Tensor, nn

from ...errors import MaskWarning, SparsifyError, listed
from ..mask_state.masks import all_masked_parameters, names_of_masked

_ADVICE = "give it sparsify.fold(model) instead (docs/masks.md, 'Fold first')"
_FRAMES = 60  # between a module's part of state_dict() and the function that asked for it


class PassedOver:
    """Mixin of masked classes that emits a MaskWarning if a quantisation library sets up the module.

    It also refuses torch.jit.script, and torch.nn.utils.prune, which would replace the module's mask with its own.
    Where `to_empty` discards the values of tensors, the masks become all ones.
    """

    @property
    def qconfig(self) -> Any:
        """The configuration that torch.ao.quantization sets; it quantises plain torch.nn classes only."""
        try:
            return vars(self)["qconfig"]
        except KeyError:
            raise AttributeError("qconfig") from None

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        vars(self)["qconfig"] = value
        warn_passed_over("torch.ao.quantization leaves masked layers as they are", stacklevel=4)

    @qconfig.deleter
    def qconfig(self) -> None:
        vars(self).pop("qconfig", None)

    def __prepare_scriptable__(self) -> Any:
        """Raise SparsifyError: torch.jit.script calls this hook, and cannot compile a masked forward."""
        raise SparsifyError(f"torch.jit.script takes no masked {type(self).__name__}: {_ADVICE}")

    def register_buffer(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Register a buffer; refuse torch.nn.utils.prune, which then undoes its changes, to replace a mask."""
        by_prune = sys._getframe(1).f_globals.get("__name__") == "torch.nn.utils.prune"
        if by_prune and name in [f"{masked}_mask" for masked in names_of_masked(self)]:  # type: ignore[arg-type]
            raise SparsifyError(
                f"{type(self).__name__}.{name} is the mask of a converted weight, which torch.nn.utils.prune would "
                "replace: use sparsify.set_masks, or sparsify.fold(model) first"
            )
        super().register_buffer(name, *args, **kwargs)  # type: ignore[misc]

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply `fn` as nn.Module does, then set masks to ones if `to_empty` or a move from meta left no values."""
        names = [f"{name}_mask" for name in names_of_masked(self)]  # type: ignore[arg-type]
        masks = {name: mask for name in names if (mask := self._buffers.get(name)) is not None}  # type: ignore[attr-defined]
        emptied = "to_empty" in getattr(fn, "__qualname__", "")
        before = [name for name, mask in masks.items() if emptied or mask.is_meta]
        result = super()._apply(fn, *args, **kwargs)  # type: ignore[misc]
        for name in before:
            self._buffers[name].fill_(True)  # type: ignore[attr-defined]
        return result

    def register_parameter(self, name: str, param: Any) -> None:
        """Register a parameter; warn if torchao replaces a weight by its quantised dense values."""
        if isinstance(param, Tensor) and type(param).__module__.partition(".")[0] == "torchao":
            warn_passed_over("torchao quantises the dense values under the masks", stacklevel=4)
        super().register_parameter(name, param)  # type: ignore[misc]


def warn_passed_over(what: str, stacklevel: int) -> None:
    """Emit a MaskWarning that `what` happened, with advice on what to do instead."""
    warnings.warn(f"{what}: {_ADVICE}", MaskWarning, stacklevel=stacklevel)


def warn_of_save_pretrained(written: Iterable[str]) -> None:
    """Warn if a function called `save_pretrained` asked for the state dict, once per call: before its first mask.

    No warning for a trainer's checkpoint, which resumes with the masks, nor if all removed weights are stored as zero.
    `written` are the keys written so far.
    """
    if any(name.endswith("_mask") for name in written):
        return
    found = _caller("save_pretrained")
    if found is not None and _caller("_save_checkpoint") is None and not _is_zeroed(found[0].f_locals.get("self")):
        warn_passed_over("save_pretrained writes the dense values, and masks that it does not load", found[1] + 1)


def _is_zeroed(model: Any) -> bool:
    """Return whether the masks of a model remove entries, and all removed entries are zero in the stored parameters."""
    weights = list(all_masked_parameters(model)) if isinstance(model, nn.Module) else []
    removed = [weight for weight in weights if not bool(weight.mask.all())]
    return bool(removed) and not any(bool(weight.parameter[~weight.mask].any()) for weight in removed)


def _caller(name: str) -> tuple[FrameType, int] | None:
    """Return the innermost calling frame of a function of this name and its level above the caller's, or None."""
    frame = sys._getframe(1)
    for level in range(1, _FRAMES):
        if frame.f_code.co_name == name:
            return frame, level
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def warn_of_masks_left_out(given: Iterable[str], expected: Iterable[str]) -> None:
    """Warn about masks in a state dict that load_state_dict(strict=False) drops, since the model has no such buffer."""
    found = _caller("load_state_dict")  # a module's own hooks always get strict=True
    if found is None or found[0].f_locals.get("strict", True):
        return  # with strict=True they are an error
    places = set(expected)
    left = sorted(name for name in given if name.endswith("_mask") and name not in places)
    if left:
        warnings.warn(
            f"load_state_dict(strict=False) leaves out {listed(left, 1)}: the model has no masks there; "
            "sparsify.convert puts them on",
            MaskWarning,
            stacklevel=found[1] + 1,
        )
