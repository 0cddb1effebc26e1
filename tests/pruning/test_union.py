"""The union mask, against an example worked by hand and against a plain implementation over random runs."""

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsify.pruning.pruner import Pruner
from sparsify.pruning.report import SparsityWarning
from sparsify.surgery.mask_state.masks import masked_weights
from tests.pruning.examples import Array, erk_kept, linear_model, lowest, masks_of, set_weights

BY_HAND = {
    "sparsity": 0.5,
    "schedule": {"name": "cyclic", "cycles": 3},
    "end": 1,
    "every": "2it",
    "after_cycles": "union",
}


def run_by_hand(**options: Any) -> list[list[int]]:
    """Return the indices kept after each of the steps 0, 2, 4, ... 12, of the twelve weights below."""
    weights = {
        2: [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
        4: [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
        6: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        8: [9, 9, 9, 0, 0, 0, 9, 9, 9, 0, 0, 0],
        10: [1, 2, 3, 4, 5, 6, 7, 8, 9, 99, 99, 99],
        12: [50, 2, 3, 4, -5, 6, -7, 8, 9, 99, 99, 99],
    }
    model = linear_model(torch.zeros(3, 4))
    pruner = Pruner(model, BY_HAND | options, total_steps=12)
    pruner.start()
    kept = [masks_of(model)["0.weight"].ravel().nonzero()[0].tolist()]
    for step in range(1, 13):
        if step in weights:
            set_weights(model, {"0.weight": np.array(weights[step], np.float32)})
        pruner.step()
        if step % 2 == 0:
            kept.append(masks_of(model)["0.weight"].ravel().nonzero()[0].tolist())
    return kept


def test_twelve_weights_by_hand() -> None:
    everything = list(range(12))
    assert run_by_hand() == [
        everything,
        [0, 1, 2, 3, 4, 5, 6, 7],  # 0.5 * sin(pi/4) * 12 = 4.24: four go
        everything,  # 0 to 5 were saved, then all came back
        [4, 5, 6, 7, 8, 9, 10, 11],  # all equal: the first four go
        [0, 1, 2, 3, 4, 5, 6, 7, 8],  # 0, 1, 2, 6, 7, 8 were saved; the union begins its cycle with 9 of 12
        [1, 2, 3, 4, 5, 6, 7, 8],  # half way from 3 to 6 removed: 4.5, so four, none but members of the union kept
        [0, 4, 5, 6, 7, 8],  # six go; 0 has come back
    ]


def test_twelve_weights_by_hand_without_regrowth_in_the_union() -> None:
    kept = run_by_hand(regrow="before_union")
    assert kept[:6] == run_by_hand()[:6]
    assert kept[6] == [3, 4, 5, 6, 7, 8]  # 0 was removed at step 10, and stays away


def plain_curve(progress: Fraction) -> Fraction:
    return Fraction(f"{math.sin(math.pi / 2 * float(progress)):.12f}")


class PlainUnion:
    """The union mask as the design describes it, over one flat array and lists of the indices of each group."""

    def __init__(self, shapes: list[tuple[int, int]], scope: str, sparsity: str, regrow: object) -> None:
        sizes = [rows * columns for rows, columns in shapes]
        self.size, self.sparsity, self.regrow = sum(sizes), Fraction(sparsity), regrow
        layers = np.split(np.arange(self.size), np.cumsum(sizes)[:-1])
        self.groups: list[Array] = {
            "global": [np.arange(self.size)],
            "layer": layers,
            "filter": [row for layer, shape in zip(layers, shapes, strict=True) for row in layer.reshape(shape)],
            "erk": layers,
        }[scope]
        self.shapes = shapes if scope == "erk" else None
        self.mask, self.union = np.ones(self.size, bool), np.zeros(self.size, bool)

    def targets(self, sparsity: Fraction) -> list[Fraction]:
        """Return for each group how many go at a sparsity, not rounded but for Erdos-Renyi-Kernel shares."""
        sizes = [len(group) for group in self.groups]
        if self.shapes:
            return [Fraction(n - kept) for n, kept in zip(sizes, erk_kept(self.shapes, sizes, sparsity), strict=True)]
        return [sparsity * n for n in sizes]

    def remove(self, scores: Array, counts: list[int], alive: Array | None) -> None:
        for group, count in zip(self.groups, counts, strict=True):
            self.mask[group] = lowest(scores[group], count, None if alive is None else alive[group])

    def in_cycle(self, scores: Array, sparsity: Fraction) -> None:
        alive = None if self.regrow is not False else self.mask.copy()
        self.remove(scores, [int(target) for target in self.targets(sparsity)], alive)

    def in_union(self, scores: Array, progress: Fraction) -> None:
        alive = self.union if self.regrow is True else self.mask.copy()
        gone = [int((~self.union[group]).sum()) for group in self.groups]
        pairs = zip(gone, self.targets(self.sparsity), strict=True)
        self.remove(scores, [int(start + (target - start) * progress) for start, target in pairs], alive)

    def save_and_reset(self) -> None:
        self.union |= self.mask
        self.mask[:] = True


def plain_run(plain: PlainUnion, values: list[Array], edges: list[int], length: int | None, every: int) -> list[Array]:
    """Return the mask after each step. `edges` are the steps where cycles begin and the last one ends."""
    masks = []
    for step, scores in enumerate(values):
        for left, right in zip(edges, edges[1:], strict=False):
            last = right == edges[-1]
            inside = left < step < right and step % every == 0
            progress = Fraction(step - left, length or right - left)
            if step == left and not last:
                plain.mask[:] = True
            elif step == left:
                plain.mask = plain.union.copy()
            elif last and (inside or step == right):
                plain.in_union(scores, progress)
            elif inside:
                plain.in_cycle(scores, plain.sparsity * plain_curve(progress))
            elif step == right and progress == 1:
                plain.in_cycle(scores, plain.sparsity)
                plain.save_and_reset()
        masks.append(plain.mask.copy())
    return masks


SHAPES = [(3, 4), (2, 5), (1, 7)]


@pytest.mark.parametrize("scope", ["global", "layer", "filter", "erk"])
@pytest.mark.parametrize("seed", range(25))
def test_random_runs_equal_the_plain_implementation(scope: str, seed: int) -> None:
    draw = np.random.default_rng([seed, len(scope)])
    sparsity = f"0.{draw.integers(1, 100):02d}"
    regrow = [True, False, "before_union"][seed % 3]
    begin, every, cycles, length = (int(draw.integers(low, high)) for low, high in ((0, 4), (1, 6), (2, 6), (2, 9)))
    pruning: dict[str, Any] = {"sparsity": float(sparsity), "scope": scope, "regrow": regrow, "after_cycles": "union"}
    if seed % 2:
        end = begin + int(draw.integers(cycles, 40))
        edges = [begin + int(Fraction((end - begin) * k, cycles) + Fraction(1, 2)) for k in range(cycles + 1)]
        schedule: dict[str, Any] = {"name": "cyclic", "cycles": cycles}
    else:
        end = begin + int(draw.integers(2 * length, 5 * length))
        edges = [*(s for s in range(begin, end, length) if s < end - length), end - length, end]
        schedule = {"name": "cyclic", "cycle_length": f"{length}it"}
    times = {"begin": f"{begin}it", "end": f"{end}it", "every": f"{every}it"}
    size = sum(rows * columns for rows, columns in SHAPES)
    values = [draw.integers(-4, 5, size).astype(np.float32) for _ in range(end + 4)]
    plain = PlainUnion(SHAPES, scope, sparsity, regrow)
    expected = plain_run(plain, [np.abs(v) for v in values], edges, None if seed % 2 else length, every)

    model = linear_model(*(torch.zeros(shape) for shape in SHAPES))
    pruner = Pruner(model, pruning | times | {"schedule": schedule}, total_steps=end + 3)
    for step, value in enumerate(values):
        _set_flat(model, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsityWarning)
            pruner.start() if step == 0 else pruner.step()
        found = np.concatenate([mask.ravel() for mask in masks_of(model).values()])
        np.testing.assert_array_equal(found, expected[step], err_msg=f"step {step}, edges {edges}")
    assert pruner.finished


def _set_flat(model: nn.Module, values: Array) -> None:
    names = list(masked_weights(model))
    pieces = np.split(values, np.cumsum([rows * columns for rows, columns in SHAPES])[:-1])
    set_weights(model, dict(zip(names, pieces, strict=True)))


def test_whole_units_are_saved_and_pruned_within_their_union() -> None:
    model = linear_model(torch.zeros(6, 2))
    pruner = Pruner(model, BY_HAND | {"granularity": "unit"}, total_steps=12)
    rows_at = {4: [6, 5, 4, 3, 2, 1], 8: [1, 1, 9, 9, 9, 1], 10: [1, 2, 3, 4, 5, 9], 12: [1, 2, 3, 4, 5, 9]}
    pruner.start()
    for step in range(1, 13):
        if step in rows_at:
            set_weights(model, {"0.weight": np.repeat(np.array(rows_at[step], np.float32), 2)})
        pruner.step()
        if step == 8:
            assert masks_of(model)["0.weight"].all(1).tolist() == [True] * 5 + [False]
    assert masks_of(model)["0.weight"].tolist() == [[kept] * 2 for kept in (False, False, True, True, True, False)]
