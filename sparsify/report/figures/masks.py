"""Figures of the overlap of masks: between the cycles of a run, and by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from ...overlap import LayerOverlap, Masks, iou, overlap_by_layer
from ..run_records import Run
from .charts import BLUE, Figure, altair, chart

MOST = 60  # the most layers of a heat map
_CELL = 42
_ROW = 16


def cycle_masks(run: Run) -> dict[int, Masks]:
    """Return {cycle number: masks at the end of the cycle} of a run."""
    from ...formats.model.masks import load_masks

    return {number: load_masks(path) for number, path in run.masks.items()}


def cycle_overlap(masks: Mapping[int, Masks]) -> Figure:
    """Return a heat map of the intersection over union of the masks of every two cycles."""
    alt = altair()
    rows = [
        {"one": f"cycle {one}", "other": f"cycle {other}", "iou": iou(masks[one], masks[other])}
        for one, other in product(masks, masks)
    ]
    x, y = alt.X("one:N", sort=None, title=None, axis=alt.Axis(labelAngle=0)), alt.Y("other:N", sort=None, title=None)
    tips = [alt.Tooltip("one:N"), alt.Tooltip("other:N")]
    return _heat_map(rows, x, y, tips, _CELL * len(masks))


def layer_overlap(masks: Mapping[int, Masks]) -> Figure:
    """Return a heat map of the intersection over union of each layer's masks in consecutive cycles."""
    alt = altair()
    rows: list[dict[str, Any]] = []
    for one, other in pairwise(masks):
        found = overlap_by_layer(masks[one], masks[other])[:MOST]
        rows += [{"layer": row.name, "pair": f"{one} and {other}", "iou": row.iou} for row in found]
    x = alt.X("pair:N", sort=None, title="cycles", axis=alt.Axis(labelAngle=0))
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("pair:N", title="cycles")]
    height = _ROW * len({row["layer"] for row in rows})
    return _heat_map(rows, x, alt.Y("layer:N", sort=None, title=None), tips, height, fontSize=10)


def mask_difference(rows: Sequence[LayerOverlap]) -> Figure:
    """Return a bar chart of the intersection over union of two models' masks by layer, from `overlap_by_layer`."""
    alt = altair()
    x = alt.X("iou:Q", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]), title="intersection over union")
    bars = chart([{"layer": row.name, "iou": row.iou} for row in rows]).mark_bar(color=BLUE)
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("iou:Q", format=".1%")]
    return bars.encode(x=x, y=alt.Y("layer:N", sort=None, title=None), tooltip=tips).properties(height=_ROW * len(rows))


def _heat_map(rows: list[dict[str, Any]], x: Any, y: Any, tips: list[Any], height: int, **text: Any) -> Figure:
    """Return the cells of `rows`, coloured by their "iou", with that number in each; `text` is the number's style."""
    alt = altair()
    base = chart(rows).encode(x=x, y=y, tooltip=[*tips, alt.Tooltip("iou:Q", format=".1%")])
    colour = alt.Color("iou:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None)
    contrast = alt.condition("datum.iou > 0.55", alt.value("white"), alt.value("#1b2733"))
    numbers = base.mark_text(**text).encode(text=alt.Text("iou:Q", format=".0%"), color=contrast)
    return alt.layer(base.mark_rect().encode(color=colour), numbers).properties(width="container", height=height)
