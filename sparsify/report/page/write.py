"""write(): one self-contained HTML file about one or several runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...arguments import PATH, takes
from ...errors import SparsifyError
from ...formats.io.atomic import atomic_write, check_writable
from ..comparison import compare
from ..figures.charts import KINDS, altair, check_installed, config, converter, save, spec
from ..layer_records import read_layers
from ..run_records import Run, read_run
from .comparison_part import comparison_part
from .parts import Page, Part, figures_of
from .run_part import run_part
from .sheet import make_sheet


@takes(out=PATH)
def write(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    figures: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write a report about one or several run folders to the HTML file `out`; return the paths of all written files.

    The file is self-contained: it needs no network and no other file. `figures` is a folder to which each figure is
    also written as .svg and .png. All runs are compared; of runs of one recipe with different seeds, only the first is
    shown in full. Raises SparsifyError, one line, if a run does not exist or is unfinished, damaged or without metrics,
    if runs cannot be compared, and if `out` cannot be written or the extra `sparsify-torch[report]` is missing.
    """
    paths = [runs] if isinstance(runs, PATH) else list(runs)
    if not paths:
        raise SparsifyError("report: give at least one run")
    check_writable(out)
    check_installed("a report")
    if find_spec("jinja2") is None:
        raise SparsifyError("a report needs jinja2: pip install 'sparsify-torch[report]'")
    page = _page([read_run(path) for path in paths])
    atomic_write(out, _html(page).encode())
    return [Path(out), *_figures(page.parts, figures)]


def _page(runs: Sequence[Run]) -> Page:
    cells = compare(runs) if len(runs) > 1 else []
    in_full = [cell.runs[0] for cell in cells] or list(runs)
    layers = {run.folder: read_layers(run) for run in in_full}
    shown = next((run for run in in_full if run.sparsity), in_full[0])
    parts = [comparison_part(cells)] if cells else []
    for number, run in enumerate(in_full, start=1):
        parts.append(run_part(run, layers[run.folder], f"run-{number}", folded=len(in_full) > 1))
    names = ", ".join(dict.fromkeys(run.recipe.name for run in runs))
    subtitle = f"{len(runs)} runs of {len(cells)} recipes" if cells else str(runs[0].folder)
    more = "" if len(in_full) == len(runs) else " Of each recipe one seed's run is shown in full."
    from ... import __version__

    return Page(
        title=f"sparsify: {names}",
        subtitle=subtitle + (f". The sheet is about {shown.folder}." if cells else ""),
        sheet=make_sheet(shown, layers[shown.folder], cells),
        parts=tuple(parts),
        footer=f"Written by sparsify {__version__} on {time.strftime('%Y-%m-%d')}.{more}",
    )


def _html(page: Page) -> str:
    import jinja2

    here = files(__package__)
    texts = {name: (here / name).read_text(encoding="utf-8") for name in ("template.html", "table.html")}
    environment = jinja2.Environment(loader=jinja2.DictLoader(texts), autoescape=True, undefined=jinja2.StrictUndefined)
    safe = jinja2.filters.Markup
    style, script = (safe((here / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    specs = {drawn.id: spec(drawn.figure) for drawn in figures_of(page.parts)}
    version = ".".join(altair().SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle = converter().javascript_bundle(vl_version=version)
    table = environment.get_template("table.html")
    html: str = environment.get_template("template.html").render(
        page=page,
        style=style,
        script=script,
        vega=safe(bundle.replace("</script", "<\\/script")),
        figures=safe(_json({"config": config(), "specs": specs})),
        table=lambda found: safe(table.render(table=found)),
    )
    return html


def _json(value: Any) -> str:
    """Return JSON that is safe between script tags."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _figures(parts: Sequence[Part], folder: str | os.PathLike[str] | None) -> list[Path]:
    if folder is None:
        return []
    place, written = Path(folder), []
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SparsifyError(f"{place}: cannot be written ({error.strerror})") from None
    for drawn in figures_of(parts):
        for kind in KINDS:
            written.append(place / f"{drawn.id}{kind}")
            save(drawn.figure, written[-1])
    return written
