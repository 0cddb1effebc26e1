import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import sparsify
from sparsify import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OPERATIONS = [
    (F.linear, (7, 6), (4, 6), {}),
    (F.conv1d, (2, 4, 9), (6, 2, 3), {"padding": 1, "groups": 2}),
    (F.conv2d, (2, 4, 9, 8), (6, 4, 3, 2), {"stride": 2, "padding": 1}),
    (F.conv3d, (1, 2, 4, 5, 6), (3, 2, 2, 2, 2), {"dilation": 2}),
    (F.conv_transpose1d, (2, 4, 9), (4, 3, 3), {"stride": 2, "output_padding": 1}),
    (F.conv_transpose2d, (2, 4, 5, 5), (4, 3, 3, 3), {"groups": 2}),
    (F.conv_transpose3d, (1, 2, 3, 3, 3), (2, 2, 2, 2, 2), {}),
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dense", "input_shape", "weight_shape", "options"), OPERATIONS)
def test_masked_operation_is_the_dense_one_on_the_masked_weight(
    dense: object,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    options: dict[str, int],
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    masked = ops.MASKED[dense]  # type: ignore[index]
    input = torch.randn(input_shape).to(dtype)
    weight = nn.Parameter(torch.randn(weight_shape).to(dtype))
    mask = torch.rand(weight_shape) < 0.5
    expected = dense(input, torch.where(mask, weight, 0), **options)  # type: ignore[operator]
    (expected_gradient,) = torch.autograd.grad(expected.sum(), weight)
    output = masked(input, weight, mask, **options)
    (gradient,) = torch.autograd.grad(output.sum(), weight)
    assert torch.equal(bits(output), bits(expected))
    assert torch.equal(bits(gradient), bits(expected_gradient))
    assert not gradient[~mask].any()


def test_removed_entries_are_positive_zero_whatever_lies_underneath() -> None:
    weight = nn.Parameter(torch.tensor([[float("nan"), -0.0, float("inf"), -5.0]]))
    mask = torch.tensor([[False, False, False, True]])
    output = ops.masked_linear(torch.eye(4), weight, mask)
    assert torch.equal(bits(output.flatten()), bits(torch.tensor([0.0, 0.0, 0.0, -5.0])))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_subnormal=True), min_size=1, max_size=40),
    st.integers(0, 2**40 - 1),
    st.sampled_from(DTYPES),
)
def test_masking_bits_equals_where(values: list[float], kept: int, dtype: torch.dtype) -> None:
    weight = torch.tensor(values).to(dtype)
    mask = torch.tensor([bool(kept >> i & 1) for i in range(len(values))])
    result = ops._bitwise_masked(weight, mask, out=torch.empty_like(weight))
    assert torch.equal(bits(result), bits(torch.where(mask, weight, 0)))


def test_channels_last_weights_are_masked_in_their_own_layout() -> None:
    weight = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last))
    mask = (torch.rand(6, 4, 3, 3) < 0.5).to(memory_format=torch.channels_last)
    for mask_layout in (mask, mask.contiguous()):
        input = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
        expected = F.conv2d(input, torch.where(mask, weight, 0))
        assert torch.equal(ops.masked_conv2d(input, weight, mask_layout), expected)


def test_large_effective_weights_reuse_memory_but_never_one_that_a_graph_still_needs() -> None:
    weight = nn.Parameter(torch.randint(-9, 9, (2048, 2200)).float())  # whole numbers: sums are exact
    mask = torch.rand(2048, 2200) < 0.5
    first_input, second_input = torch.randn(1, 2200, requires_grad=True), torch.randn(1, 2200, requires_grad=True)
    first = ops.masked_linear(first_input, weight, mask)
    kept = torch.where(mask, weight, 0).detach().clone()
    with torch.no_grad():
        weight.mul_(2)
    second = ops.masked_linear(second_input, weight, mask)
    assert not ops._SCRATCH[mask]
    first.sum().backward()
    assert first_input.grad is not None
    assert torch.equal(first_input.grad, kept.sum(0, keepdim=True))
    del first, second
    free = {id(memory) for memory in ops._SCRATCH[mask]}
    ops.masked_linear(first_input, weight, mask)
    assert len(free) == 2 and {id(memory) for memory in ops._SCRATCH[mask]} == free


def test_double_backward_goes_through_the_mask() -> None:
    weight = nn.Parameter(torch.tensor([[2.0, 3.0]]))
    mask = torch.tensor([[True, False]])
    output = ops.masked_linear(torch.tensor([[1.0, 1.0]]), weight, mask).pow(3).sum()
    (gradient,) = torch.autograd.grad(output, weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    assert torch.equal(gradient, torch.tensor([[12.0, 0.0]]))
    assert torch.equal(second, torch.tensor([[12.0, 0.0]]))


def test_functional_transforms_see_the_mask() -> None:
    mask = torch.tensor([[True, False]])

    def loss(weight: Tensor) -> Tensor:
        return ops.masked_linear(torch.tensor([[1.0, 1.0]]), weight, mask).pow(2).sum()

    assert torch.equal(torch.func.grad(loss)(torch.tensor([[2.0, 3.0]])), torch.tensor([[4.0, 0.0]]))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_functional_transforms_of_the_input_pass_masked_parameters(transform: Callable[..., Any]) -> None:
    weight = nn.Parameter(torch.tensor([[2.0, 3.0]]))
    mask = torch.tensor([[True, False]])
    gradient = transform(lambda x: ops.masked_linear(x, weight, mask).pow(2).sum())
    x = torch.tensor([[1.0, 1.0], [2.0, 1.0]])
    assert torch.equal(gradient(x[0]), torch.tensor([8.0, 0.0]))
    assert torch.equal(torch.vmap(gradient)(x), torch.tensor([[8.0, 0.0], [16.0, 0.0]]))


def test_a_default_device_does_not_matter() -> None:
    weight, mask = nn.Parameter(torch.tensor([[2.0, 3.0]])), torch.tensor([[True, False]])
    x = torch.tensor([1.0, 1.0])
    with torch.device("meta"):
        assert ops.masked_linear(x, weight, mask).item() == 2.0


def test_under_fx_a_masked_operation_is_one_node() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))
            self.register_buffer("mask", torch.ones(3, 2, dtype=torch.bool))

        def forward(self, x: Tensor) -> Tensor:
            return ops.masked_linear(x, self.weight, self.mask) + ops.mask_weight(self.weight, self.mask).sum()  # type: ignore[arg-type]

    model = Model()
    traced = fx.symbolic_trace(copy.deepcopy(model))
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets[:2] == [ops.masked_linear, ops.mask_weight]
    x = torch.randn(4, 2)
    traced.mask.copy_(torch.tensor([[True, False]] * 3))  # type: ignore[operator, union-attr]
    assert torch.equal(traced(x), F.linear(x, torch.where(traced.mask, traced.weight, 0)) + traced.weight[:, 0].sum())  # type: ignore[arg-type, call-overload, union-attr, index]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_same_kernels_are_chosen_where_no_gradient_is_recorded(grad: bool, training: bool) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)
            self.large = nn.Linear(512, 1024)  # its effective weight lies in memory that is used again
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            attended = self.attention(y, y[:, :3], y[:, :3])[0]
            return self.mix(x.permute(0, 2, 3, 1)), attended, self.large(z[:, :2])

    torch.manual_seed(0)
    model = Heads().train(training)
    inputs = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 16), torch.randn(2, 258, 512)
    with torch.set_grad_enabled(grad):
        expected = model(*inputs)
        sparsify.convert(model)
        assert all(torch.equal(a, b) for a, b in zip(model(*inputs), expected, strict=True))
