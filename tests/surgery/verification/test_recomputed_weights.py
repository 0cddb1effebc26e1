import pytest
import torch
from torch import Tensor, nn

from sparsify import convert, ops, set_masks, verify
from sparsify.surgery.copy_on_write import CopyOnWrite
from sparsify.surgery.mask_state.masks import all_masked_parameters
from sparsify.surgery.verification.recomputed_weights import recomputed_weights


def converted(width: int) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(width, width), nn.Sigmoid(), nn.Linear(width, width))
    convert(model)
    set_masks(model, {weight.name: torch.rand(weight.mask.shape) < 0.5 for weight in all_masked_parameters(model)})
    return model


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_effective_weights_are_not_kept_and_gradients_are_the_same_bits(dtype: torch.dtype) -> None:
    model, x = converted(768), torch.randn(3, 768)
    masks = [weight.mask for weight in all_masked_parameters(model)]

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16, cache_enabled=False):
            return model(x).float().square().sum()  # type: ignore[no-any-return]

    expected = loss()
    expected.backward()
    before = gradients(model)
    model.zero_grad()
    del expected
    with CopyOnWrite() as memory:
        with recomputed_weights(model, memory):
            again = loss()
        assert all(ops._SCRATCH[mask] for mask in masks)  # where their memory is free
        again.backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), before, strict=True)) and len(before) == 4


def test_a_weight_that_is_written_to_before_the_backward_pass_is_kept_as_it_was() -> None:
    model, x = converted(8), torch.randn(3, 8)
    model(x).sum().backward()
    before = gradients(model)
    model.zero_grad()
    with CopyOnWrite() as memory:
        with recomputed_weights(model, memory):
            output = model(x).sum()
        model[2].weight.data.zero_()
        output.backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), before, strict=True))


def test_a_changed_activation_is_an_error_as_ever() -> None:
    model = converted(8)
    with CopyOnWrite() as memory:
        with recomputed_weights(model, memory):
            hidden = model[1](model[0](torch.randn(3, 8)))
        hidden.detach().zero_()
        with pytest.raises(RuntimeError, match="changed in place"):
            hidden.sum().backward()


class Gradient(nn.Module):
    """Returns the gradient of what it computes, by torch.func, which takes no hooks on what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: self.layer(y).sin().sum())(x)  # type: ignore[no-any-return]


def test_a_forward_that_takes_no_hooks_is_compared_without() -> None:
    model = Gradient()
    convert(model)
    report = verify(model, torch.randn(4, 6))
    assert report.identical_eval and report.identical_train and report.ok and not report.notes
