"""Figures of several runs: accuracy over sparsity, and paired differences with their confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence

from ..comparison import Cell
from .charts import BLUE, GREY, Figure, altair, chart

_HEIGHT = 300
_ROW = 30


def accuracy_over_sparsity(cells: Sequence[Cell]) -> Figure:
    """Return mean test accuracies over sparsity, one line per series with bars of one standard deviation.

    Points in the background show the seeds; a dense model is a dashed line.
    """
    alt = altair()
    pruned, dense = [cell for cell in cells if cell.sparsity], [cell for cell in cells if not cell.sparsity]
    rows = [
        {
            "series": cell.series,
            "sparsity": cell.sparsity,
            "mean": cell.reached.mean,
            "low": cell.reached.mean - (cell.reached.deviation or 0),
            "high": cell.reached.mean + (cell.reached.deviation or 0),
            "seeds": cell.reached.n,
        }
        for cell in sorted(pruned, key=lambda cell: cell.sparsity)
    ]
    single = [
        {"series": cell.series, "sparsity": cell.sparsity, "accuracy": value, "seed": seed}
        for cell in pruned
        for seed, value in cell.accuracy.items()
    ]
    zero = alt.Scale(zero=False, padding=12)
    x = alt.X("sparsity:Q", axis=alt.Axis(format="~%"), scale=zero, title="removed of the masked weights")
    y = alt.Y("mean:Q", axis=alt.Axis(format="~%"), scale=zero, title="test accuracy")
    colour = alt.Color("series:N", title=None, legend=alt.Legend(columns=1, labelLimit=320))
    tips = [alt.Tooltip("series:N"), *(alt.Tooltip(f"{key}:Q", format=".2%") for key in ("sparsity", "mean"))]
    base = chart(rows).encode(x=x, color=colour)
    layers = [
        chart(single)
        .mark_point(opacity=0.45, size=25)
        .encode(x=x, y=alt.Y("accuracy:Q", title="test accuracy"), color=colour, tooltip=["seed:N", "accuracy:Q"]),
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title="test accuracy"), y2="high:Q"),
        base.mark_line(point=alt.OverlayMarkDef(size=60, filled=True)).encode(y=y, tooltip=tips),
    ]
    if dense:
        means = [{"mean": cell.reached.mean, "what": cell.label} for cell in dense]
        rule = chart(means).mark_rule(strokeDash=[6, 4], color=GREY)
        layers.insert(0, rule.encode(y=y, tooltip=["what:N", alt.Tooltip("mean:Q", format=".2%")]))
    return alt.layer(*layers).properties(height=_HEIGHT, width="container")


def paired_differences(cells: Sequence[Cell]) -> Figure | None:
    """Return each cell's mean difference from the first over paired seeds, with 95 % confidence intervals, in points.

    Returns None without pairs.
    """
    alt = altair()
    rows = [
        {
            "label": cell.label,
            "mean": 100 * cell.against.mean,
            "low": 100 * (cell.against.mean - (cell.against.half_width or 0)),
            "high": 100 * (cell.against.mean + (cell.against.half_width or 0)),
        }
        for cell in cells
        if cell.against is not None
    ]
    if not rows:
        return None
    y = alt.Y("label:N", sort=None, title=None)
    base = chart(rows)
    title = f"points of test accuracy more than {cells[0].label}"
    tips = [alt.Tooltip("label:N"), *(alt.Tooltip(f"{key}:Q", format="+.2f") for key in ("mean", "low", "high"))]
    line = base.mark_rule(strokeWidth=2, color=BLUE).encode(x=alt.X("low:Q", title=title), x2="high:Q", y=y)
    dots = base.mark_point(filled=True, size=70, color=BLUE, opacity=1).encode(x="mean:Q", y=y, tooltip=tips)
    zero = chart([{"x": 0}]).mark_rule(strokeDash=[4, 4], color=GREY).encode(x="x:Q")
    return alt.layer(zero, line, dots).properties(width="container", height=_ROW * len(rows))
