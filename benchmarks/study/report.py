"""The section of a study in results.md, from its rows, whole or in part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from sparsify.report.statistics import accuracy_text, difference, difference_text, mean_of
from sparsify.training.setup.plan import plan_training

from .compare import Cell, cell_of, values
from .rows import Row, key_of
from .study import Study
from .verdict import conclusion


def rows_of(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Return a study's rows that belong to its current file."""
    keys = {run.key for run in study.runs}
    return [row for row in rows if key_of(row) in keys]


def section(
    study: Study, rows: Sequence[Row], curves: Sequence[Row], overlap: Sequence[Row], figures: Sequence[str]
) -> str:
    """Return the section's text; `figures` are paths as results.md is to link them."""
    done, total = len(rows), len(study.runs)
    lines = [_about(study, rows)]
    if done < total:
        lines.append(
            f"**Partial: {done} of {total} runs are finished.** Go on with "
            f"`python -m benchmarks.study {study.file} --jobs 2 --threads 1 --data-dir DATA`; "
            "finished runs are not run again, and this section is written anew at the end."
        )
    if not rows:
        return "\n\n".join(lines)
    lines += [conclusion(study, rows), *_tables(study, rows), _differences(study, rows), _phases(study, curves)]
    lines += [_overlap(study, overlap), *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in figures)]
    return "\n\n".join(line for line in lines if line)


def cells(study: Study, sparsity: float, model: str) -> list[Cell]:
    """Return the cells of a model at one sparsity in the order of the study's file, dense training first."""
    pruned = dict.fromkeys(
        (run.model, run.method, str(sparsity)) for run in study.runs if run.model == model and run.sparsity == sparsity
    )
    dense = dict.fromkeys((run.model, run.method, "") for run in study.runs if run.model == model and not run.sparsity)
    return [*dense, *pruned]


def _about(study: Study, rows: Sequence[Row]) -> str:
    machines = ", ".join(sorted({f"{row['device']}; {row['versions']}" for row in rows}))
    seeds = f"seed{'s' if len(study.seeds) > 1 else ''} {', '.join(map(str, study.seeds))}"
    budget = "" if study.budget == 1 else f" (budget {study.budget:g})"
    return f"{study.about} {study.epochs} epochs{budget}; {seeds}. {machines}".strip()


def _tables(study: Study, rows: Sequence[Row]) -> list[str]:
    header = (
        "| method | n | accuracy at the end | best epoch (the study's way) | sparsity at the best epoch "
        "| training loss | test loss | removed | processor seconds |\n|---|---|---|---|---|---|---|---|---|"
    )
    tables = []
    for model in study.models:
        for sparsity in study.sparsities:
            lines = [f"{model}, {100 * sparsity:g} % (mean ± standard deviation over seeds, %):\n", header]
            lines += [_line(rows, cell) for cell in cells(study, sparsity, model)]
            tables.append("\n".join(lines))
    return tables


def _line(rows: Sequence[Row], cell: Cell) -> str:
    final = mean_of(values(rows, cell, "final_accuracy"))
    if final is None:
        return f"| {cell[1]} | 0 | - | - | - | - | - | - | - |"
    best = accuracy_text(mean_of(values(rows, cell, "best_accuracy")))
    named = ("best_sparsity", "train_loss", "test_loss", "removed", "processor_seconds")
    sparsity, train, test, removed, seconds = (fmean(values(rows, cell, name).values()) for name in named)
    return (
        f"| {cell[1]} | {final.n} | {accuracy_text(final)} | {best} | {sparsity:.3f} "
        f"| {train:.3f} | {test:.3f} | {removed:.4f} | {seconds:,.0f} |"
    )


def _differences(study: Study, rows: Sequence[Row]) -> str:
    lines = [
        "Differences over paired seeds, in points, with 95 % confidence intervals (Student's t): at the end, at the",
        "final sparsity, and by the best epoch, as the study reported. Each interval is of one comparison alone:",
        "",
        "| model | sparsity | difference | n | at the end | best epoch |",
        "|---|---|---|---|---|---|",
    ]
    for model in study.models:
        for sparsity in study.sparsities:
            for one, other in combinations([cell for cell in cells(study, sparsity, model) if cell[2]], 2):
                found = [
                    difference(values(rows, one, column), values(rows, other, column))
                    for column in ("final_accuracy", "best_accuracy")
                ]
                if found[0] is not None:
                    texts = " | ".join(map(difference_text, found))
                    what = f"{one[1]} - {other[1]} | {found[0].n} | {texts}"
                    lines.append(f"| {model} | {100 * sparsity:g} % | {what} |")
    return "\n".join(lines) if len(lines) > 5 else ""


def _phases(study: Study, curves: Sequence[Row]) -> str:
    """Return what each cycle reached in its first epochs, when few weights were removed, and in any."""
    lines = [
        "Were cycles long enough? The best test accuracy of each cycle while fewer than 80 % of the weights were",
        "removed, and of any of its epochs; the last cycle with the training of the final mask after it. Epochs that",
        "end where all weights have just come back are left out (means over seeds, %):",
        "",
        "| model | sparsity | method | cycle | below 80 % | any epoch |",
        "|---|---|---|---|---|---|",
    ]
    first = {(run.model, run.method, run.sparsity): run for run in reversed(study.runs)}
    for (model, method, sparsity), run in reversed(first.items()):
        if run.recipe.prune is None or not run.recipe.prune.schedule.cyclical:
            continue
        edges = {str(update.step) for update in plan_training(run.recipe).updates if update.event in ("reset", "union")}
        own = [r for r in curves if cell_of(r) == (model, method, str(sparsity)) and r["step"] not in edges]
        for cycle in sorted({row["cycle"] for row in own}, key=int):
            here = [row for row in own if row["cycle"] == cycle]
            early = _best([row for row in here if float(row["due_sparsity"]) < 0.8])
            lines.append(f"| {model} | {100 * (sparsity or 0):g} % | {method} | {cycle} | {early} | {_best(here)} |")
    return "\n".join(lines) if len(lines) > 6 else ""


def _best(rows: Sequence[Row]) -> str:
    best: dict[str, float] = {}
    for row in rows:
        best[row["seed"]] = max(best.get(row["seed"], 0.0), float(row["test_accuracy"]))
    found = mean_of(best)
    return "-" if found is None else f"{100 * found.mean:.2f}"


def _overlap(study: Study, overlap: Sequence[Row]) -> str:
    if not overlap:
        return ""
    lines = [
        "Masks at the ends of all cycles but the last: intersection over union (mean of all pairs), beside that of",
        "random masks of the same sizes in every layer; the part of all weights that is in their union; and the share",
        f"of the final mask of `{study.gradual}` (same seed) that lies in it, beside that of a random mask of the",
        "union's size, and of one of its size in every layer (means over seeds):",
        "",
        "| model | sparsity | method | n | IoU | random | union | gradual's mask inside | random | random by layer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model in study.models:
        for sparsity in study.sparsities:
            for cell in cells(study, sparsity, model):
                own = [row for row in overlap if cell_of(row) == cell]
                if own:
                    named = ("iou", "iou_random", "union", "gradual_inside", "random_inside", "random_inside_layers")
                    shares = " | ".join(f"{fmean(float(row[name]) for row in own):.3f}" for name in named)
                    lines.append(f"| {model} | {100 * sparsity:g} % | {cell[1]} | {len(own)} | {shares} |")
    return "\n".join(lines)
