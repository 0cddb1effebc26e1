"""sparsify makes PyTorch models sparse, and makes the sparsity pay.

The public names below are imported when first used (PEP 562), so that `import sparsify` and the command line's
`--help` need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import report as report
    from .calls import Inputs as Inputs
    from .errors import SparsifyError as SparsifyError
    from .export.import_weights import import_weights as import_weights
    from .export.save import load as load
    from .export.save import save as save
    from .formats.model.masks import load_masks as load_masks
    from .model_summary import summary as summary
    from .models import build_model as build_model
    from .pruning.criteria.table import needs_data as needs_data
    from .pruning.pruner import Pruner as Pruner
    from .pruning.remove import remove as remove
    from .runtime.compile import compile as compile
    from .runtime.semi_structured import to_semi_structured as to_semi_structured
    from .surgery.channels.analyse import analyse as analyse
    from .surgery.conversion.convert import convert as convert
    from .surgery.conversion.fold import fold as fold
    from .surgery.conversion.mask_extra import mask_also as mask_also
    from .surgery.mask_state.masks import get_masks as get_masks
    from .surgery.mask_state.masks import set_masks as set_masks
    from .surgery.mask_state.sync import sync_masks as sync_masks
    from .surgery.shrink.optimizer_state import cut_optimizer as cut_optimizer
    from .surgery.shrink.optimizer_state import cut_state as cut_state
    from .surgery.shrink.shrink import shrink as shrink
    from .surgery.tracing.whole_model import trace as trace
    from .surgery.verification.verify import verify as verify
    from .training.loop.recalibrate import recalibrate_batch_norm as recalibrate_batch_norm
    from .training.recipe.read import Recipe as Recipe
    from .training.recipe.read import read_recipe as read_recipe
    from .training.run.train import train as train

__version__ = "0.1.0"

_HOME = {
    "Inputs": ".calls",
    "Pruner": ".pruning.pruner",
    "Recipe": ".training.recipe.read",
    "SparsifyError": ".errors",
    "analyse": ".surgery.channels.analyse",
    "build_model": ".models",
    "compile": ".runtime.compile",
    "convert": ".surgery.conversion.convert",
    "cut_optimizer": ".surgery.shrink.optimizer_state",
    "cut_state": ".surgery.shrink.optimizer_state",
    "fold": ".surgery.conversion.fold",
    "get_masks": ".surgery.mask_state.masks",
    "import_weights": ".export.import_weights",
    "load": ".export.save",
    "load_masks": ".formats.model.masks",
    "mask_also": ".surgery.conversion.mask_extra",
    "needs_data": ".pruning.criteria.table",
    "recalibrate_batch_norm": ".training.loop.recalibrate",
    "read_recipe": ".training.recipe.read",
    "remove": ".pruning.remove",
    "save": ".export.save",
    "set_masks": ".surgery.mask_state.masks",
    "shrink": ".surgery.shrink.shrink",
    "summary": ".model_summary",
    "sync_masks": ".surgery.mask_state.sync",
    "to_semi_structured": ".runtime.semi_structured",
    "trace": ".surgery.tracing.whole_model",
    "train": ".training.run.train",
    "verify": ".surgery.verification.verify",
}

__all__ = sorted(_HOME)
_ROOMS = ("report",)  # whose own names are public


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify' has no attribute '{name}'")
    from .namesake import warn_of_namesake

    warn_of_namesake()
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_ROOMS])
