"""Which units are found dead: a unit of zeros before an operation, worked out by hand for every kind of operation."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.dataflow.bias_sinks import bias_sinks
from sparsify.surgery.dataflow.liveness import Liveness, indicator
from sparsify.surgery.recording.context import all_double
from sparsify.surgery.recording.recorder import record
from sparsify.surgery.rules.table import Rules
from sparsify.surgery.shrink.shrink import shrink


class Between(nn.Module):
    """Two layers with an operation between them; units 1 and 3 of the first are zero whatever the input."""

    def __init__(self, operation: Callable[[Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.operation = operation
        self.first = nn.Linear(3, 4, bias=False)
        self.last = nn.Linear(width, 2, bias=False)
        with torch.no_grad():
            self.first.weight[[1, 3]] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.operation(self.first(x))
        return self.last(y) + self.last(y)  # read twice, a bias cannot take in what is constant


def dead_units(model: nn.Module, name: str = "first.weight") -> list[int]:
    found = analyse(model, torch.randn(5, 3))
    groups = found.labels.get(name, {}).get(0, torch.full((4,), -1))
    return [unit for unit, group in enumerate(groups.tolist()) if group >= 0 and found.dead[group]]


ZERO_STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_": lambda x: x.relu_(),
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "mish": F.mish,
    "softshrink": F.softshrink,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25])),
    "abs": torch.abs,
    "neg": torch.neg,
    "sqrt": lambda x: x.abs().sqrt(),
    "square": torch.square,
    "power": lambda x: x**2,
    "half": lambda x: x * 0.5,
    "over two": lambda x: x / 2,
    "plus nothing": lambda x: x + 0,
    "times itself": lambda x: x * x,
    "clamp around zero": lambda x: x.clamp(-1, 2),
    "clamp from below": lambda x: x.clamp(min=0),
    "clamp from above": lambda x: x.clamp(max=0.5),
    "zero where negative": lambda x: torch.where(x > 0, x, 0.0),
    "times a gate": lambda x: x * torch.sigmoid(x),
    "added to itself": lambda x: torch.add(x, x, alpha=2),
    "double and back": lambda x: x.double().float(),
    "copied": lambda x: torch.zeros_like(x).copy_(x),
    "maximum": lambda x: torch.maximum(x, -x),
    "mean of pairs": lambda x: F.avg_pool1d(x[:, :, None].expand(-1, -1, 4), 2).sum(2),
    "nan_to_num": lambda x: torch.nan_to_num(x, nan=1.0),
    "expm1": torch.expm1,
}
ZERO_GOES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "plus one": lambda x: x + 1,
    "plus True": lambda x: x + True,
    "minus one": lambda x: x - 1,
    "one minus": lambda x: 1 - x,
    "plus a constant": lambda x: x + torch.ones(()),
    "power zero": lambda x: x**0,
    "of two": lambda x: 2**x,
    "to the minus one": lambda x: (x**-1).nan_to_num(posinf=1.0),
    "clamp above zero": lambda x: x.clamp(min=0.1),
    "clamp below zero": lambda x: x.clamp(max=-1),
    "clamp by keyword": lambda x: torch.clamp(x, max=-0.5),
    "hardtanh off zero": lambda x: F.hardtanh(x, 0.5, 1.0),
    "threshold": lambda x: F.threshold(x, 0.5, 3.0),
    "clamp by a tensor": lambda x: torch.clamp(x, min=torch.ones(4)),
    "equal": lambda x: (x == 0).float(),
    "where with another constant": lambda x: torch.where(x > 0, x, 1.0),
    "filled": lambda x: x.masked_fill(x == 0, 2.0),
    "times infinity": lambda x: (x * math.inf).nan_to_num(nan=1.0, posinf=1.0, neginf=1.0),
    "times infinities": lambda x: (x * torch.full((4,), math.inf)).nan_to_num(nan=1.0, posinf=1.0, neginf=1.0),
    "over nothing": lambda x: (x / 0).nan_to_num(nan=1.0, posinf=1.0, neginf=1.0),
    "over itself": lambda x: (x / x).nan_to_num(nan=7.0),
    "softmax": lambda x: F.softmax(x, 0),
    "logarithm of sums": lambda x: torch.logsumexp(x[:, :, None].expand(-1, -1, 3), 2),
    "cumulative product of ones": lambda x: torch.cumprod(x + 1, 0),
    "logical not": lambda x: torch.logical_not(x).float(),
    "erfc": torch.erfc,
    "lerp": lambda x: torch.lerp(x, torch.ones(4), 0.5),
    "addcmul": lambda x: torch.addcmul(x, torch.ones(4), torch.ones(4)),
    "rows of the largest": lambda x: F.one_hot(x.argmax(1), 4).float(),
    "indices of the largest": lambda x: F.max_pool1d(
        x[:, :, None].expand(-1, -1, 3) + torch.arange(3.0), 3, return_indices=True
    )[1][:, :, 0].float(),
}


@pytest.mark.parametrize("name", ZERO_STAYS)
def test_units_stay_dead_through_an_operation_that_makes_zero_of_zero(name: str) -> None:
    model = Between(ZERO_STAYS[name])
    assert dead_units(model) == [1, 3]
    report = shrink(model, torch.randn(5, 3), dead="zeros")
    assert report.model.first.weight.shape == (2, 3) and report.model.last.weight.shape == (2, 2)


@pytest.mark.parametrize("name", ZERO_GOES)
def test_units_come_alive_in_an_operation_that_makes_something_of_zero(name: str) -> None:
    model = Between(ZERO_GOES[name])
    assert dead_units(model) == []
    x = torch.randn(9, 3)
    torch.testing.assert_close(shrink(model, torch.randn(5, 3), dead="zeros").model(x), model(x))


def test_a_unit_that_nothing_reads_is_dead() -> None:
    model = Between(torch.sigmoid)
    with torch.no_grad():
        model.first.weight.fill_(1)
        model.last.weight[:, 2] = 0
    assert dead_units(model) == [], "the weights that would read it can learn"
    assert shrink(model, torch.randn(5, 3), dead="zeros").model.first.out_features == 3


def test_a_product_with_a_dead_unit_is_not_read() -> None:
    """y = last(first(x) * gate(x)): where one factor is zero for good, the other does not matter."""

    class Gated(Between):
        def __init__(self) -> None:
            super().__init__(lambda y: y)
            self.gate = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * torch.sigmoid(self.gate(x)))

    model = Gated()
    assert dead_units(model) == [1, 3] and dead_units(model, "gate.weight") == [1, 3]


@pytest.mark.parametrize(
    ("weight", "bias", "mean", "dead"),
    [
        (1.0, 0.0, 0.0, True),
        (1.0, 0.5, 0.0, False),
        (1.0, 0.0, 0.5, False),
        (0.0, 0.0, 0.5, True),
        (0.0, 0.5, 0.5, False),
        (1.0, 0.5, 0.5, False),  # (0 - 0.5) / 2 + 0.5: only without the deviation would it be zero
    ],
)
def test_batch_norm_in_eval_mode(weight: float, bias: float, mean: float, dead: bool) -> None:
    norm = nn.BatchNorm1d(4)
    with torch.no_grad():
        norm.running_var.fill_(4)
        norm.weight[1], norm.bias[1], norm.running_mean[1] = weight, bias, mean
    model = Between(lambda y: y)
    model.operation = norm
    assert dead_units(model) == ([1, 3] if dead else [3])


def test_batch_norm_without_statistics_or_weights() -> None:
    for norm in (nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)):
        model = Between(lambda y: y)
        model.operation = norm
        assert dead_units(model) == [1, 3]
        assert shrink(model, torch.randn(5, 3), dead="zeros").removed == 2


def test_a_norm_over_channels_keeps_them_but_not_those_that_nothing_reads() -> None:
    """Each entry's size depends on how many channels there are: dead ones stay."""
    model = Between(lambda y: y)
    model.operation = nn.LayerNorm(4)
    assert dead_units(model) == []
    assert shrink(model, torch.randn(5, 3), dead="zeros").removed == 0


def test_the_indicator_makes_flags_of_sums_and_of_gradients() -> None:
    x = torch.tensor([0.0, 2.0, 3.0], requires_grad=True)
    flags = indicator(x)
    assert flags.tolist() == [0, 1, 1]
    (flags * torch.tensor([5.0, 0.0, 7.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.tolist() == [1, 0, 1]


def test_masks_stand_for_the_parameters_they_are_of() -> None:
    model = Between(F.relu)
    with torch.no_grad():
        model.first.weight.fill_(1)
    recording = record(model, torch.randn(5, 3))
    kept = torch.ones(4, 3, dtype=torch.bool)
    kept[2] = False
    live = Liveness(recording, Rules().flow, bias_sinks(recording), {"first.weight": kept})
    product = next(op for op in recording.ops if op.name == "mm").results[0]
    assert live.alive(product).reshape(-1).tolist() == [True, True, False, True]


def test_a_mode_that_changes_what_a_forward_computes_does_not_reach_the_flags() -> None:
    model = Between(nn.BatchNorm1d(4)).double().eval()
    with all_double():  # widens float32, also where flags are made
        assert dead_units(model) == [1, 3]
