"""Unwrap models from torch.compile, data parallelism and averages."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim.swa_utils import AveragedModel

# AveragedModel counts its updates beside the weights.
COUNTERS = frozenset({"n_averaged"})
# DistributedDataParallel, AveragedModel and timm's ModelEmaV3; torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
_TIMM = "timm.utils.model_ema"


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile, (distributed) data parallelism and averages, however they are nested.

    Averages are torch's AveragedModel and the three versions of timm's ModelEma, the first of which is not a module.
    """
    inner = getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return unwrap(inner)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel | AveragedModel) or _is_timm(model):
        return unwrap(model.module if hasattr(model, "module") else model.ema)  # type: ignore[arg-type]
    return model


def wrapper_prefix(keys: Iterable[str]) -> str:
    """Return the wrapper prefix ("module._orig_mod.") that all keys of a state dict share, counters aside, or ""."""
    names = [key for key in keys if key not in COUNTERS]
    prefix = ""
    while more := next((one for one in _PREFIXES if names and all(n.startswith(prefix + one) for n in names)), None):
        prefix += more
    return prefix


def _is_timm(model: object) -> bool:
    names = {(cls.__module__, cls.__name__) for cls in type(model).__mro__}
    return any((_TIMM, f"ModelEma{version}") in names for version in ("", "V2", "V3"))
