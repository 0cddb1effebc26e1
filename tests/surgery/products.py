"""Small modules that multiply with parameters of their own in every way that torch has."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[..., Any]


def module_of(forward: Forward, **parameters: tuple[int, ...]) -> nn.Module:
    """Return a module with this forward and random parameters of these shapes."""
    module: nn.Module = type("Product", (nn.Module,), {"forward": forward})()
    generator = torch.Generator().manual_seed(0)
    for name, shape in parameters.items():
        module.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))
    return module


class Conv1D(nn.Module):
    """The layer of GPT-2: its weight is [in, out]."""

    def __init__(self, inputs: int = 8, outputs: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.bias.shape[0])
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(size)


class Vision(nn.Module):
    """The end of CLIP's image tower: a norm, and a projection that is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.proj = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) @ self.proj  # type: ignore[no-any-return]


class Experts(nn.Module):
    """A mixture of experts that loops over those that were chosen, which no trace can follow."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, 6, 8))
        self.down = nn.Parameter(torch.randn(experts, 8, 6))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        output = torch.zeros_like(x)
        with torch.no_grad():
            hit = F.one_hot(chosen, len(self.up)).sum(0).nonzero()
        for expert in hit:
            expert = expert[0]
            if expert == len(self.up):
                continue
            (tokens,) = torch.where(chosen == expert)
            hidden = F.linear(x[tokens], self.up[expert]).relu()
            output.index_add_(0, tokens, F.linear(hidden, self.down[expert]))
        return output


class _Holder(nn.Module):
    """Only holds a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 4))


class OfChildren(nn.Module):
    """Multiplies with parameters of its children, which it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.holder = nn.Linear(8, 4), _Holder()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.proj.weight.t() + x @ self.holder.kernel


X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
CHOSEN = torch.tensor([0, 1, 2, 0, 1])
# name -> forward, the shape of its weight w, its inputs, and how many output units it has.
PRODUCTS: Mapping[str, tuple[Forward, tuple[int, ...], tuple[Tensor, ...], int]] = {
    "matmul": (lambda self, x: x @ self.w, (8, 4), (X,), 4),
    "matmul from the left": (lambda self, x: self.w @ x.t(), (4, 8), (X,), 4),
    "method, transposed": (lambda self, x: self.w.t().matmul(x.t()), (8, 4), (X,), 4),
    "transposed": (lambda self, x: x @ self.w.t(), (4, 8), (X,), 4),
    "T": (lambda self, x: x @ self.w.T, (4, 8), (X,), 4),
    "cast": (lambda self, x: torch.mm(x, self.w.to(x.dtype)), (8, 4), (X,), 4),
    "type_as": (lambda self, x: x.mm(self.w.type_as(x).contiguous()), (8, 4), (X,), 4),
    "addmm": (lambda self, x: torch.addmm(x[:, :4], x, self.w), (8, 4), (X,), 4),
    "addmm of a method": (lambda self, x: x[:, :4].addmm(mat1=x, mat2=self.w), (8, 4), (X,), 4),
    "mv": (lambda self, x: torch.mv(self.w, x[0]), (4, 8), (X,), 4),
    "einsum": (lambda self, x: torch.einsum("bi,io->bo", x, self.w), (8, 4), (X,), 4),
    "einsum without an arrow": (lambda self, x: torch.einsum("bi, oi", x, self.w), (4, 8), (X,), 4),
    "einsum of a list": (lambda self, x: torch.einsum("...i,io->...o", [x, self.w]), (8, 4), (X,), 4),
    "einsum of heads": (lambda self, x: torch.einsum("ti,hid->htd", x, self.w), (2, 8, 3), (X,), 6),
    "inner": (lambda self, x: torch.inner(x, self.w), (4, 8), (X,), 4),
    "tensordot": (lambda self, x: torch.tensordot(x, self.w, dims=([1], [1])), (2, 8, 3), (X,), 6),
    "tensordot by number": (lambda self, x: torch.tensordot(x, self.w, 1), (8, 2, 3), (X,), 6),
    "bmm": (lambda self, x: torch.bmm(x.expand(3, -1, -1), self.w), (3, 8, 4), (X,), 12),
    "baddbmm": (lambda self, x: torch.baddbmm(x[None, :, :4], x.expand(3, -1, -1), self.w), (3, 8, 4), (X,), 12),
    "einsum of experts": (
        lambda self, x: torch.einsum("eti,eoi->eto", x.expand(3, -1, -1), self.w),
        (3, 4, 8),
        (X,),
        12,
    ),
    "experts one by one": (lambda self, x: sum(F.linear(x, self.w[i]) * 2**i for i in range(3)), (3, 4, 8), (X,), 12),
    "experts by input": (
        lambda self, x, chosen: torch.einsum("ti,tio->to", x, self.w[chosen]),
        (3, 8, 4),
        (X, CHOSEN),
        12,
    ),
    "bmm by input": (lambda self, x, chosen: torch.bmm(x[:, None], self.w[chosen]), (3, 8, 4), (X, CHOSEN), 12),
    "index_select": (
        lambda self, x, chosen: torch.bmm(x[:, None], self.w.index_select(0, chosen)),
        (3, 8, 4),
        (X, CHOSEN),
        12,
    ),
    "pieces": (lambda self, x: [x @ part for part in self.w.chunk(2, dim=1)], (8, 4), (X,), 4),
    "slices": (lambda self, x: (x[:, :4] @ self.w[:4]) * (x[:, 4:] @ self.w[4:]), (8, 4), (X,), 4),
    "joined outputs": (lambda self, x: x @ torch.cat([self.w, x.new_ones(8, 2)], dim=1)[:, :4], (8, 4), (X,), 4),
    "reshaped outputs": (lambda self, x: x @ self.w.reshape(8, -1), (8, 2, 3), (X,), 6),
    "reshaped inputs": (lambda self, x: x @ self.w.flatten(0, 1), (2, 4, 3), (X,), 3),
    "linear of a transpose": (lambda self, x: F.linear(x, self.w.t()), (8, 4), (X,), 4),
    "bilinear": (lambda self, x: F.bilinear(x, x, self.w), (3, 8, 8), (X,), 3),
    "transposed convolution": (
        lambda self, x: F.conv_transpose1d(x.t()[None], self.w, groups=2),
        (8, 3, 2),
        (X,),
        6,
    ),
}
