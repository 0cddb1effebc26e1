"""Weights that only some calls read: each is found, or the reason says what is so."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, get_masks, set_masks, verify

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class OneOfTwo(nn.Module):
    """Takes ids or embeddings, never both and never none, and a mask that leads through a further weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.b = (
            nn.Embedding(9, 8),
            nn.Parameter(torch.randn(8, 8)),
            nn.Parameter(torch.randn(8, 8)),
        )

    def forward(self, ids: Any = None, mask: Any = None, embeddings: Any = None) -> Tensor:
        if (ids is None) == (embeddings is None):
            raise ValueError("give ids or embeddings")
        hidden = self.table(ids) if embeddings is None else embeddings
        if mask is not None:
            hidden = hidden + mask[..., None] @ self.b[:1]
        return hidden @ self.a  # type: ignore[no-any-return]


class Chosen(nn.Module):
    """Uses the weight of a task, or as many weights as there are inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = nn.ParameterDict({name: nn.Parameter(torch.randn(8, 8)) for name in ("one", "two")})
        self.several = nn.ParameterList([nn.Parameter(torch.randn(8, 4)) for _ in range(3)])

    def forward(self, *xs: Tensor, task: str = "one") -> Tensor:
        return sum(F.linear(x, self.tasks[task]) @ w for x, w in zip(xs, self.several, strict=False))  # type: ignore


class Precise(nn.Module):
    """Uses another weight under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.low if torch.is_autocast_enabled("cpu") else self.high)


class Chain(nn.Module):
    """A product of several matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.multi_dot([x, self.a, self.b])


def mixture(module: Any, x: Tensor) -> Tensor:
    """Calls each expert, in a function of the file's that takes the module."""
    return torch.stack([x @ expert for expert in module.experts]).sum(0)


class Experts(nn.Module):
    """Leaves its forward to a function, which loops over a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return mixture(self, x)


@pytest.mark.parametrize(
    "build, names",
    [
        (OneOfTwo, {"a", "b"}),
        (Chosen, {"tasks.one", "tasks.two", "several.0", "several.1", "several.2"}),
        (Precise, {"low", "high"}),
        (Chain, {"a", "b"}),
        (Experts, {"experts"}),
    ],
)
def test_weights_that_some_calls_read_are_masked(build: Any, names: set[str]) -> None:
    assert set(convert(build()).masked) == names


def test_the_mask_of_a_chosen_weight_is_live() -> None:
    model = Chosen()
    report = convert(model)
    assert "tasks.two: masked like tasks.one, although no traced call reads it" in report.notes
    set_masks(model, {name: torch.zeros_like(mask) for name, mask in get_masks(model).items() if name == "tasks.two"})
    assert model(X, X).abs().sum() > 0 and not model(X, X, task="two").any()


class Checking(nn.Module):
    """Asks for a Parameter, which no effective weight is."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        assert type(self.w) is nn.Parameter, "no parameter"
        return F.linear(x, self.w)


def test_the_reason_for_a_forward_that_is_cut_short_is_why() -> None:
    model = Checking()
    out = model(X)
    report = convert(model)
    assert "cannot be traced: no parameter" in report.skipped["w"] and torch.equal(model(X), out)


class Energy(nn.Module):
    """Returns forces, the gradient of an energy, which need gradients in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.layers(x).sum(), x, create_graph=True)[0]


def test_a_model_that_needs_gradients_is_verified_with_them() -> None:
    model = Energy()
    convert(model)
    report = verify(model, X)
    assert report.ok and report.identical_eval and report.notes[0].startswith("eval mode was compared with gradients")
    assert report.live == ["layers.0.weight", "layers.2.weight"]


def test_an_input_that_the_model_does_not_take_is_the_models_error() -> None:
    model = Energy()
    convert(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        verify(model, X[:, :5])


def test_sparse_outputs_are_compared() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    convert(model)
    model.register_forward_hook(lambda module, args, output: output.relu().to_sparse())
    assert verify(model, X).ok
