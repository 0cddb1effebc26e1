"""Figures of accuracy and loss over steps, with the sparsity schedule and the ends of cycles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import SparsifyError
from ...pruning.schedules import Update, update_plan
from ..run_records import Run
from .charts import BLUE, GREY, ORANGE, Figure, altair, chart

_HEIGHT = 260
_MOST_POINTS = 2000


def accuracy(run: Run) -> Figure:
    """Return training and test accuracy over steps, with the sparsity behind them and a line at each cycle's end."""
    alt = altair()
    rows = [
        *_series(run, "accuracy", "training accuracy"),
        *_series(run, "test_accuracy", "test accuracy"),
    ]
    domain = ["test accuracy", "training accuracy", "sparsity"]
    colour = alt.Color("what:N", scale=alt.Scale(domain=domain, range=[BLUE, ORANGE, GREY]), title=None)
    y = alt.Y("value:Q", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]), stack=None, title=None)
    schedule = chart([{**point, "what": "sparsity"} for point in schedule_points(run)]).mark_area(
        interpolate="step-after", opacity=0.25, line={"color": GREY, "strokeWidth": 1}
    )
    lines = chart(rows).mark_line(strokeWidth=2)
    tips = [alt.Tooltip("what:N"), alt.Tooltip("step:Q", format=","), alt.Tooltip("value:Q", format=".2%")]
    x = alt.X("step:Q", title="step", scale=_steps(run))
    drawn = [schedule.encode(x=x, y=y, color=colour, tooltip=tips), lines.encode(x=x, y=y, color=colour, tooltip=tips)]
    return alt.layer(*_cycles(run, x), *drawn).properties(height=_HEIGHT, width="container")


def loss(run: Run) -> Figure:
    """Return training and test loss over steps, with a line at each cycle's end."""
    alt = altair()
    rows = [*_series(run, "loss", "training loss"), *_series(run, "test_loss", "test loss")]
    colour = alt.Color(
        "what:N", scale=alt.Scale(domain=["test loss", "training loss"], range=[BLUE, ORANGE]), title=None
    )
    x = alt.X("step:Q", title="step", scale=_steps(run))
    tips = [alt.Tooltip("what:N"), alt.Tooltip("step:Q", format=","), alt.Tooltip("value:Q", format=".4f")]
    kind = "log" if rows and min(row["value"] for row in rows) > 0 else "linear"
    y = alt.Y("value:Q", title=None, scale=alt.Scale(type=kind), axis=alt.Axis(format="~g", tickCount=6))
    lines = chart(rows).mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, tooltip=tips)
    return alt.layer(*_cycles(run, x), lines).properties(height=_HEIGHT, width="container")


def schedule_points(run: Run) -> list[dict[str, float]]:
    """Return step and sparsity at every planned change, or as recorded if the plan is unknown."""
    last = int(run.records[-1]["step"])
    updates = [update for update in _updates(run) if update.sparsity is not None and update.step <= last]
    planned = [(update.step, 0.0 if update.event == "reset" else float(update.sparsity or 0)) for update in updates]
    recorded = [(int(record["step"]), float(record["sparsity"])) for record in run.records]
    # After a union each group has its own ramp, so the last cycle shows the recorded mean.
    union = next((update.step for update in _updates(run) if update.event == "union"), last + 1)
    if planned:
        recorded = [point for point in recorded if point[0] >= union]
    points = [(0, planned[0][1] if planned and planned[0][0] == 0 else 0.0), *planned, *recorded]
    if points[-1][0] < last:
        points.append((last, points[-1][1]))
    return [{"step": step, "value": value} for step, value in _thinned(points)]


def cycle_ends(run: Run) -> list[int]:
    """Return the steps at which all weights come back or the union of the masks starts."""
    return sorted({update.step for update in _updates(run) if update.step and update.event in ("reset", "union")})


def _updates(run: Run) -> list[Update]:
    settings, total = run.recipe.train, int(run.records[-1]["step"])
    if run.recipe.prune is None:
        return []
    per_epoch = -(-total // settings.epochs) if settings.max_steps is None else None
    try:
        return update_plan(run.recipe.prune, total, per_epoch)
    except SparsifyError:
        return []  # lengths in epochs, but only steps are known: the records have the sparsity


def _cycles(run: Run, x: Any) -> Iterator[Figure]:
    alt = altair()
    ends = [{"step": step, "what": f"cycle {number} ends"} for number, step in enumerate(cycle_ends(run), start=1)]
    if ends:
        rules = chart(ends).mark_rule(strokeDash=[4, 4], color=GREY)
        yield rules.encode(x=x, tooltip=[alt.Tooltip("what:N"), alt.Tooltip("step:Q", format=",")])


def _steps(run: Run) -> Any:
    return altair().Scale(domain=[0, int(run.records[-1]["step"])], nice=False)


def _series(run: Run, key: str, what: str) -> list[dict[str, Any]]:
    found = [(record["step"], record[key]) for record in run.records if record.get(key) is not None]
    return [{"step": step, "value": value, "what": what} for step, value in _thinned(found)]


def _thinned(points: list[Any]) -> list[Any]:
    every = -(-len(points) // _MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]
