"""Shared by all figures: Altair, which is imported with the first figure, colours, and writing to a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import SparsifyError
from ...formats.io.atomic import atomic_write, check_writable

Figure: TypeAlias = Any  # altair.Chart, LayerChart, ...
KINDS = (".png", ".svg")
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82c4", "#e07b39", "#3a9d6b", "#9a6fc4", "#c94f6d", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
_NEEDED = ("altair", "vl_convert")
_FONT = "system-ui, sans-serif"
_SCALE = 2  # PNG pixels per pixel of the figure


def check_installed(what: str) -> None:
    """Raise SparsifyError, which begins with `what`, with the install command unless the packages for figures exist."""
    if missing := [name.replace("_", "-") for name in _NEEDED if find_spec(name) is None]:
        raise SparsifyError(f"{what} needs {' and '.join(missing)}: pip install 'sparsify-torch[report]'")


def altair() -> Any:
    """Return the module altair."""
    check_installed("a figure")
    import altair

    return altair


def converter() -> Any:
    """Return the module vl_convert, which renders Vega-Lite without a browser."""
    check_installed("a figure")
    import vl_convert

    return vl_convert


def chart(rows: Iterable[Mapping[str, Any]]) -> Figure:
    """Return a chart of `rows` without a mark, as wide as its container."""
    alt = altair()
    return alt.Chart(alt.Data(values=[dict(row) for row in rows])).properties(width="container")


def config(colour: str = "currentColor", background: str = "transparent") -> dict[str, Any]:
    """Return the style of all figures; with `currentColor`, text and lines take the colour of the surrounding page."""
    text = {"labelColor": colour, "titleColor": colour, "labelFontSize": 11, "titleFontSize": 12}
    axis = {"gridColor": colour, "gridOpacity": 0.15, "domainColor": colour, "domainOpacity": 0.5}
    ticks = {"tickColor": colour, "tickOpacity": 0.5, "labelLimit": 150, "titleFontWeight": "normal"}
    return {
        "background": background,
        "font": _FONT,
        "view": {"stroke": None},
        "axis": text | axis | ticks,
        "legend": text | {"orient": "bottom", "title": None, "labelLimit": 260, "columns": 3, "symbolOpacity": 1},
        "title": {"color": colour, "fontSize": 13},
        "range": {"category": list(COLOURS)},
    }


def spec(figure: Figure) -> dict[str, Any]:
    """Return a figure as Vega-Lite, without theme settings."""
    found: dict[str, Any] = figure.to_dict()
    found.pop("config", None)
    # The width is that of the container, the height follows from the rows.
    return {**found, "autosize": {"type": "fit-x", "contains": "padding"}}


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure of this package, or any Altair chart, to a .png or .svg file; no browser is needed.

    Raises SparsifyError for another kind of file and for a path that cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind not in KINDS:
        raise SparsifyError(f"{os.fspath(path)}: a figure is written as {' or '.join(KINDS)}")
    check_writable(path)
    fixed = {**spec(figure), "config": config("#222222", "white"), "padding": 10}
    if fixed.get("width") == "container":
        fixed["width"] = 640
    if kind == ".svg":
        atomic_write(path, converter().vegalite_to_svg(fixed).encode())
    else:
        atomic_write(path, converter().vegalite_to_png(fixed, scale=_SCALE))
