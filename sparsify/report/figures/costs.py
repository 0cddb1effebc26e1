"""Figures of a model's costs: bytes on disk next to the limit, and seconds of a pass next to PyTorch's."""

from __future__ import annotations

from ...formats.file.inspection import FileSummary
from ..bench_results import BenchResult
from .charts import BLUE, GREEN, GREY, ORANGE, Figure, altair, chart

_STEP = 30
_ENGINE, _SHRUNK = "sparsify engine", "shrunk"


def limit_of(file: FileSummary) -> int:
    """Return the least bytes for a model's tensors: masked weights at their limit, other tensors as stored."""
    others = sum(row.bytes_stored for row in file.rows if row.kept is None)
    return file.bytes_limit + others


def sizes(file: FileSummary) -> Figure:
    """Return bars for the dense model, the file, and the information limit of its masks and values."""
    alt = altair()
    rows = [
        {"what": "dense", "bytes": file.bytes_original},
        {"what": "this file", "bytes": file.bytes_file},
        {"what": "limit", "bytes": limit_of(file)},
    ]
    colour = alt.Color(
        "what:N", scale=alt.Scale(domain=[row["what"] for row in rows], range=[GREY, BLUE, GREEN]), legend=None
    )
    x = alt.X("bytes:Q", axis=alt.Axis(format="~s", tickCount=5), title="bytes")
    tips = [alt.Tooltip("what:N"), alt.Tooltip("bytes:Q", format=",")]
    bars = chart(rows).mark_bar().encode(x=x, y=alt.Y("what:N", sort=None, title=None), color=colour, tooltip=tips)
    return bars.properties(height=_STEP * len(rows))


def latency(result: BenchResult) -> Figure:
    """Return bars with each runtime's median milliseconds per pass, and lines from quartile to quartile."""
    alt = altair()
    rows = [
        {
            "runtime": one.name,
            "ms": 1e3 * one.median,
            "low": 1e3 * one.low,
            "high": 1e3 * one.high,
            "kind": _kind(one.name),
        }
        for one in result.timings
    ]
    kinds = ["engine", "shrunk", "dense"]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[BLUE, GREEN, ORANGE]), legend=None)
    y = alt.Y("runtime:N", sort=None, title=None)
    tips = [alt.Tooltip("runtime:N"), *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("ms", "low", "high"))]
    base = chart(rows)
    bars = base.mark_bar().encode(x=alt.X("ms:Q", title="milliseconds"), y=y, color=colour, tooltip=tips)
    spread = base.mark_rule(strokeWidth=2, color=GREY).encode(x=alt.X("low:Q"), x2="high:Q", y=y)
    return alt.layer(bars, spread).properties(width="container", height=_STEP * len(rows))


def _kind(name: str) -> str:
    return "engine" if _ENGINE in name else "shrunk" if _SHRUNK in name else "dense"
