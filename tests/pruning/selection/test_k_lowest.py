"""Exact selection: counts, ties, dtypes, and scores that are awkward to compare."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.pruning.selection import k_lowest as selection
from sparsify.pruning.selection.k_lowest import ScoredTensor, remove_lowest, remove_lowest_in_rows
from tests.pruning.examples import lowest

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INF = float("inf")


def part(scores: Tensor, name: str = "w", **options: Any) -> ScoredTensor:
    return ScoredTensor(name, scores, torch.empty(scores.shape, dtype=torch.bool), **options)


def kept(*parts: ScoredTensor, count: int) -> list[int]:
    remove_lowest(parts, count)
    return torch.cat([p.mask.reshape(-1) for p in parts]).nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lowest_scores_go(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.5, -2.0, 3.0, 0.25, -0.5, 1.0], dtype=dtype)
    assert kept(part(scores), count=2) == [0, 2, 3, 5]
    assert kept(part(scores, absolute=True), count=2) == [1, 2, 4, 5]


@pytest.mark.parametrize("dtype", DTYPES)
def test_among_equal_scores_the_lower_index_goes_first(dtype: torch.dtype) -> None:
    scores = torch.tensor([1.0, 0.0, -0.0, 0.0, -1.0, 1.0], dtype=dtype)
    assert kept(part(scores), count=3) == [0, 3, 5]
    assert kept(part(scores, absolute=True), count=4) == [4, 5]


def test_ties_go_by_the_order_of_the_weights() -> None:
    assert kept(part(torch.ones(2, 2)), part(torch.ones(3)), count=5) == [5, 6]


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_and_infinite_scores_are_ordered(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    scores = torch.tensor([INF, tiny / 4, 0.0, tiny / 2, -INF, -tiny / 2, 1.0], dtype=dtype)
    assert kept(part(scores), count=4) == [0, 3, 6]
    assert kept(part(scores, absolute=True), count=5) == [0, 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_nan_score_is_an_error_that_names_the_weight_and_changes_no_mask(dtype: torch.dtype, absolute: bool) -> None:
    good, bad = part(torch.zeros(3, dtype=dtype)), part(torch.tensor([1.0, -float("nan")], dtype=dtype), "conv.weight")
    bad = ScoredTensor(bad.name, bad.scores, bad.mask.fill_(True), absolute)
    good.mask.fill_(True)
    with pytest.raises(SparsifyError, match=r"conv\.weight: a score is NaN"):
        remove_lowest([good, bad], 2)
    assert good.mask.all() and bad.mask.all()
    with pytest.raises(SparsifyError, match=r"conv\.weight: a score is NaN"):
        remove_lowest_in_rows(part(bad.scores.view(1, 2), "conv.weight"), torch.tensor([1]))


def test_a_nan_among_entries_that_may_not_be_kept_is_no_error() -> None:
    scores = torch.tensor([3.0, float("nan"), 2.0])
    assert kept(part(scores, allowed=torch.tensor([True, False, True])), count=2) == [0]


def test_mixed_dtypes_are_compared_by_value() -> None:
    parts = [part(torch.tensor([1.0, 1.5], dtype=torch.bfloat16)), part(torch.tensor([1.0 + 2**-40, 1.25]).double())]
    parts.append(part(torch.tensor([1.125, 2.0], dtype=torch.float16)))
    assert kept(*parts, count=2) == [1, 3, 4, 5]


def test_scores_in_another_memory_layout_keep_their_order() -> None:
    scores = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    assert kept(part(scores), count=7) == list(range(7, 24))
    into = ScoredTensor(
        "w", torch.zeros(2, 3, 2, 2), torch.empty(2, 3, 2, 2, dtype=torch.bool).transpose(0, 1).transpose(0, 1)
    )
    assert kept(into, count=7) == list(range(7, 24))


def test_what_may_not_be_kept_goes_first_even_beyond_the_count() -> None:
    scores, alive = torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.tensor([False, True, False, True])
    assert kept(part(scores, allowed=alive), count=1) == [1, 3]
    assert kept(part(scores, allowed=alive), count=3) == [1]


def test_empty_weights_and_no_weights_are_fine() -> None:
    assert kept(part(torch.empty(0, 4)), part(torch.tensor([2.0, 1.0])), count=1) == [0]
    assert kept(part(torch.empty(0, 4)), count=0) == []
    remove_lowest([], 0)
    remove_lowest_in_rows(part(torch.empty(3, 0)), torch.zeros(3))


values = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, INF, -INF, 1e-40, 65504.0, 1e-7]), st.floats(width=16))
numbers = st.lists(values.filter(lambda x: x == x), min_size=1, max_size=60)


@given(numbers, st.integers(0, 60), st.sampled_from(DTYPES), st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_selection_equals_a_stable_sort(
    scores: list[float], count: int, dtype: torch.dtype, absolute: bool, data: st.DataObject
) -> None:
    tensor = torch.tensor(scores, dtype=dtype)
    alive = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    compared = tensor.abs().double().numpy() if absolute else tensor.double().numpy()
    for may_keep in (None, alive):
        chosen = part(tensor, absolute=absolute, allowed=may_keep)
        remove_lowest([chosen], count)
        expected = lowest(compared, count, None if may_keep is None else may_keep.numpy())
        np.testing.assert_array_equal(chosen.mask.numpy(), expected)


@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from(DTYPES), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_selection_in_rows_equals_a_stable_sort_of_each_row(
    rows: int, width: int, dtype: torch.dtype, barred: bool, data: st.DataObject
) -> None:
    flat = st.lists(values.filter(lambda x: x == x), min_size=rows * width, max_size=rows * width)
    scores = torch.tensor(data.draw(flat), dtype=dtype).view(rows, width)
    counts = data.draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    flags = data.draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    alive = torch.tensor(flags).view(rows, width) if barred else None
    chosen = part(scores, allowed=alive)
    remove_lowest_in_rows(chosen, torch.tensor(counts))
    for index, count in enumerate(counts):
        may_keep = None if alive is None else alive[index].numpy()
        np.testing.assert_array_equal(chosen.mask[index], lowest(scores[index].double().numpy(), count, may_keep))


def test_many_chunks_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(-40, 40, (300_000,), generator=generator).float()
    whole = np.argsort(scores.numpy(), kind="stable")[:200_001]
    chosen = part(scores.view(1000, 300))
    remove_lowest([chosen], 200_001)
    np.testing.assert_array_equal(np.flatnonzero(~chosen.mask.numpy()), np.sort(whole))
    monkeypatch.setattr(selection, "_ROWS_AT_ONCE", 700)
    by_row = part(scores.view(1000, 300))
    remove_lowest_in_rows(by_row, torch.full((1000,), 123))
    first = np.argsort(by_row.scores.numpy(), axis=1, kind="stable")[:, :123]
    assert not np.take_along_axis(by_row.mask.numpy(), first, 1).any() and by_row.mask.sum() == 1000 * 177


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_operations_select_the_same_as_numpy(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-9, 9, (40, 30), generator=generator).to(dtype)
    alive = torch.rand(40, 30, generator=generator) < 0.8
    counts = torch.arange(40) % 31
    masks: list[list[Tensor]] = [[], []]
    for found in masks:
        for absolute in (False, True):
            for may_keep in (None, alive):
                whole, by_row = (part(scores, absolute=absolute, allowed=may_keep) for _ in range(2))
                remove_lowest([whole], 777)
                remove_lowest_in_rows(by_row, counts)
                found += [whole.mask, by_row.mask]
        # What an accelerator works with, here on the CPU.
        monkeypatch.setattr(selection, "_integers", lambda tensor: tensor)
    assert all(torch.equal(first, second) for first, second in zip(*masks, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_accelerator_selects_the_same_entries(dtype: torch.dtype) -> None:
    scores = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    for count in (0, 1, 9_600, 19_199):
        here, there = (
            part(scores),
            ScoredTensor("w", scores.cuda(), torch.empty(64, 300, dtype=torch.bool, device="cuda")),
        )
        remove_lowest([here], count)
        remove_lowest([there], count)
        assert torch.equal(here.mask, there.mask.cpu())
    counts = torch.arange(64)
    remove_lowest_in_rows(here, counts)
    remove_lowest_in_rows(there, counts)
    assert torch.equal(here.mask, there.mask.cpu())
