"""Reports: a run's folder as frozen records, figures, and one HTML page about one or several runs.

The names below are imported when first used; figures need the extra `sparsify-torch[report]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import compare as compare
    from .figures.charts import save as save
    from .figures.comparison import accuracy_over_sparsity as accuracy_over_sparsity
    from .figures.comparison import paired_differences as paired_differences
    from .figures.costs import latency as latency
    from .figures.costs import sizes as sizes
    from .figures.curves import accuracy as accuracy
    from .figures.curves import loss as loss
    from .figures.layers import layer_multiply_adds as layer_multiply_adds
    from .figures.layers import layer_parameters as layer_parameters
    from .figures.layers import layer_sparsity as layer_sparsity
    from .figures.masks import cycle_masks as cycle_masks
    from .figures.masks import cycle_overlap as cycle_overlap
    from .figures.masks import layer_overlap as layer_overlap
    from .figures.masks import mask_difference as mask_difference
    from .layer_records import read_layers as read_layers
    from .page.write import write as write
    from .run_records import read_run as read_run

_HOME = {
    "accuracy": ".figures.curves",
    "accuracy_over_sparsity": ".figures.comparison",
    "compare": ".comparison",
    "cycle_masks": ".figures.masks",
    "cycle_overlap": ".figures.masks",
    "latency": ".figures.costs",
    "layer_multiply_adds": ".figures.layers",
    "layer_overlap": ".figures.masks",
    "layer_parameters": ".figures.layers",
    "layer_sparsity": ".figures.layers",
    "loss": ".figures.curves",
    "mask_difference": ".figures.masks",
    "paired_differences": ".figures.comparison",
    "read_layers": ".layer_records",
    "read_run": ".run_records",
    "save": ".figures.charts",
    "sizes": ".figures.costs",
    "write": ".page.write",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
