"""Operations that move nothing in planes, or little: parts, joined parts, other shapes, channels last."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify.runtime.kernels.opcodes import Opcode
from sparsify.runtime.lowering.ir import Instruction
from tests.runtime.kernels.test_kernels import QUICK, Calls, check, plan_of, sparse


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def dense_block(x: Tensor, w: Tensor) -> Tensor:
    kept = [x]
    for _ in range(3):
        kept.append(F.conv2d(torch.cat(kept, 1)[:, -6:], w, padding=1))
    return torch.cat(kept, 1)


# Functions of an image of 6 channels, and a weight [6, 6, 3, 3].
ONE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "slice": lambda y, w: y[:, 1:4] * 2,
    "slice from the end": lambda y, w: F.conv2d(y[:, -4:-1].relu(), w[:, :3], padding=1),
    "slices that overlap": lambda y, w: y[:, :4] * 2 + F.silu(y[:, 2:]),
    "slices that overlap, in place": lambda y, w: F.relu(y[:, :4] - y[:, 2:]),
    "slice of a slice": lambda y, w: F.silu(y[:, 1:][:, 2:4]),
    "chunks": lambda y, w: F.silu(y.chunk(2, 1)[0]) * y.chunk(2, 1)[1],
    "both chunks": lambda y, w: torch.mul(*y.chunk(2, 1)),
    "parts": lambda y, w: (lambda a, b, c: torch.cat([c, F.silu(a), b], 1))(*y.split([1, 2, 3], 1)),
    "part that is used twice": lambda y, w: torch.cat([F.silu(y[:, :3]), y[:, :3], y], 1),
    "parts of a residual network": lambda y, w: torch.cat([y[:, :2] + 1, y[:, 2:]], 1),
    "all in all": lambda y, w: F.silu(torch.cat([y], 1)[:, 0:]),
    "concatenation of concatenations": lambda y, w: (
        lambda z: torch.cat([z, torch.cat([F.silu(z), z], 1), F.conv2d(z, w, padding=1)], 1)
    )(torch.cat([y, y.relu()], 1)[:, 3:9]),
    "dense block": dense_block,
    "joined and changed": lambda y, w: (lambda z: F.silu(torch.cat([y, z], 1)) * torch.cat([z, y], 1))(y * 2 + 1),
    "shuffle of two": lambda y, w: F.conv2d(shuffled(y, 2), w, padding=1),
    "shuffle of three": lambda y, w: shuffled(y, 3)[:, 1:],
    "border": lambda y, w: F.conv2d(F.pad(y, (0, 1, 2, 1)), w, stride=2),
    "border of a value": lambda y, w: F.max_pool2d(F.pad(y, (1, 0, 1, 0), value=-3.5), 2),
    "border of channels": lambda y, w: F.conv2d(F.pad(y[:, 1:4], (0, 0, 0, 0, 1, 2)), w, padding=1),
    "fewer pixels": lambda y, w: F.conv2d(F.pad(y, (-1, 2, 1, -2)), w, padding=1),
    "rows and columns": lambda y, w: y[:, :, 1:-1, 2:] * 2,
    "every second": lambda y, w: F.conv2d(y[:, :, ::2, ::2], w, padding=1),
    "every third from the second": lambda y, w: y[:, :, 1::3] + 1,
    "enlarged": lambda y, w: F.conv2d(F.interpolate(y, scale_factor=2), w, padding=1),
    "enlarged to a size": lambda y, w: F.relu(F.interpolate(y, size=(3 * y.shape[2], y.shape[3]))),
    "other shapes": lambda y, w: F.silu(y.flatten(2)).view_as(y).unsqueeze(2).squeeze(2),
    "mean of a flat image": lambda y, w: y.flatten(2).mean(-1),
    "means": lambda y, w: F.adaptive_avg_pool2d(F.interpolate(y, scale_factor=2), (y.shape[2], 2 * y.shape[3])),
    "means of one pixel": lambda y, w: F.silu(F.adaptive_avg_pool2d(y, tuple(y.shape[2:]))),
    "channels last": lambda y, w: F.silu(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "channels last and back": lambda y, w: F.gelu(y.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(y) + y,
    "ends with channels last": lambda y, w: F.gelu(y.permute(0, 2, 3, 1)),
    "one norm over channels": lambda y, w: F.layer_norm(y.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2) + y,
}


@pytest.mark.parametrize("images", [1, 3, 16])
@pytest.mark.parametrize("name", ONE)
def test_planes_are_looked_at_in_other_ways(name: str, images: int) -> None:
    weights = sparse((6, 2, 3, 3), 0.7), sparse((6, 6, 3, 3), 0.5, 1)
    for threads in (1, 2):
        model = Calls(lambda x, v, w: ONE[name](F.conv2d(x, v, padding=1), w), *weights)
        check(model, sparse((images, 2, 7, 6), 1, 2), threads)


def test_a_dense_block_copies_nothing() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 4, 1)
            self.layers = nn.ModuleList([nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            kept = [self.first(x)]
            for layer in self.layers:
                kept.append(layer(torch.cat(kept, 1)).relu())
            return torch.cat(kept, 1)

    engine = check(Block(), sparse((3, 2, 6, 6), 1))
    kinds = {step.opcode for step in plan_of(engine).instructions if isinstance(step, Instruction)}
    assert kinds <= {Opcode.PACK, Opcode.UNPACK, Opcode.CONVOLVE, Opcode.CONVOLVE_TILES, Opcode.CONVOLVE_GENERATED}


@QUICK
@given(
    images=st.integers(1, 18),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 9),
    pad=st.integers(0, 3),
    keep=st.sampled_from([0.1, 1.0]),
    threads=st.integers(1, 3),
)
def test_blocks_with_channels_last_stay_in_planes(
    images: int, size: tuple[int, int], channels: int, pad: int, keep: float, threads: int
) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv2d(channels, channels, 2 * pad + 1, padding=pad, groups=channels)
            self.norm, self.scale = nn.LayerNorm(channels), nn.Parameter(torch.randn(channels))
            self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.deep(x).permute(0, 2, 3, 1))
            y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
            return x + y * self.scale[None, :, None, None]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, channels, 1), Block(), Block())
    for block in (model[1], model[2]):
        block.up.weight.data = sparse(tuple(block.up.weight.shape), keep)
        block.norm.bias.data.normal_()
    # With little to tell numbers apart by, a norm makes as little as a rounding large.
    for norm in (model[1].norm, model[2].norm):
        norm.eps = 0.1
    check(model, sparse((images, 1, *size), 1, 1), threads)


@pytest.mark.parametrize("tokens", [1, 5, 17])
@pytest.mark.parametrize("images", [1, 3])
def test_the_perceptron_of_a_transformer_stays_in_planes(images: int, tokens: int) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 24), nn.Linear(24, 6)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(F.gelu(self.up(self.norm(x))))
            return x + y

    torch.manual_seed(0)
    check(nn.Sequential(Block(), Block()), torch.randn(images, tokens, 6), threads=2)
