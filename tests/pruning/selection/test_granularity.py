"""Units: which entries belong to one, for every kind of weight, and how they are scored."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.pruning.selection.granularity import GRANULARITIES, rows, set_rows
from sparsify.pruning.selection.k_lowest import ScoredTensor
from sparsify.pruning.settings.granularity_settings import GranularitySettings
from sparsify.surgery.mask_state.masks import ROWS, usual_layout

UNITS = GRANULARITIES["unit"](GranularitySettings(name="unit"))
CASES = [
    (nn.Linear(3, 4), "weight"),
    (nn.Conv2d(4, 6, 3, groups=2), "weight"),
    (nn.ConvTranspose1d(4, 6, 3), "weight"),
    (nn.ConvTranspose2d(4, 6, (2, 1)), "weight"),
    (nn.ConvTranspose2d(4, 6, 2, groups=2), "weight"),
    (nn.ConvTranspose3d(6, 3, 1, groups=3), "weight"),
]


@pytest.mark.parametrize(("module", "name"), CASES)
def test_a_unit_is_what_one_output_channel_depends_on(module: nn.Module, name: str) -> None:
    weight = getattr(module, name)
    dimensions = max(0, weight.dim() - 2)
    channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    entries = torch.arange(weight.numel()).view(weight.shape)
    layout = usual_layout(module, weight.dim())
    assert rows(entries, layout).shape == (channels, weight.numel() // channels)
    for unit in range(int(channels)):  # type: ignore[call-overload]
        weight.grad = None
        output = module(torch.ones(1, inputs, *[5] * dimensions))  # type: ignore[misc]
        output[0, unit].sum().backward()
        assert rows(entries, layout)[unit].tolist() == entries[weight.grad != 0].tolist()


@pytest.mark.parametrize(("module", "name"), CASES)
def test_setting_rows_is_the_inverse_of_reading_them(module: nn.Module, name: str) -> None:
    mask = torch.rand(getattr(module, name).shape) < 0.5
    copy = torch.empty_like(mask)
    layout = usual_layout(module, mask.dim())
    set_rows(copy, rows(mask, layout), layout)
    assert torch.equal(copy, mask)


def test_a_recurrent_matrix_has_one_unit_per_row() -> None:
    module = nn.LSTM(3, 2)
    assert rows(module.weight_ih_l0, usual_layout(module, 2)).shape == (8, 3)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_unit_scores_the_mean_of_its_weights(absolute: bool) -> None:
    scores = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 0.0, 1.0]])
    part = ScoredTensor("w", scores, torch.ones(2, 3, dtype=torch.bool), absolute)
    means = [2.0, 5 / 3] if absolute else [2 / 3, -1.0]
    assert UNITS.view(part, ROWS).scores.flatten().tolist() == pytest.approx(means)


def test_units_are_scored_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: Tensor = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    part = ScoredTensor("w", scores, torch.ones(50, 7, dtype=torch.bool))
    whole = UNITS.view(part, ROWS).scores
    monkeypatch.setattr("sparsify.pruning.selection.granularity._ENTRIES_AT_ONCE", 20)
    assert torch.equal(UNITS.view(part, ROWS).scores, whole)


def test_a_unit_is_kept_if_anything_of_it_is() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    assert UNITS.mask(mask, ROWS).tolist() == [[True], [False]]


def test_a_unit_of_half_precision_weights_does_not_overflow() -> None:
    part = ScoredTensor("w", torch.full((2, 100), 60000.0).half(), torch.ones(2, 100, dtype=torch.bool), True)
    assert UNITS.view(part, ROWS).scores.tolist() == [[60000.0], [60000.0]]
