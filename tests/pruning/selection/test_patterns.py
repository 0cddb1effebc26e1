"""n:m and blocks: what they keep against plain loops, what stays dense, and what hardware and files make of them."""

import functools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import sparsify
from sparsify.errors import SparsifyError
from sparsify.formats.file.inspection import inspect_file
from sparsify.pruning.criteria.table import CRITERIA, Absolute, Context
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.report import SparsityWarning
from sparsify.pruning.settings.sections import UNIT_CRITERIA
from sparsify.surgery.mask_state.masks import get_masks, masked_weights
from tests.pruning.examples import Array, floor_of, linear_model, lowest, masks_of, small_network

MODULES = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 11)).map(lambda s: nn.Linear(s[1], s[0])),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3)).map(
        lambda s: nn.Conv2d(s[0] * s[2], s[0] * s[1], (s[3], 2), groups=s[0])
    ),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3)).map(
        lambda s: nn.ConvTranspose1d(s[0] * s[2], s[0] * s[1], s[3], groups=s[0])
    ),
)


def matrix(module: nn.Module) -> Array:
    """Return the flat indices of a module's weight as [output units, inputs, kernel positions], by its definition."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    index = np.arange(weight.numel()).reshape(*weight.shape[:2], -1)
    if not isinstance(module, nn.ConvTranspose1d):
        return index
    inputs, outputs = weight.shape[0] // module.groups, weight.shape[1]
    groups = range(module.groups)
    return np.stack([index[g * inputs : (g + 1) * inputs, o] for g in groups for o in range(outputs)])


def by_hand(module: nn.Module, scores: Array, n: int, m: int) -> Array:
    """Return the n:m mask, flat: every group of m along the inputs, one after the other."""
    mask = np.ones(scores.size, bool)
    for unit in matrix(module):
        for position in unit.T:
            for start in range(0, len(position) - m + 1, m):
                group = position[start : start + m]
                mask[group] = lowest(scores.ravel()[group], m - n)
    return mask


def blocks(module: nn.Module, size: tuple[int, int]) -> Iterator[list[Array]]:
    """Yield rows of blocks, each block as the flat indices in it."""
    index = matrix(module)
    index = index.reshape(len(index), -1)
    for top in range(0, index.shape[0], size[0]):
        columns = range(0, index.shape[1], size[1])
        yield [index[top : top + size[0], left : left + size[1]].ravel() for left in columns]


def mean_of(scores: Array, block: Array) -> Fraction:
    return Fraction(int(scores.ravel()[block].sum()), len(block))


def graded(model: nn.Module, seed: int) -> tuple[Any, dict[str, Array]]:
    """Return a criterion of few different, whole scores, and its scores by weight name."""
    generator = np.random.default_rng(seed)
    scores = {name: generator.integers(-2, 3, tuple(w.mask.shape)) for name, w in masked_weights(model).items()}

    def criterion(weights: Any, context: Context) -> dict[str, Tensor]:
        return {name: torch.from_numpy(scores[name]) for name in weights}

    return criterion, scores


def converted(*modules: nn.Module) -> nn.Module:
    model = nn.ModuleList(modules)
    sparsify.convert(model)
    return model


@settings(deadline=None, max_examples=80)
@given(MODULES, st.integers(2, 5).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))), st.integers(0, 99))
def test_of_each_m_inputs_the_n_best_stay(module: nn.Module, pattern: tuple[int, int], seed: int) -> None:
    model = converted(module, nn.Linear(5, 1))
    criterion, scores = graded(model, seed)
    pruner = Pruner(model, {"criterion": criterion, "granularity": "{}:{}".format(*pattern)}, 0)
    pruner.start()
    np.testing.assert_array_equal(masks_of(model)["0.weight"].ravel(), by_hand(module, scores["0.weight"], *pattern))
    report = pruner.report()
    assert report.chosen == report.due == report.removed and report.choices % pattern[1] == 0


@settings(deadline=None, max_examples=80)
@given(
    MODULES,
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.sampled_from(["global", "layer", "filter"]),
    st.sampled_from(["0.29", "0.5", "0.95"]),
    st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
def test_blocks_go_whole_by_their_mean(
    module: nn.Module, size: tuple[int, int], scope: str, sparsity: str, seed: int
) -> None:
    model = converted(module, nn.Linear(5, 3))
    criterion, scores = graded(model, seed)
    granularity = {"name": "block", "size": size}
    chosen = {"criterion": criterion, "granularity": granularity, "scope": scope, "sparsity": float(sparsity)}
    pruner = Pruner(model, chosen, 0)
    pruner.start()
    rows = [(name, row) for name, one in zip(scores, model, strict=True) for row in blocks(one, size)]  # type: ignore[call-overload]
    whole = {"global": lambda name, place: 0, "layer": lambda name, place: name, "filter": lambda name, place: place}
    sets: dict[Any, list[tuple[str, Array]]] = {}
    for place, (name, row) in enumerate(rows):
        sets.setdefault(whole[scope](name, place), []).extend((name, block) for block in row)
    expected = {name: np.ones(one.size, bool) for name, one in scores.items()}
    due = 0
    for one_set in sets.values():
        means = np.array([mean_of(scores[name], block) for name, block in one_set], dtype=object)
        kept = lowest(means, floor_of(sparsity, len(means)))
        due += int((~kept).sum())
        for (name, block), keep in zip(one_set, kept, strict=True):
            expected[name][block] = keep
    for name, mask in masks_of(model).items():
        np.testing.assert_array_equal(mask.ravel(), expected[name], err_msg=name)
    report = pruner.report()
    assert (report.of, report.due, report.chosen) == ("blocks", due, due)
    assert report.choices == sum(len(row) for _, row in rows)


def test_a_pattern_worked_by_hand() -> None:
    model = linear_model(torch.tensor([[3.0, -1, 2, -4, 1, 1, 1, 1, 9, 0], [0, 0, 0, 5, -2, 2, 3, 2, 0, 9]]))
    Pruner(model, {"granularity": "2:4"}, 0).start()
    # Of equal ones the first go; the last two inputs are no group of four.
    assert get_masks(model)["0.weight"].int().tolist() == [
        [1, 0, 0, 1, 0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 1, 1, 1, 1],
    ]


def test_ragged_blocks_worked_by_hand() -> None:
    model = linear_model(torch.tensor([[1.0, 1, 4], [1, 1, 0], [3, 0, 9]]))
    pruner = Pruner(model, {"granularity": "2x2", "sparsity": 0.5}, 0)
    pruner.start()
    # The means are 1 and 2 (of two), 1.5 (of two) and 9 (of one).
    assert get_masks(model)["0.weight"].int().tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1]]
    report = pruner.report()
    assert (report.choices, report.due, report.share, report.removed) == (4, 2, 0.5, 6)


def test_a_block_larger_than_a_weight_is_the_weight() -> None:
    model = linear_model(torch.ones(2, 3), torch.zeros(2, 2), torch.ones(1, 5))
    pruner = Pruner(model, {"granularity": "999999999x999999999", "scope": "global", "sparsity": 0.4}, 0)
    with pytest.warns(SparsityWarning, match="no weight is left in 1.weight"):
        pruner.start()
    assert [bool(mask.any()) for mask in get_masks(model).values()] == [True, False, True]


@pytest.mark.parametrize("granularity", ["2:4", "2x3"])
@pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
def test_memory_layout_makes_no_difference(granularity: str) -> None:
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = small_network().to(memory_format=layout)
        Pruner(model, {"granularity": granularity, "sparsity": 0.5}, 0).start()
        masks.append(get_masks(model))
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in UNIT_CRITERIA])
def test_any_criterion_s_best_stay(name: str) -> None:
    model, scores = small_network(), {}

    @functools.wraps(CRITERIA[name])
    def recorded(weights: Any, context: Context) -> Any:
        answer = CRITERIA[name](weights, context)
        for key, value in answer.items():
            found = value.values.abs() if isinstance(value, Absolute) else value
            scores[key] = found.numpy().copy()
        return answer

    recorded.__name__ = "recorded"  # of one round, whatever the criterion's own
    pruner = Pruner(model, {"criterion": recorded, "granularity": "1:4"}, 0)
    batch = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    pruner.start([batch], lambda model, batch: F.cross_entropy(model(batch), torch.arange(len(batch))))
    modules = {"0": nn.Conv2d(3, 8, 3), "3": nn.Conv2d(8, 4, 1, groups=2), "7": nn.Linear(150, 5)}
    masks = masks_of(model)
    assert masks.pop("4.weight").all() and len(scores) == 4  # transposed, of two inputs in each group
    for key, mask in masks.items():
        wanted = by_hand(modules[key.partition(".")[0]], scores[key], 1, 4)
        np.testing.assert_array_equal(mask.ravel(), wanted, err_msg=key)


def test_a_ramp_goes_through_the_patterns_in_between() -> None:
    model = linear_model(torch.randn(5, 8))
    pruner = Pruner(model, {"granularity": "1:4", "schedule": "linear", "end": "12it", "every": "1it"}, 12)
    pruner.start()
    kept = []
    for _ in range(12):
        pruner.step()
        [counts] = get_masks(model)["0.weight"].reshape(-1, 4).sum(1).unique()[None]
        kept.append(int(counts))
    assert kept == [4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1]


def test_the_union_s_cycle_goes_from_the_union_to_the_pattern() -> None:
    model = linear_model(torch.randn(6, 8))
    schedule = {"name": "cyclic", "cycles": 3}
    times = {"end": "12it", "every": "1it", "after_cycles": "union"}
    pruner = Pruner(model, {"granularity": "2:4", "schedule": schedule, **times}, 12)
    pruner.start()
    saved = []
    for step in range(1, 13):
        with torch.no_grad():
            model[0].weight.copy_(torch.randn(6, 8, generator=torch.Generator().manual_seed(step // 5)))
        before = get_masks(model)["0.weight"].clone()
        pruner.step()
        if step in (4, 8):
            saved.append(pruner.state_dict()["union/0.weight"])
        if step > 8:
            kept = get_masks(model)["0.weight"]
            assert step == 9 or not (kept & ~before).any()
            assert not (kept & ~saved[-1]).any()
            assert (kept.reshape(-1, 4).sum(1) <= saved[-1].reshape(-1, 4).sum(1)).all()
    assert (saved[0] != saved[1]).any()
    assert (get_masks(model)["0.weight"].reshape(-1, 4).sum(1) == 2).all()


def test_without_regrow_a_group_keeps_of_what_it_had() -> None:
    model = linear_model(torch.arange(1.0, 13).view(1, 12))
    masked_weights(model)["0.weight"].mask[0, [2, 3, 6, 8, 9, 10]] = False
    Pruner(model, {"granularity": "2:4", "regrow": False}, 0).start()
    # The third group had one left, and keeps it.
    assert get_masks(model)["0.weight"].int().tolist() == [[1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]]


@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_end_in_the_pattern(rounds: int) -> None:
    model = small_network()
    pruning = {"criterion": {"name": "synflow", "rounds": rounds}, "granularity": "1:4"}
    pruner = Pruner(model, pruning, 0, example_input=torch.zeros(1, 3, 6, 6))
    pruner.start()
    assert (get_masks(model)["7.weight"][:, :148].reshape(-1, 4).sum(1) == 1).all()
    assert pruner.report().chosen == pruner.report().due


def test_what_has_too_few_inputs_stays_dense_and_is_named() -> None:
    model = small_network()
    pruner = Pruner(model, {"granularity": "2:4"}, 0)
    pruner.start()
    report, masks = pruner.report(), get_masks(model)
    assert report.notes == (
        "left dense, with fewer than 4 inputs to a unit: 0.weight, 4.weight",
        "7.weight: the last 2 of 150 inputs stay dense",
    )
    assert masks["0.weight"].all() and masks["4.weight"].all() and masks["7.weight"][:, 148:].all()
    assert (report.requested, report.choices, report.chosen) == (0.5, 4 * 4 + 5 * 148, 2 * 4 + 5 * 74)
    assert not any(layer.dead_units for layer in report.layers)


def test_a_pattern_that_fits_no_weight_is_one_line() -> None:
    with pytest.raises(SparsifyError) as caught:
        Pruner(linear_model(torch.randn(3, 3), torch.randn(9, 2)), {"granularity": "2:4"}, 0)
    assert str(caught.value) == "pruning.granularity: none of the 2 weights has 4 inputs to a unit, or more"


def test_what_is_pruned_to_two_of_four_is_what_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).half()
    sparsify.convert(model)
    Pruner(model, {"granularity": "2:4"}, 0).start()
    for index in (0, 2):
        weight = sparsify.fold(model)[index].weight.detach()  # type: ignore[index]
        values, places = sparse_semi_structured_from_dense_cutlass(weight)
        assert values.shape == (weight.shape[0], weight.shape[1] // 2)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, places), weight)
    # The conversion itself needs CUDA.
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)
    report = sparsify.to_semi_structured(model)
    assert report.converted == ("0.weight", "2.weight") and not report.skipped


@pytest.mark.parametrize("granularity", ["2:4", "1:8"])
def test_a_file_tells_the_groups(granularity: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 64))
    sparsify.convert(model)
    Pruner(model, {"granularity": granularity}, 0).start()
    sparsify.save(model, tmp_path / "model.safetensors")
    encodings = {row.name: row.encoding for row in inspect_file(tmp_path / "model.safetensors").rows}
    assert encodings["0.weight"] == encodings["2.weight"] == "n:m"
    again = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 64))
    sparsify.load(tmp_path / "model.safetensors", again)
    masks = get_masks(again)
    assert all(torch.equal(mask, masks[name]) for name, mask in get_masks(model).items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("granularity", ["2:4", "2x3"])
@pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
def test_an_accelerator_prunes_as_the_cpu_does(granularity: str) -> None:
    masks = []
    for device in ("cpu", "cuda"):
        model = small_network().to(device)
        Pruner(model, {"granularity": granularity, "sparsity": 0.5}, 0).start()
        masks.append(get_masks(model))
    assert all(torch.equal(mask, masks[1][name].cpu()) for name, mask in masks[0].items())
