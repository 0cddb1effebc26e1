"""Least and most sparsity of layers under scope global, and sparsities of all parameters, by plain implementations."""

from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch

from cli.view.report import sparsity_lines
from sparsify.errors import SparsifyError
from sparsify.pruning.pruner import Pruner
from sparsify.pruning.settings.prune import parse_pruning
from sparsify.surgery.mask_state.masks import get_masks, masked_weights
from tests.pruning.examples import chain, linear_model, lowest, small_network

pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")


def uneven(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator) * scale for shape, scale in (((5, 7), 1), ((9, 4), 5), ((6, 6), 0.2))
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("least", "most"), [(0.2, None), (None, 0.7), ("0.35", "2/3"), (0.5, 0.5)])
def test_every_layer_keeps_within_its_bounds_and_the_lowest_of_the_rest_go(seed: int, least: Any, most: Any) -> None:
    values = uneven(seed)
    model = linear_model(*values)
    bounds = {key: value for key, value in (("least", least), ("most", most)) if value is not None}
    pruner = Pruner(model, {"sparsity": 0.5, "scope": "global", **bounds}, 1)
    pruner.start()
    low, high = Fraction(least or 0).limit_denominator(100), Fraction(most or 1).limit_denominator(100)
    sizes = [value.numel() for value in values]
    masks = list(get_masks(model).values())
    count = int(Fraction(1, 2) * sum(sizes))
    counts = [int((~mask).sum()) for mask in masks]
    assert sum(counts) == count == pruner.report().chosen
    for mask, value, removed, size in zip(masks, values, counts, sizes, strict=True):
        assert (ceil(low * size) <= removed <= int(high * size)) or low == high
        assert np.array_equal(mask.numpy(), lowest(value.abs().numpy(), removed))
    # No exchange of one entry for another, within the bounds, removes less.
    for i, j in ((i, j) for i in range(3) for j in range(3) if i != j):
        if counts[i] > ceil(low * sizes[i]) and counts[j] < int(high * sizes[j]):
            assert values[i].abs()[~masks[i]].max() <= values[j].abs()[masks[j]].min()


def test_bounds_hold_on_the_way_and_are_told() -> None:
    model = linear_model(*uneven(1))
    schedule = {"schedule": "linear", "end": "8it", "every": "1it", "regrow": False}
    pruner = Pruner(model, {"sparsity": 0.5, "scope": "global", "least": 0.4, "most": 0.6, **schedule}, 8)
    for step in range(1, 9):
        pruner.step()
        removed = [int((~mask).sum()) for mask in get_masks(model).values()]
        assert all(
            int(0.4 * step / 8 * size) <= gone <= int(0.6 * size)
            for gone, size in zip(removed, (35, 36, 36), strict=True)
        )
    report = pruner.report()
    assert report.chosen == report.due == 53
    assert (
        report.notes[0].startswith("sparsity of a layer, least 0.4 and most 0.6: from 0.4") and "0.6" in report.notes[0]
    )


def test_groups_of_channels_keep_within_bounds() -> None:
    model, channels = chain()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(100)
    pruning = {"sparsity": 0.5, "scope": "global", "granularity": "unit", "least": 0.25, "most": 0.75}
    pruner = Pruner(model, pruning, 1, channels=channels)
    pruner.start()
    assert [(one.units, one.removed) for one in pruner.report().coupled] == [(4, 1), (5, 3)]


@pytest.mark.parametrize("scope", ["global", "layer", "filter", "erk"])
def test_a_sparsity_of_parameters_counts_biases_and_norms(scope: str) -> None:
    model = small_network()
    whole = sum(parameter.numel() for parameter in model.parameters())
    pruner = Pruner(model, {"sparsity": 0.5, "of": "parameters", "scope": scope, "ignore": "first"}, 1)
    pruner.start()
    report = pruner.report()
    size = sum(one.mask.numel() for name, one in masked_weights(model).items() if name != "0.weight")
    share = Fraction(1, 2) * whole / size
    if scope in ("global", "erk"):
        assert report.chosen == whole // 2
    elif scope == "layer":
        assert report.chosen == sum(int(share * one) for one in (16, 48, 750))
    assert report.chosen == report.due and report.share == report.chosen / whole
    line = f"weights: {report.chosen:,} of {size:,} removed, "
    assert sparsity_lines(report)[0].startswith(line) and "of the parameters" in sparsity_lines(report)[0]


def test_more_of_the_parameters_than_there_are_weights_is_an_error() -> None:
    with pytest.raises(SparsifyError, match=r"0.95 of the model's 1,061 parameters are .* at most 0.706"):
        Pruner(small_network(), {"sparsity": 0.95, "of": "parameters", "only": "last"}, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least": 0.1}, "'least' bounds each layer under scope global, not under 'layer'"),
        (
            {"most": 0.4, "scope": "global"},
            "sparsity 0.5 lies outside of what each layer may have, least 0 to most 0.4",
        ),
        ({"most": 0.9, "scope": "global", "of": "flops", "granularity": "unit"}, "'most' is a sparsity and goes with"),
        ({"most": 1.5, "scope": "global"}, "pruning.most: 1.5 is no sparsity"),
        ({"of": "parameters", "granularity": "4x1"}, "'of' belongs to granularity unit, not to block"),
    ],
)
def test_bounds_that_do_not_fit_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SparsifyError) as error:
        parse_pruning({"sparsity": 0.5, **settings})
    assert message in str(error.value)
