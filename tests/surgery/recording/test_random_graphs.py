"""Small random networks: what shrink makes of a pruned one does what the masked one does, at another batch and size."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsify

Op = Callable[[Any, Tensor], Tensor]


def tokens(function: Op) -> Op:
    """Have a function of [N, positions, channels] work on images."""

    def on_images(layer: Any, x: Tensor) -> Tensor:
        return function(layer, x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])

    return on_images


def called(layer: Any, x: Tensor) -> Tensor:
    found: Tensor = layer(x)
    return found


def attention(layer: Any, x: Tensor) -> Tensor:
    q, k, v = (part.view(*part.shape[:2], -1, 3).transpose(1, 2) for part in layer(x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def gathered(_: Any, x: Tensor) -> Tensor:
    return x.gather(2, x.sum(1, keepdim=True).argsort(2).expand_as(x))


def halves(_: Any, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return first + second


def plain(function: Callable[[Tensor], Tensor]) -> Callable[[int, int], tuple[None, Op]]:
    return lambda channels, n: (None, lambda _, x: function(x))


NONLINEAR: tuple[Callable[[Tensor], Tensor], ...] = (torch.relu, torch.sigmoid, F.gelu, torch.tanh)

# What makes another image of one of `channels`: a layer, and a function of it and the image. `n` is drawn.
KINDS: dict[str, Callable[[int, int], tuple[nn.Module | None, Op]]] = {
    "conv": lambda c, n: (nn.Conv2d(c, 4 + 2 * (n % 3), 1 + 2 * (n % 2), padding=n % 2), called),
    "grouped": lambda c, n: (nn.Conv2d(c, c, 1, groups=2), called),
    "multiplied": lambda c, n: (nn.Conv2d(c, 2 * c, 1, groups=c, bias=n % 2 == 0), called),
    "transposed": lambda c, n: (nn.ConvTranspose2d(c, 2 * c, 1, groups=(2, c)[n % 2]), called),
    "linear": lambda c, n: (nn.Linear(c, 4 + 2 * (n % 2)), tokens(called)),
    "norm": lambda c, n: (nn.BatchNorm2d(c, affine=n % 2 == 0), called),
    "groups": lambda c, n: (nn.GroupNorm(2, c, affine=n % 2 == 0), called),
    "layers": lambda c, n: (nn.LayerNorm(c), tokens(called)),
    "heads": lambda c, n: (nn.Linear(c, 18), tokens(attention)),
    "nonlinear": lambda c, n: (None, lambda _, x: NONLINEAR[n % 4](x)),
    "gate": plain(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "wide": plain(lambda x: x * x.sum(1, keepdim=True).expand(-1, x.shape[1], -1, -1)),
    "shuffle": plain(lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)),
    "halves": lambda c, n: (None, halves),
    "twice": plain(lambda x: torch.cat([x, x.flip(1)], 1)),
    "zeros": plain(lambda x: x + x.new_zeros(x.shape)),
    "gather": lambda c, n: (None, gathered),
    "sort": plain(lambda x: x.sort(3)[0]),
    "roll": plain(lambda x: x.roll(1, 2)),
}


class Graph(nn.Module):
    """Operations one after another, of which some are added to or joined with what came before."""

    def __init__(self, drawn: list[tuple[str, int, str]]) -> None:
        super().__init__()
        self.first, self.parts = nn.Conv2d(3, 4, 1), nn.ModuleList()
        self.steps: list[tuple[Op, str]] = []
        x = torch.zeros(2, 4, 4, 4)
        for kind, n, join in drawn:
            if x.shape[1] > 24 or x.shape[1] % 2:
                continue
            layer, function = KINDS[kind](x.shape[1], n)
            y = function(layer, x)
            self.parts.append(layer or nn.Identity())
            self.steps.append((function, join if join != "add" or y.shape == x.shape else ""))
            x = self.joined(x, y)
        self.last = nn.Conv2d(x.shape[1], 2, 1)

    def joined(self, x: Tensor, y: Tensor, join: str | None = None) -> Tensor:
        join = self.steps[-1][1] if join is None else join
        return torch.cat([x, y], 1) if join == "cat" else x + y if join == "add" else y

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, (function, join) in zip(self.parts, self.steps, strict=True):
            x = self.joined(x, function(layer, x), join)
        found: Tensor = self.last(x)
        return found


STEPS = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 3), st.sampled_from(["", "", "add", "cat"]))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEPS, min_size=2, max_size=6), st.integers(0, 99))
def test_shrinking_what_was_pruned_changes_nothing(drawn: list[tuple[str, int, str]], seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Graph(drawn).double().eval()
        x, other = torch.randn(2, 3, 4, 4).double(), torch.randn(3, 3, 5, 6).double()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                nn.init.normal_(tensor, std=0.3)
        sparsify.convert(model, ignore=["last"])
        pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
        try:
            sparsify.Pruner(model, pruning, 1, example_input=x).start()
        except sparsify.SparsifyError as error:  # everything is tied to something that stays, and it is said to what
            assert "operation '" in str(error) or "outputs" in str(error) or "together" in str(error)  # noqa: PT017
            return
        report = sparsify.shrink(model, x)
        assert report.difference is not None and report.difference[0] <= 1e-10
        with torch.no_grad():
            torch.testing.assert_close(report.model(other), model(other), rtol=1e-9, atol=1e-10)
