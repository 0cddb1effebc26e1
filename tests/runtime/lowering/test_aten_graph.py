"""Forwards that read values past PyTorch's operations, of which no record may be made, and custom functions."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparsify import compile
from sparsify.calls import Inputs
from sparsify.errors import RunError
from sparsify.runtime.kernel_errors import TraceError
from sparsify.runtime.lowering.aten_graph import trace


class Reading(nn.Module):
    """Scales its input by what `read` makes of the input's values."""

    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return x * float(self.read(x.detach().relu()))


def graph_of(read: Callable[[Tensor], Any]) -> torch.fx.GraphModule:
    return trace(Reading(read), [torch.randn(2, 3)], lambda tensors: Inputs(*tensors))[0]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.numpy().sum(),
        lambda x: np.asarray(x).max(),
        lambda x: np.from_dlpack(x).sum(),
        lambda x: x.tolist()[0][0],
        lambda x: x.sum().item(),
        lambda x: x.sum().numpy(),
    ],
    ids=["numpy", "asarray", "dlpack", "tolist", "item", "of a sum"],
)
def test_values_read_past_the_operations_are_refused(read: Callable[[Tensor], Any]) -> None:
    with pytest.raises(RunError, match="the forward depends on values"):
        graph_of(read)


def test_a_number_that_is_taken_out_is_told_with_its_place() -> None:
    with pytest.raises(RunError, match=r"it takes a number out of a tensor, test_aten_graph\.py:\d+\)$"):
        graph_of(lambda x: int(x.sum()))


@pytest.mark.parametrize("read", [lambda x: x.shape[1], lambda x: np.ones(3).sum(), lambda x: x.dim()])
def test_numbers_that_no_value_enters_are_constants(read: Callable[[Tensor], Any]) -> None:
    x = torch.randn(2, 3)
    [output] = graph_of(read)(x)
    assert torch.equal(output, x * float(read(x)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_lengths_of_packed_sequences_are_values(kind: Any) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 4)

        def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
            state = x.new_zeros(1, 2, 4)
            given = (state, state) if kind is nn.LSTM else state
            return self.rnn(PackedSequence(x, sizes), given)[0].data  # type: ignore[no-any-return]

    with pytest.raises(RunError, match="the forward depends on values"):
        trace(Packed(), [torch.randn(4, 3), torch.tensor([2, 2])], lambda tensors: Inputs(*tensors))


def test_gradients_asked_for_are_no_operation() -> None:
    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).requires_grad_(True) + 1

    x = torch.randn(2, 3)
    [output] = trace(Asking(), [x], lambda tensors: Inputs(*tensors))[0](x)
    assert torch.equal(output, x * 2 + 1)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.by = by if ctx.needs_input_grad[0] else None
        return x.clone().mul_(by), x

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return first * ctx.by + second, None


class Shifted(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, by: float = 3.0) -> Tensor:  # type: ignore[override]
        return x + by

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise AssertionError("there is no gradient")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Increased(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.mark_dirty(x)
        return x.add_(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = Scaled.apply(x, 2.0)  # type: ignore[no-untyped-call]
        return Increased.apply(Shifted.apply(first) - second)  # type: ignore[no-any-return, no-untyped-call]


def test_the_operations_of_custom_autograd_functions_are_recorded() -> None:
    x = torch.randn(2, 3)
    before, apply = x.clone(), vars(torch.autograd.Function)["apply"]
    [output] = trace(Custom(), [torch.randn(2, 3)], lambda tensors: Inputs(*tensors))[0](x)
    assert torch.allclose(output, x + 4) and torch.equal(x, before)
    assert vars(torch.autograd.Function)["apply"] is apply


class Limited(torch.autograd.Function):
    """The identity, with gradients of at most 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.clamp(-1, 1)


def gradient_of_an_input(x: Tensor) -> Tensor:
    return torch.func.grad(lambda x: (Limited.apply(x) ** 2).sum())(x)  # type: ignore[no-any-return, no-untyped-call]


def gradient_of_a_factor(x: Tensor) -> Tensor:
    with torch.enable_grad():
        factor = torch.ones_like(x, requires_grad=True)
        return torch.autograd.grad((Limited.apply(x * factor) ** 2).sum(), factor)[0]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("forward", [gradient_of_an_input, gradient_of_a_factor, torch.vmap(Limited.apply)])
def test_custom_functions_under_a_gradient_or_another_transform_are_not_replaced_by_their_forwards(
    forward: Callable[[Tensor], Tensor],
) -> None:
    class Transformed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    with pytest.raises(TraceError):
        trace(Transformed(), [torch.randn(2, 3)], lambda tensors: Inputs(*tensors))


def test_custom_functions_of_other_threads_keep_their_gradients_meanwhile() -> None:
    found: list[Tensor] = []

    def training() -> None:
        x = torch.ones(2, requires_grad=True)
        with torch.enable_grad():
            Scaled.apply(x, 2.0)[0].sum().backward()  # type: ignore[no-untyped-call]
        found.append(x.grad)  # type: ignore[arg-type]

    def read(x: Tensor) -> float:
        thread = Thread(target=training)
        thread.start()
        thread.join()
        return 1.0

    graph_of(read)
    assert torch.equal(found[0], torch.full((2,), 2.0))


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # PyTorch's, of another kernel
@pytest.mark.parametrize(
    "layer",
    [nn.GRU(6, 6), nn.RNN(6, 6, bias=False), nn.GRU(6, 3, 2, bidirectional=True), nn.LSTM(6, 8, proj_size=5)],
    ids=["gru", "rnn", "two ways", "projected"],
)
def test_a_recurrent_layer_writes_into_no_tensor_that_a_later_call_reads(layer: nn.Module) -> None:
    x = torch.randn(4, 2, 6)
    engine = compile(layer, x, tune=False)
    for _ in range(3):
        torch.testing.assert_close(engine(x)[0], layer(x)[0].detach(), atol=1e-5, rtol=0)
