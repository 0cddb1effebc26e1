"""A pass whose activations are not computed: it shows the same operations, and computes them where they decide."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.surgery.recording.recorder import _record, record
from sparsify.surgery.recording.shape_only import ValuesNeededError
from tests.surgery.recording.test_recorder import Calls, names

GIVEN = torch.tensor([[1.0, 2, 3, 4], [-1.0, 0, 2, 5]])


def by_sum(m: Calls, x: Tensor) -> Tensor:
    return torch.relu(m.first(x)) if m.first(x).sum() > 5 else torch.tanh(m.first(x))


def by_number(m: Calls, x: Tensor) -> Tensor:
    return m.first(x).narrow(1, 0, int(m.first(x).max()) % 4 + 1)  # the largest sum is 10


def by_mask(m: Calls, x: Tensor) -> Tensor:
    y = m.first(x)
    return y[y > 7]


def by_other_library(m: Calls, x: Tensor) -> Tensor:
    return m.first(x) * float(m.first(x).numpy()[0, 0])


def by_inverse(m: Calls, x: Tensor) -> Tensor:
    y = m.first(x)
    return torch.linalg.inv(y.T @ y + torch.eye(4) * y[0, 0])


DECIDED: dict[str, tuple[Callable[[Calls, Tensor], Tensor], Callable[[list[Any]], bool]]] = {
    "branch": (by_sum, lambda ops: ops[-1].name == "relu"),
    "number": (by_number, lambda ops: ops[-1].results[0].shape == (2, 3)),
    "mask": (by_mask, lambda ops: ops[-1].results[0].shape == (4,)),
    "other library": (by_other_library, lambda ops: "numpy" in [op.name for op in ops]),
    "error": (by_inverse, lambda ops: "linalg_inv_ex" in [op.name for op in ops]),
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_activations_decide_is_as_they_are(name: str) -> None:
    function, right = DECIDED[name]
    model = Calls(function)
    nn.init.ones_(model.first.weight)
    with pytest.raises((ValuesNeededError, RuntimeError)):
        _record(model, GIVEN, None, computed=False)
    assert right(list(record(model, GIVEN).ops))


class Mixed(nn.Module):
    """Every operation of which only the shape is worked out, each in another memory format or precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.grouped = nn.Conv2d(8, 8, (1, 3), groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1)
        self.line = nn.Conv1d(4, 6, 2)
        self.linear, self.mean = nn.Linear(6, 12), nn.Linear(12, 4, bias=False)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.stem(x)))
        x = self.line(x.flatten(2)).transpose(1, 2)
        x = self.linear(x)
        heads = x.unflatten(-1, (2, 6)).transpose(1, 2)
        x = x + F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        x = x + self.attention(x, x, x)[0] + torch.baddbmm(x, x @ x.mT, x)
        return self.mean(x.double().float()[:, 0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_record_is_the_same_as_with_activations(channels_last: bool) -> None:
    x = torch.randn(2, 3, 17, 13)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    results: list[tuple[Tensor, ...]] = []
    plain = _record(Mixed(), x, results, computed=True)
    quick = _record(Mixed(), x, None, computed=False)
    assert names(quick) == names(plain)
    for a, b in zip(quick.ops, plain.ops, strict=True):
        assert [value.shape for value in (*a.inputs, *a.results)] == [value.shape for value in (*b.inputs, *b.results)]
    assert {"convolution", "mm", "addmm", "bmm", "baddbmm"} <= {*names(quick)}
    assert "_scaled_dot_product_flash_attention_for_cpu" in names(quick)


def test_a_model_that_fails_says_why_itself() -> None:
    def wrong(m: Calls, x: Tensor) -> Tensor:
        if m.first(x).sum() != 0:
            raise ZeroDivisionError("of its own")
        return x

    model = Calls(wrong)
    nn.init.ones_(model.first.weight)
    with pytest.raises(ZeroDivisionError, match="of its own"):
        record(model, GIVEN)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shapes_of_convolutions_are_those_that_torch_gives(rank: int, transposed: bool) -> None:
    kinds = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    more = {"output_padding": 1} if transposed else {}
    layer = kinds[rank - 1](4, 6, 3, stride=2, padding=1, dilation=2, groups=2, **more)
    x = torch.randn(2, 4, *range(7, 7 + rank))
    (op,) = _record(layer, x, None, computed=False).ops
    assert op.results[0].shape == tuple(layer(x).shape)


def test_a_convolution_that_does_not_fit_raises_the_error_of_torch() -> None:
    with pytest.raises(RuntimeError, match="expected input"):
        record(nn.Conv2d(4, 6, 3), torch.randn(1, 5, 8, 8))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        record(nn.Linear(4, 6), torch.randn(1, 5))


class Unfitting(nn.Module):
    """Runs a layer one of whose vectors has another length than its input or its output."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.layer = layer
        held = getattr(layer, name)
        setattr(layer, name, type(held)(torch.ones(len(held) + 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


UNFITTING = {
    "bias of a convolution": (nn.Conv2d(4, 6, 3), "bias", (1, 4, 8, 8)),
    "bias of a linear layer": (nn.Linear(4, 6), "bias", (1, 4)),
    "scale of a batch norm": (nn.BatchNorm2d(4), "weight", (1, 4, 8, 8)),
    "mean of a batch norm": (nn.BatchNorm2d(4), "running_mean", (1, 4, 8, 8)),
}


@pytest.mark.parametrize("what", UNFITTING)
def test_a_vector_that_does_not_fit_is_an_error(what: str) -> None:
    layer, name, shape = UNFITTING[what]
    with pytest.raises(RuntimeError):
        record(Unfitting(copy.deepcopy(layer), name), torch.randn(shape))
