"""Bar charts by layer: sparsity, parameters and multiply-adds, kept and removed."""

from __future__ import annotations

from typing import Any

from ..layer_records import Layers
from .charts import BLUE, Figure, altair, chart

MOST = 40  # the most bars; layers with the most parameters come first
_STEP = 16  # a bar's height in pixels
_GONE = "rgba(138, 143, 152, 0.4)"


def layer_sparsity(layers: Layers) -> Figure:
    """Return a bar chart of the layers' sparsities."""
    alt = altair()
    rows = [{"layer": layer.name, "sparsity": layer.sparsity} for layer in _shown(layers)]
    x = alt.X("sparsity:Q", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]), title="removed")
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("sparsity:Q", format=".2%")]
    bars = chart(rows).mark_bar(color=BLUE).encode(x=x, y=_names(alt), tooltip=tips)
    return bars.properties(height=_STEP * len(rows))


def layer_parameters(layers: Layers) -> Figure:
    """Return a bar chart of the layers' parameters, kept and removed."""
    return _stacked([(layer.name, layer.kept, layer.parameters) for layer in _shown(layers)], "parameters")


def layer_multiply_adds(layers: Layers) -> Figure | None:
    """Return a bar chart of the layers' multiply-adds, kept and removed; None if they are unknown."""
    known = [
        (layer.name, layer.kept_multiply_adds, layer.multiply_adds)
        for layer in _shown(layers)
        if layer.multiply_adds is not None and layer.kept_multiply_adds is not None
    ]
    return _stacked(known, "multiply-adds") if known else None


def _stacked(counts: list[tuple[str, int, int]], what: str) -> Figure:
    alt = altair()
    rows: list[dict[str, Any]] = []
    for name, kept, size in counts:
        rows += [
            {"layer": name, "count": kept, "what": "kept"},
            {"layer": name, "count": size - kept, "what": "removed"},
        ]
    colour = alt.Color("what:N", scale=alt.Scale(domain=["kept", "removed"], range=[BLUE, _GONE]), title=None)
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("what:N"), alt.Tooltip("count:Q", format=",")]
    x = alt.X("count:Q", axis=alt.Axis(format="~s", tickCount=5), title=what)
    bars = chart(rows).mark_bar().encode(x=x, y=_names(alt), color=colour, tooltip=tips)
    return bars.properties(height=_STEP * len(counts))


def _names(alt: Any) -> Any:
    return alt.Y("layer:N", sort=None, title=None)


def _shown(layers: Layers) -> list[Any]:
    largest = sorted(layers.layers, key=lambda layer: -layer.parameters)[:MOST]
    return [layer for layer in layers.layers if layer in largest]
