"""Forwards of which no record may be made: they read values past PyTorch's operations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsify import compile
from sparsify.calls import Inputs
from sparsify.errors import RunError
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
