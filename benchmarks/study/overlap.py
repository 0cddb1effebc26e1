"""How far the masks of cycles agree, and how much of a gradual run's mask their union holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean

from torch import Tensor

from sparsify.formats.model.masks import load_masks
from sparsify.overlap import Masks, iou, iou_by_chance, union_of
from sparsify.training.folder import run_folder as folders

from .queue import folder_of
from .rows import Row, add_rows, key_of, read_rows
from .study import Run, Study

_ABOUT = ("study", "model", "method", "sparsity", "budget", "recipe", "seed")
COLUMNS = (*_ABOUT, "cycles", "iou", "iou_random", "union", "gradual_inside", "random_inside", "random_inside_layers")


def inside(mask: Masks, union: Masks) -> dict[str, float]:
    """Return the share of a mask that lies in a union, and in random masks: of the union's size over all, and by layer.

    The random ones' are means, exactly: the density of the union, and its density in each layer.
    """
    kept = max(1, sum(_kept(mask[name]) for name in mask))
    density = sum(_kept(union[name]) for name in mask) / sum(union[name].numel() for name in mask)
    by_layer = sum(_kept(mask[name]) * _kept(union[name]) / union[name].numel() for name in mask)
    return {
        "gradual_inside": sum(int((mask[name] & union[name]).sum()) for name in mask) / kept,
        "random_inside": density,
        "random_inside_layers": by_layer / kept,
    }


def write_overlap(study: Study, rows: Sequence[Row], folder: Path, path: Path) -> None:
    """Add to overlap.csv the finished runs with cycles whose folders are here, once their gradual run is finished."""
    done, there = {key_of(row) for row in rows}, {key_of(row) for row in read_rows(path)}
    finished = [run for run in study.runs if run.key in done and folder_of(run, folder).exists()]
    gradual = {(run.model, run.sparsity, run.seed): run for run in finished if run.method == study.gradual}
    found = []
    for run in finished:
        partner = gradual.get((run.model, run.sparsity, run.seed))
        if run.recipe.prune is None or not run.recipe.prune.schedule.cyclical or run.key in there or not partner:
            continue
        about = next(row for row in rows if key_of(row) == run.key)
        found.append({key: about[key] for key in _ABOUT} | _overlap(run, partner, folder))
    if found:
        add_rows(path, COLUMNS, found)


def _overlap(run: Run, partner: Run, folder: Path) -> dict[str, str]:
    place = folder_of(run, folder)
    count = len(list(place.glob(folders.MASKS.format("*"))))
    # The last cycle is the union's, or the one whose mask stays: it takes no part in a union.
    cycles = [load_masks(place / folders.MASKS.format(number)) for number in range(1, count)]
    union = union_of(cycles)
    pairs = list(combinations(cycles, 2))
    measures = {
        "iou": fmean(iou(one, other) for one, other in pairs),
        "iou_random": fmean(iou_by_chance(one, other) for one, other in pairs),
        "union": sum(_kept(mask) for mask in union.values()) / sum(mask.numel() for mask in union.values()),
        **inside(load_masks(folder_of(partner, folder) / folders.MODEL), union),
    }
    return {"cycles": str(len(cycles))} | {key: f"{value:.6g}" for key, value in measures.items()}


def _kept(mask: Tensor) -> int:
    return int(mask.sum())
