"""Pruning in other trainers: Hugging Face's, Lightning's, and custom loops such as timm's.

The names below are imported when first used: `import sparsify` needs none of the trainers, and each name only its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import SparsifyError

if TYPE_CHECKING:
    from .huggingface import HuggingFaceCallback as HuggingFaceCallback
    from .lightning import LightningCallback as LightningCallback
    from .loop import LoopPruning as LoopPruning

_HOME = {"HuggingFaceCallback": ".huggingface", "LightningCallback": ".lightning", "LoopPruning": ".loop"}
_EXTRAS = {".huggingface": ("transformers", "hf"), ".lightning": ("lightning", "lightning")}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sparsify.integrations' has no attribute '{name}'")
    home = _HOME[name]
    try:
        value = getattr(import_module(home, __name__), name)
    except ModuleNotFoundError as error:
        package, extra = _EXTRAS.get(home, ("", ""))
        if not package or (error.name or "").partition(".")[0] not in (package, "pytorch_lightning"):
            raise
        text = f"{name} needs {package}, which is not installed: pip install 'sparsify-torch[{extra}]'"
        raise SparsifyError(text) from None
    globals()[name] = value
    return value
