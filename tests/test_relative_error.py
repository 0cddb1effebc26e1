from typing import Any

import numpy as np
import pytest
import torch

from sparsify.relative_error import relative_error

INF, NAN = float("inf"), float("nan")
LOWEST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        (torch.tensor([NAN, 2.0]), torch.tensor([NAN, 2.0]), 0.0),
        (torch.tensor([NAN, 2.0]), torch.tensor([1.0, 2.0]), INF),
        (torch.tensor([1.0, 2.0]), torch.tensor([NAN, 2.0]), INF),
        (torch.tensor([INF, 2.0]), torch.tensor([INF, 4.0]), 0.5),
        (torch.tensor([INF, 2.0]), torch.tensor([-INF, 2.0]), INF),
        (torch.tensor([INF, 2.0]), torch.tensor([1.0, 2.0]), INF),
        (torch.tensor([LOWEST, 2.0]), torch.tensor([LOWEST, 4.0]), 0.5),
        (torch.tensor([1.0]), torch.tensor([0.0]), INF),
        (torch.tensor([-0.0]), torch.tensor([0.0]), 0.0),
        (torch.tensor([1.0 + 1j]), torch.tensor([1.0 + 2j]), 1 / 5**0.5),
        (torch.tensor([1]), torch.tensor([2]), INF),
        (torch.tensor([True]), torch.tensor([True]), 0.0),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), INF),
        (torch.tensor([1.0]), torch.tensor([1.0]).double(), INF),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (np.array([1.0, 2.0]), np.array([1.0, 4.0]), 0.5),
        (np.array([1, 2]), np.array([1, 2]), 0.0),
        (np.broadcast_to([1.0, 2.0], (3, 2)), np.broadcast_to([1.0, 4.0], (3, 2)), 0.5),  # read-only
        (np.array([1.0, 2.0])[::-1], np.array([1.0, 4.0])[::-1], 0.5),
        (np.array([1.0, 2.0], dtype=">f4"), np.array([1.0, 4.0], dtype=">f4"), 0.5),
        (np.array([1.0, 2.0], dtype=np.longdouble), np.array([1.0, 4.0], dtype=np.longdouble), 0.5),
        (np.array([1.0]), np.array(["a"]), INF),
        (np.array(["a", "b"]), np.array(["a", "b"]), INF),  # compared entry by entry, which is no answer
        ({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.0, 4.0])}, 0.5),
        ({"a": 1}, {"b": 1}, INF),
    ],
)
def test_worked_by_hand(found: Any, expected: Any, error: float) -> None:
    assert relative_error([found], [expected]) == pytest.approx(error, rel=1e-12)


def test_the_largest_of_several_counts_each_by_its_own_size() -> None:
    found, expected = [torch.tensor([99.0]), torch.tensor([1.0])], [torch.tensor([100.0]), torch.tensor([2.0])]
    assert relative_error(found, expected) == 0.5 and relative_error([], []) == 0.0
    assert relative_error(found, expected[:1]) == INF


@pytest.mark.parametrize(("found", "expected", "error"), [(3, 3, 0.0), (3, 4, INF), (None, None, 0.0), (1, True, INF)])
def test_what_is_no_tensor_is_equal_or_not(found: object, expected: object, error: float) -> None:
    assert relative_error([found], [expected]) == error
