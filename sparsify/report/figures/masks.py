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
    tips = [alt.Tooltip("one:N"), alt.Tooltip("other:N"), alt.Tooltip("iou:Q", format=".1%")]
    base = chart(rows).encode(x=x, y=y, tooltip=tips)
    text = base.mark_text().encode(text=alt.Text("iou:Q", format=".0%"), color=_contrast(alt))
    return alt.layer(base.mark_rect().encode(color=_shade(alt)), text).properties(
        width="container", height=_CELL * len(masks)
    )


def layer_overlap(masks: Mapping[int, Masks]) -> Figure:
    """Return a heat map of the intersection over union of each layer's masks in consecutive cycles."""
    rows: list[dict[str, Any]] = []
    for one, other in pairwise(masks):
        found = overlap_by_layer(masks[one], masks[other])[:MOST]
        rows += [{"layer": row.name, "pair": f"{one} and {other}", "iou": row.iou} for row in found]
    return _by_layer(rows, "cycles")


def mask_difference(rows: Sequence[LayerOverlap]) -> Figure:
    """Return a bar chart of the intersection over union of two models' masks by layer, from `overlap_by_layer`."""
    alt = altair()
    x = alt.X("iou:Q", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]), title="intersection over union")
    bars = chart([{"layer": row.name, "iou": row.iou} for row in rows]).mark_bar(color=BLUE)
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("iou:Q", format=".1%")]
    return bars.encode(x=x, y=alt.Y("layer:N", sort=None, title=None), tooltip=tips).properties(height=_ROW * len(rows))


def _by_layer(rows: list[dict[str, Any]], title: str) -> Figure:
    alt = altair()
    x = alt.X("pair:N", sort=None, title=title, axis=alt.Axis(labelAngle=0))
    y = alt.Y("layer:N", sort=None, title=None)
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("pair:N", title=title), alt.Tooltip("iou:Q", format=".1%")]
    base = chart(rows).encode(x=x, y=y, tooltip=tips)
    text = base.mark_text(fontSize=10).encode(text=alt.Text("iou:Q", format=".0%"), color=_contrast(alt))
    return alt.layer(base.mark_rect().encode(color=_shade(alt)), text).properties(
        width="container", height=_ROW * len({row["layer"] for row in rows})
    )


def _shade(alt: Any) -> Any:
    return alt.Color("iou:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None)


def _contrast(alt: Any) -> Any:
    return alt.condition("datum.iou > 0.55", alt.value("white"), alt.value("#1b2733"))
