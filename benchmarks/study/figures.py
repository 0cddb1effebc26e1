"""Figures of a study: accuracy over sparsity with error bars, accuracy over steps with the sparsity drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsify.report.statistics import mean_of

from .compare import cell_of, values
from .rows import Row
from .study import Study


def draw(study: Study, rows: Sequence[Row], curves: Sequence[Row], folder: Path) -> list[Path]:
    """Write the figures of what is finished, and return their paths; none where nothing is finished."""
    if not rows:
        return []
    paths = [_over_sparsity(study, rows, folder / f"{study.name}_sparsity.svg")]
    return [*paths, _over_steps(study, curves, folder / f"{study.name}_steps.svg")]


def _over_sparsity(study: Study, rows: Sequence[Row], path: Path) -> Path:
    figure, axes = _figure(len(study.models), 1)
    for (axis,), model in zip(axes, study.models, strict=True):
        for place, method in enumerate(study.methods):
            found = [(s, mean_of(values(rows, (model, method, str(s)), "final_accuracy"))) for s in study.sparsities]
            # Shifted slightly, so that error bars do not hide each other.
            points = [(100 * s + 0.06 * (place - len(study.methods) / 2), m) for s, m in found if m]
            if points:
                heights = [100 * m.mean for _, m in points]
                bars = [100 * (m.deviation or 0) for _, m in points]
                axis.errorbar([x for x, _ in points], heights, bars, marker="o", capsize=3, label=method)
        dense = mean_of(values(rows, (model, "dense", ""), "final_accuracy"))
        if dense:
            axis.axhline(100 * dense.mean, color="grey", linestyle="--", label="dense")
        axis.set(xlabel="sparsity, %", ylabel="test accuracy at the end, %", title=model)
        axis.legend(fontsize="small")
    return _write(figure, path)


def _over_steps(study: Study, curves: Sequence[Row], path: Path) -> Path:
    figure, axes = _figure(len(study.models), len(study.sparsities))
    for row_of_axes, model in zip(axes, study.models, strict=True):
        for axis, sparsity in zip(row_of_axes, study.sparsities, strict=True):
            drawn = axis.twinx()
            for place, method in enumerate(study.methods):
                cells = ((model, method, ""), (model, method, str(sparsity)))
                own = [row for row in curves if cell_of(row) in cells]
                if not own:
                    continue
                first = min(int(row["seed"]) for row in own)
                line = [row for row in own if int(row["seed"]) == first]
                steps = [int(row["step"]) for row in line]
                accuracy = [100 * float(row["test_accuracy"]) for row in line]
                axis.plot(steps, accuracy, color=f"C{place}", label=f"{method}, seed {first}")
                due = [100 * float(row["due_sparsity"]) for row in line]
                drawn.plot(steps, due, color=f"C{place}", linestyle=":", linewidth=1)
            axis.set(xlabel="step", ylabel="test accuracy, %", title=f"{model}, {100 * sparsity:g} %")
            drawn.set(ylabel="sparsity, % (dotted)", ylim=(0, 102))
    handles = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6, fontsize="small")
    return _write(figure, path)


def _figure(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * columns, 4.5 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _write(figure: Any, path: Path) -> Path:
    import matplotlib

    # The same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})
    return path
