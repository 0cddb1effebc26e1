"""Shares of a sparsity: exact counts in every scope, Erdos-Renyi-Kernel shares, selection against a plain sort."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.pruning.pruner import Pruner
from sparsify.pruning.report import SparsityWarning
from sparsify.pruning.selection.scopes import (
    Due,
    Member,
    erk_counts,
    filter_counts,
    global_counts,
    layer_counts,
    shares,
)
from sparsify.surgery.mask_state.masks import Layout, masked_weights
from tests.pruning.examples import Array, erk_kept, floor_of, linear_model, lowest, masks_of, set_weights, small_network


def member(*shape: int, name: str = "w") -> Member:
    return Member(
        name,
        torch.ones(shape, dtype=torch.bool),
        (torch.Size(shape),),
        Layout((), (0,), (1,), tuple(range(2, len(shape)))),
    )


def test_counts_are_floors_of_the_decimal_that_was_written() -> None:
    members = [member(10, 10), member(9, 1), member(3, 9)]
    due = Due(Fraction("0.29"))
    assert global_counts(members, due) == [39]
    assert layer_counts(members, due) == [29, 2, 7]
    assert [count.unique().tolist() for count in filter_counts(members, due)] == [[2], [0], [2]]  # type: ignore[union-attr]


def test_a_filter_of_nine_weights_keeps_one_at_ninety_five_per_cent() -> None:
    (counts,) = filter_counts([member(4, 1, 3, 3)], Due(Fraction("0.95")))
    assert torch.as_tensor(counts).tolist() == [8, 8, 8, 8]


def test_from_a_union_each_group_goes_its_own_way_to_the_target() -> None:
    start = {"w": torch.tensor([[True, True, True, False], [True, False, False, False]])}
    due = Due(Fraction(3, 4), Fraction(1, 2), start)
    assert global_counts([member(2, 4)], due) == [5]  # 4 + (6 - 4) / 2
    (by_row,) = filter_counts([member(2, 4)], due)
    assert torch.as_tensor(by_row).tolist() == [2, 3]  # 1 + (3 - 1) / 2, and 3 stays
    assert layer_counts([member(2, 4)], Due(Fraction(3, 4), Fraction(1), start)) == [6]


def test_erk_shares_are_proportional_to_the_sum_over_the_product_of_the_dimensions() -> None:
    members = [member(20, 10, 3, 3), member(40, 20)]
    # 1800 * 36 / 1800 : 800 * 60 / 800 = 36 : 60, and 10 % of 2600 weights are 260.
    counts = erk_counts(members, Due(Fraction("0.9")))
    assert [1800 - counts[0], 800 - counts[1]] == [round(260 * 36 / 96), round(260 * 60 / 96)]  # type: ignore[operator]


def test_an_erk_share_above_one_is_capped_and_the_rest_shared_out_anew() -> None:
    assert shares([4, 100, 100], [Fraction(1), Fraction(1, 10), Fraction(3, 10)], 84) == [4, 20, 60]


def test_equal_remainders_go_to_the_first() -> None:
    assert shares([10, 10, 10], [Fraction(1)] * 3, 10) == [4, 3, 3]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3)), min_size=1, max_size=6),
    st.integers(0, 100).map(lambda per_cent: Fraction(per_cent, 100)),
)
def test_erk_is_exact_in_total_and_within_one_of_its_share(shapes: list[tuple[int, ...]], sparsity: Fraction) -> None:
    members = [member(*shape) for shape in shapes]
    sizes = [m.size for m in members]
    kept = [size - int(count) for size, count in zip(sizes, erk_counts(members, Due(sparsity)), strict=True)]
    assert sum(kept) == sum(sizes) - floor_of(sparsity, sum(sizes))
    assert all(0 <= k <= size for k, size in zip(kept, sizes, strict=True))
    assert all(abs(k - e) <= 1 for k, e in zip(kept, erk_kept(shapes, sizes, sparsity), strict=True))


def test_empty_weights_have_no_share() -> None:
    assert erk_counts([member(0, 3), member(4, 5)], Due(Fraction(1, 2))) == [0, 10]


def tied(shape: torch.Size, generator: np.random.Generator) -> Array:
    return generator.integers(-3, 4, tuple(shape)).astype(np.float32)


def unit_rows(name: str, weight: Array) -> Array:
    """Return indices of the weight's entries as [units, entries], for the layers of `small_network`."""
    entries = np.arange(weight.size).reshape(weight.shape)
    if name == "4.weight":  # transposed, 2 groups of 2 inputs and 3 outputs
        return np.stack([entries[2 * g : 2 * g + 2, j].ravel() for g in range(2) for j in range(3)])
    return entries.reshape(weight.shape[0], -1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sparsity", ["0.29", "0.5", "0.95"])
@pytest.mark.parametrize("scope", ["global", "layer", "filter", "erk"])
def test_magnitude_masks_equal_an_independent_implementation_when_scores_tie(
    scope: str, sparsity: str, seed: int
) -> None:
    model, generator = small_network(), np.random.default_rng(seed)
    weights = {name: tied(w.mask.shape, generator) for name, w in masked_weights(model).items()}
    set_weights(model, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparsityWarning)  # of filters that lose all; another test's matter
        Pruner(model, {"sparsity": float(sparsity), "scope": scope}, 0).start()
    flat = {name: np.abs(weight).ravel() for name, weight in weights.items()}
    if scope == "global":
        whole = np.concatenate(list(flat.values()))
        mask = lowest(whole, floor_of(sparsity, whole.size))
        expected = dict(zip(flat, np.split(mask, np.cumsum([f.size for f in flat.values()])[:-1]), strict=True))
    elif scope == "filter":
        expected = {}
        for name, weight in weights.items():
            expected[name] = np.ones(weight.size, bool)
            for row in unit_rows(name, weight):
                expected[name][row] = lowest(flat[name][row], floor_of(sparsity, row.size))
    elif scope == "layer":
        expected = {name: lowest(f, floor_of(sparsity, f.size)) for name, f in flat.items()}
    else:
        sizes = [f.size for f in flat.values()]
        kept = erk_kept([w.shape for w in weights.values()], sizes, sparsity)
        expected = {name: lowest(f, f.size - k) for (name, f), k in zip(flat.items(), kept, strict=True)}
    for name, mask in masks_of(model).items():
        np.testing.assert_array_equal(mask.ravel(), expected[name], err_msg=name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_whole_units_go_by_their_l1_norm(scope: str, seed: int) -> None:
    model, generator = small_network(), np.random.default_rng(seed)
    weights = {name: tied(w.mask.shape, generator) for name, w in masked_weights(model).items()}
    set_weights(model, weights)
    Pruner(model, {"sparsity": 0.4, "scope": scope, "granularity": "unit"}, 0).start()
    indices = {name: unit_rows(name, weight) for name, weight in weights.items()}
    means = {name: np.abs(w.ravel()[indices[name]].astype(float)).mean(1) for name, w in weights.items()}
    if scope == "global":
        mask = lowest(np.concatenate(list(means.values())), floor_of("0.4", sum(m.size for m in means.values())))
        kept = dict(zip(means, np.split(mask, np.cumsum([m.size for m in means.values()])[:-1]), strict=True))
    elif scope == "layer":
        kept = {name: lowest(m, floor_of("0.4", m.size)) for name, m in means.items()}
    else:
        sizes = [m.size for m in means.values()]
        counts = erk_kept([w.shape for w in weights.values()], sizes, "0.4")
        kept = {name: lowest(m, m.size - k) for (name, m), k in zip(means.items(), counts, strict=True)}
    for name, mask in masks_of(model).items():
        np.testing.assert_array_equal(mask.ravel()[indices[name]].all(1), kept[name], err_msg=name)
        np.testing.assert_array_equal(mask.ravel()[indices[name]].any(1), kept[name], err_msg=name)


@pytest.mark.parametrize("scope", ["global", "layer", "filter", "erk"])
def test_sparsity_zero_keeps_all_and_sparsity_one_keeps_nothing(scope: str) -> None:
    model = linear_model(torch.ones(1, 3), torch.randn(2, 1), torch.empty(0, 2))
    Pruner(model, {"sparsity": 0, "scope": scope}, 0).start()
    assert all(mask.all() for mask in masks_of(model).values())
    with pytest.warns(SparsityWarning, match="no weight is left in 0.weight, 1.weight"):
        Pruner(model, {"sparsity": 1, "scope": scope}, 0).start()
    assert not any(mask.any() for mask in masks_of(model).values())


def test_erk_takes_coupled_weights_as_one() -> None:
    shapes = (torch.Size((6, 4)), torch.Size((6, 3, 2)))
    tied = Member("w", torch.ones(6, dtype=torch.bool), shapes)
    assert tied.density == Fraction((6 + 4) + (6 + 3 + 2), 24 + 36)
