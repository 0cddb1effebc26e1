"""Functions, sums and products of activations, wherever they stand, against torch in double precision."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify.runtime.kernels.activations import apply
from sparsify.runtime.kernels.opcodes import Activation, Opcode
from sparsify.runtime.lowering.ir import Instruction
from tests.runtime.kernels.test_kernels import QUICK, Calls, check, plan_of, sparse

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "mish": F.mish,
}
PARAMETERS = {"leaky_relu": 0.01, "elu": 1.0}


def applied(name: str, x: Tensor) -> Tensor:
    values = x.numpy().copy()
    apply(Activation[name.upper()], values, 0, len(values), np.float32(PARAMETERS.get(name, 0)), np.float32(1))
    return torch.from_numpy(values)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_exact_to_a_few_units_in_the_last_place(name: str) -> None:
    steps = torch.linspace(-30, 30, 40_001)
    x = torch.cat([steps, torch.logspace(-30, 38, 2000), -torch.logspace(-30, 38, 2000), torch.tensor([0.0, -0.0])])
    expected, found = FUNCTIONS[name](x.double()), applied(name, x).double()
    # Functions with x as a factor are a product with one that is exact to 2 ** -24 of 1.
    scale = expected.abs() if name in ("tanh", "elu") else torch.maximum(expected.abs(), x.double().abs().clamp(max=1))
    assert float(((found - expected).abs() / (2**-24 * scale + 1e-37)).max()) < 6


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_keep_nan_and_infinity_as_torch_does(name: str) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e37, -3e37, 89.0, -89.0, 1e-45] * 4)
    # In float32 torch's own gelu makes inf of inf or nan, depending on where in a tensor it stands.
    expected = FUNCTIONS[name](x.double()).float()
    torch.testing.assert_close(applied(name, x), expected, equal_nan=True, rtol=1e-6, atol=1e-36)


def test_every_function_of_the_table_is_tested() -> None:
    assert {one.name.lower() for one in Activation} == set(FUNCTIONS)


@QUICK
@given(
    name=st.sampled_from(sorted(FUNCTIONS)),
    images=st.integers(1, 18),
    channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    pad=st.integers(0, 3),
    kept=st.booleans(),
    factor=st.sampled_from([1.0, -1.5]),
    threads=st.integers(1, 3),
)
def test_functions_leave_nothing_in_the_borders(
    name: str, images: int, channels: int, size: tuple[int, int], pad: int, kept: bool, factor: float, threads: int
) -> None:
    """The convolution behind the function reads its borders; what is kept for a sum may not be overwritten."""

    def forward(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        y = F.conv2d(x, v)
        z = F.conv2d(FUNCTIONS[name](y) * factor, w, padding=pad)
        return z * y[:, :1].mean((2, 3), keepdim=True).sigmoid() if kept else z

    weights = sparse((channels, 2, 1, 1), 1), sparse((1, channels, 2 * pad + 1, 2 * pad + 1), 0.6, 1)
    check(Calls(forward, *weights), sparse((images, 2, *size), 1, 2), threads)


def joined(x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return F.conv2d(x, v, padding=1), F.conv2d(x, w, padding=1)


def squeezed(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def gated(x: Tensor, s: Tensor) -> Tensor:
    return x * s.sigmoid()


TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: (a + b).relu() + a,
    "difference": lambda a, b: a - b,
    "difference that is clamped": lambda a, b: (a - b).clamp(-1, 0.5),
    "product": lambda a, b: a * b,
    "product of a product": lambda a, b: (a * b) * b,
    "square": lambda a, b: a * a + b,
    "difference of the same": lambda a, b: (lambda c: c - c)(F.silu(a)) + b,
    "two functions of one": lambda a, b: F.silu(a) * torch.sigmoid(a) + b,
    "factor of each plane": lambda a, b: gated(a, squeezed(b)),
    "factor first": lambda a, b: squeezed(b).sigmoid() * a,
    "factor and sum": lambda a, b: gated(a, squeezed(a)) + b,
    "factor and sum and clamp": lambda a, b: F.relu(b + gated(a, squeezed(a))),
    "factor and itself": lambda a, b: a * squeezed(b) + a,
    "numbers": lambda a, b: (3 - a * 2) / 4 + b.sub(1, alpha=2) * 0.5,
    "numbers behind functions": lambda a, b: F.gelu(a) * 1.7 * 0.5 + (F.gelu(b) - 1) * 3,
    "constants of channels": lambda a, b: a * torch.arange(3.0).to(a)[:, None, None] + b,
    "constants of pixels": lambda a, b: F.relu(a) * 2 + b,
}


@pytest.mark.parametrize("images", [1, 3, 16])
@pytest.mark.parametrize("name", TWO)
def test_activations_are_joined(name: str, images: int) -> None:
    weights = sparse((3, 2, 3, 3), 0.7), sparse((3, 2, 3, 3), 0.7, 1)
    for threads in (1, 2):
        model = Calls(lambda x, v, w: TWO[name](*joined(x, v, w)), *weights)
        check(model, sparse((images, 2, 5, 4), 1, 2), threads)


def test_what_can_be_is_done_in_place() -> None:
    def forward(x: Tensor, v: Tensor) -> Tensor:
        return F.silu(F.silu(F.conv2d(x, v)))

    engine = check(Calls(forward, sparse((3, 2, 1, 1), 1)), sparse((2, 2, 5, 5), 1, 2))
    steps = [
        step
        for step in plan_of(engine).instructions
        if isinstance(step, Instruction) and step.opcode == Opcode.ACTIVATION
    ]
    assert [step.reads for step in steps] == [(steps[0].writes,)] * 2


@pytest.mark.parametrize("images", [1, 5])
def test_squeeze_and_excite_stays_in_planes(images: int) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.norm(self.conv(x)))
            s: Tensor = self.up(F.silu(self.down(x.mean((2, 3), keepdim=True))))
            return x + F.hardswish(x * s.sigmoid())

    torch.manual_seed(0)
    check(Block().eval(), torch.randn(images, 2, 7, 5), threads=2)


def test_not_a_number_and_infinity_pass() -> None:
    def forward(x: Tensor, v: Tensor) -> Tensor:
        y = F.conv2d(x, v)
        return F.hardswish(y) * y.mean((2, 3), keepdim=True).sigmoid()

    model, x = Calls(forward, torch.tensor([[1.0, 0.5], [-2.0, 1.0]]).view(2, 2, 1, 1)), torch.ones(3, 2, 4, 4)
    engine = check(model.float(), x)
    model.float()
    x[0, 0, 1, 1], x[1, 1, 2, 3], x[2, 0, 0, 0] = math.nan, math.inf, -math.inf
    torch.testing.assert_close(engine(x), model(x).detach(), equal_nan=True)
