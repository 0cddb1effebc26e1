"""Weights computed from a parameter: same bits in any memory layout, and no mask where its zeros would be lost."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, fold, set_masks, verify
from tests.surgery.products import module_of

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def centred_copy(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, self.w.t().clone().sub_(self.w.mean()))


def centred_sum(self: Any, x: Tensor) -> Tensor:
    return x @ (self.w.t() - self.w.mean())


def inverse(self: Any, x: Tensor) -> Tensor:
    return x @ torch.inverse(self.w)


def orthogonal(self: Any, x: Tensor) -> Tensor:
    return x @ torch.linalg.qr(self.w)[0]


@pytest.mark.parametrize("forward", [centred_copy, centred_sum, inverse, orthogonal])
def test_a_computed_weight_keeps_its_layout_in_memory(forward: Callable[..., Tensor]) -> None:
    model = module_of(forward, w=(4, 4))
    expected = copy.deepcopy(model)(X)
    assert convert(model).masked == {"w": "computed"}
    assert torch.equal(model(X), expected)
    found = verify(model, X)
    assert found.ok and found.live == ["w"], str(found)


def exponential(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, self.w.t().exp())


def centred(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, self.w.t().clone().sub_(self.w.mean()))


def also_as_it_is(self: Any, x: Tensor) -> Tensor:
    return x @ (self.w - self.w.mean()) + x @ self.w


def also_with_the_input(self: Any, x: Tensor) -> Tensor:
    return x @ (self.w - self.w.mean()) + x @ (self.w * x.mean())


def also_as_a_loss(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return x @ (self.w - self.w.mean()), self.w.square().sum()


@pytest.mark.parametrize("forward", [exponential, centred, also_as_it_is, also_with_the_input, also_as_a_loss])
def test_a_weight_whose_zeros_would_be_lost_has_no_mask(forward: Callable[..., Any]) -> None:
    report = convert(module_of(forward, w=(4, 5)))
    assert report.masked == {}
    assert report.skipped == {"w": "zeros in it would not be zeros in the weight computed from it"}


def test_a_weight_that_cannot_be_computed_from_a_parameter_with_zeros_has_no_mask() -> None:
    def factor(self: Any, x: Tensor) -> Tensor:
        return x @ torch.linalg.cholesky(self.w) + x @ self.w

    model = module_of(factor, w=(4, 4))
    model.w.data = model.w.data @ model.w.data.T + torch.eye(4)  # type: ignore[operator, union-attr]
    report = convert(model)
    assert report.skipped == {"w": "zeros in it would not be zeros in the weight computed from it"}


def normalised(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return x @ F.normalize(self.w, dim=0), self.w.square().sum()


def stepped(self: Any, x: Tensor) -> Tensor:
    fast = self.w.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad((x @ fast).square().mean(), fast)
    return x @ (self.w - 0.1 * gradient)


@pytest.mark.parametrize("forward", [normalised, stepped])
def test_a_parameter_that_is_also_read_in_another_way_is_masked_where_it_is_stored(
    forward: Callable[..., Any],
) -> None:
    model = module_of(forward, w=(4, 5))
    plain = copy.deepcopy(model)
    assert convert(model).masked == {"w": "substituted"}
    assert verify(model, X).ok
    mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    set_masks(model, {"w": mask})
    with torch.no_grad():
        plain.w.mul_(mask)  # type: ignore[operator, union-attr]
    for ours in (model, fold(model)):
        torch.testing.assert_close(ours(X), plain(X))


def gradient_of_a_child(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(self.l(x).square().sum(), self.l.weight)
    return x @ gradient


def gradient_of_a_backward(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        self.l(x).square().sum().backward(inputs=[self.l.weight])
    gradient, self.l.weight.grad = self.l.weight.grad, None
    return x @ gradient


@pytest.mark.parametrize("forward", [gradient_of_a_child, gradient_of_a_backward])
def test_a_forward_may_take_gradients_of_a_masked_weight(forward: Callable[..., Tensor]) -> None:
    model = module_of(forward)
    model.l = nn.Linear(4, 4)
    plain = copy.deepcopy(model)
    assert convert(model).masked == {"l.weight": "substituted"}
    assert torch.equal(model(X), plain(X))
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    set_masks(model, {"l.weight": mask})
    with torch.no_grad():
        plain.l.weight.mul_(mask)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(model(X), plain(X))
