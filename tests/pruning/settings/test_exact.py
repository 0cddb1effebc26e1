"""Sparsities and amounts as they were meant."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.pruning.settings.exact import exact
from sparsify.pruning.settings.prune import parse_pruning


def test_a_ratio_of_small_numbers_is_that_ratio() -> None:
    assert all(exact(k / n) == Fraction(k, n) for n in range(2, 300) for k in range(1, n))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (0.29, "29/100"),
        (0.999999, "999999/1000000"),
        (32 / 96, "1/3"),
        ("1/3", "1/3"),
        ("0.123456789", "123456789/1000000000"),
        (Fraction(2, 7), "2/7"),
        (Decimal("0.95"), "19/20"),
        (np.float64(0.29), "29/100"),
        (np.float32(0.29), "29/100"),
        (np.float32(1 / 3), "1/3"),
        (np.float16(0.3), "3/10"),
        (np.array(0.3), "3/10"),
        (np.int64(1), "1"),
        (torch.tensor(0.3), "3/10"),
        (torch.tensor(1 / 3, dtype=torch.float64), "1/3"),
        (torch.tensor(0.7, dtype=torch.bfloat16), "7/10"),
        (torch.tensor(0), "0"),
        (1, "1"),
        (0, "0"),
    ],
)
def test_a_sparsity_is_what_was_meant(given: Any, meant: str) -> None:
    pruning = parse_pruning({"sparsity": given})
    assert pruning.target == Fraction(meant)
    assert parse_pruning(pruning.model_dump(mode="json")) == pruning
    schedule = {"name": "linear", "initial_sparsity": given}
    initial = parse_pruning({"sparsity": 1, "schedule": schedule}).schedule.initial_sparsity
    assert initial is not None and exact(initial) == Fraction(meant)


SCALARS: list[Any] = [
    np.array(2),
    np.bool_(True),
    np.array([0.5]),
    np.complex64(0.5),
    np.float64("nan"),
    np.array("0.5"),
]
SCALARS += [torch.tensor(True), torch.tensor([0.5]), torch.tensor(-1), torch.tensor(0.5, device="meta")]


@pytest.mark.parametrize(
    "given", ["abc", "1/0", "4/3", "-0.1", True, 1.5, float("nan"), [0.5], np.float32(2), 1j, *SCALARS]
)
def test_anything_else_is_no_sparsity(given: Any) -> None:
    with pytest.raises(SparsifyError, match="is no sparsity"):
        parse_pruning({"sparsity": given})


def layers() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10))
    sparsify.convert(model)
    return model


@pytest.mark.parametrize("criterion", ["magnitude", "random", "synflow"])
@pytest.mark.parametrize(
    ("settings", "removed"),
    [
        ({"amount": 5}, [5, 5]),
        ({"amount": 2, "scope": "filter"}, [12, 20]),
        ({"amount": 2, "granularity": "unit"}, [16, 12]),
        ({"amount": 3, "granularity": "1x2"}, [6, 6]),
        ({"amount": 1, "granularity": "1x2", "scope": "filter"}, [12, 20]),
        ({"amount": np.int64(0)}, [0, 0]),
        ({"amount": 48}, [48, 48]),
    ],
)
@pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")
def test_an_amount_goes_from_each_group(criterion: str, settings: dict[str, Any], removed: list[int]) -> None:
    model = layers()
    pruner = sparsify.Pruner(model, {"criterion": criterion, **settings}, 1, example_input=None)
    pruner.start([torch.ones(1, 8)], lambda model, batch: model(batch).sum())
    report = pruner.report()
    assert [layer.removed for layer in report.layers] == removed and report.chosen == report.due
    assert report.requested == report.due / report.choices == pruner.sparsity


def test_the_former_place_of_decimal_still_holds_it() -> None:
    from sparsify.pruning import sections
    from sparsify.pruning.settings.sections import decimal

    assert sections.decimal is decimal
