"""Comparison of several runs: runs of one recipe with different seeds become one mean. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..errors import SparsifyError
from ..training.folder.same_recipe import FREE, flat_recipe
from .run_records import Run
from .statistics import Difference, Mean, difference, mean_of

_SEED, _NAME, _DENSE = "train.seed", "name", "dense"
_SPARSITY = "prune.sparsity"
_SAME = ("data.name", "data.test_split", "data.limit", "data.num_classes")
_SHOWN = 3  # the most keys in a label


@dataclass(frozen=True)
class Cell:
    """The runs of one recipe, a label that distinguishes it, and final test accuracy and loss by seed.

    `series` is the label without the sparsity; `sparsity` is the mean removed fraction of the masked weights, `bytes`
    the mean file size, `reached` the mean and deviation of the accuracies, `against` the paired differences from the
    first cell, None for the first cell itself and if there is no common seed.
    """

    runs: tuple[Run, ...]
    label: str
    series: str
    sparsity: float
    bytes: float
    accuracy: Mapping[int, float]
    loss: Mapping[int, float]
    reached: Mean
    against: Difference | None

    @property
    def seeds(self) -> list[int]:
        """The seeds in ascending order."""
        return sorted(self.accuracy)


def compare(runs: Sequence[Run]) -> list[Cell]:
    """Return one cell per recipe of the runs; the others are compared with the first, a dense one if there is one.

    Raises SparsifyError for runs on different data, whose accuracies cannot be compared, for runs without a test
    accuracy, and for two runs of one recipe and seed.
    """
    leaves = [flat_recipe(run.recipe) for run in runs]
    _check_comparable(runs, leaves)
    grouped: dict[tuple[Any, ...], list[tuple[Run, Mapping[str, Any]]]] = {}
    for run, tree in zip(runs, leaves, strict=True):
        own = tuple(sorted((key, str(value)) for key, value in tree.items() if key not in (*FREE, _SEED, _NAME)))
        grouped.setdefault(own, []).append((run, tree))
    ordered = sorted(grouped.values(), key=lambda group: group[0][0].recipe.prune is not None)
    groups = [[run for run, _ in group] for group in ordered]
    names = _labels([group[0][1] for group in ordered])
    first = _by_seed(groups[0], "test_accuracy")
    return [
        _cell(group, *name, None if group is groups[0] else first) for group, name in zip(groups, names, strict=True)
    ]


def _check_comparable(runs: Sequence[Run], leaves: Sequence[Mapping[str, Any]]) -> None:
    for run, tree in zip(runs, leaves, strict=True):
        for key in _SAME:
            if tree.get(key) != leaves[0].get(key):
                raise SparsifyError(
                    f"{run.folder}: {key} is {tree.get(key)} and not {leaves[0].get(key)}, as in {runs[0].folder}: "
                    "accuracies on different data cannot be compared"
                )
        if run.accuracy is None:
            raise SparsifyError(f"{run.folder}: its last record has no test accuracy: there is nothing to compare")


def _by_seed(group: Sequence[Run], key: str) -> dict[int, float]:
    found: dict[int, Run] = {}
    for run in group:
        if run.seed in found:
            other = found[run.seed].folder
            raise SparsifyError(
                f"{run.folder}: of the same recipe and seed ({run.seed}) as {other}; give each run once"
            )
        found[run.seed] = run
    last = {seed: run.records[-1].get(key) for seed, run in found.items()}
    return {seed: math.nan if value is None else float(value) for seed, value in last.items()}


def _cell(group: Sequence[Run], label: str, series: str, first: Mapping[int, float] | None) -> Cell:
    accuracy = _by_seed(group, "test_accuracy")
    reached = mean_of(accuracy)
    assert reached is not None
    return Cell(
        runs=tuple(group),
        label=label,
        series=series,
        sparsity=fmean(run.sparsity for run in group),
        bytes=fmean(run.file.bytes_file for run in group),
        accuracy=accuracy,
        loss=_by_seed(group, "test_loss"),
        reached=reached,
        against=None if first is None else difference(accuracy, first),
    )


def _labels(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (label, series) of each recipe: its name, and the keys in which recipes of that name differ.

    The series is the label without the sparsity.
    """
    names = {tree[_NAME] for tree in trees if not _is_dense(tree)}
    found = []
    for tree in trees:
        if _is_dense(tree):
            found.append((_DENSE, _DENSE))
            continue
        keys = _differing([one for one in trees if one[_NAME] == tree[_NAME] and not _is_dense(one)])
        others = [f"{_short(key, keys)}={tree.get(key)}" for key in keys if key != _SPARSITY][:_SHOWN]
        sparsity = [f"sparsity={tree.get(_SPARSITY)}"] if _SPARSITY in keys else []
        own = [tree[_NAME]] if len(names) > 1 else []
        series, label = ", ".join([*own, *others]), ", ".join([*own, *others, *sparsity])
        found.append((label or tree[_NAME], series or tree[_NAME]))
    return _told_apart(found)


def _differing(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which recipes differ, except the seed, the name and keys that do not affect results."""
    keys = sorted({key for tree in trees for key in tree} - {*FREE, _SEED, _NAME})
    return [key for key in keys if len({str(tree.get(key)) for tree in trees}) > 1]


def _told_apart(labels: list[tuple[str, str]]) -> list[tuple[str, str]]:
    names = [label for label, _ in labels]
    return [
        (label if names.count(label) == 1 else f"{label} ({names[:index].count(label) + 1})", series)
        for index, (label, series) in enumerate(labels)
    ]


def _is_dense(tree: Mapping[str, Any]) -> bool:
    return tree.get("prune", ...) is None


def _short(key: str, others: Sequence[str]) -> str:
    """Return the shortest end of a dotted key that no other key shares."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if sum(f".{other}".endswith(f".{end}") for other in others) == 1:
            return end
    return key
