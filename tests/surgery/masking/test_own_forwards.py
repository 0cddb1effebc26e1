"""Forwards as people write them: what a graph would lose, arguments of any make, weights in unusual places."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from sparsify import convert, fold, get_masks, set_masks, verify

X = torch.randn(3, 8)


def half_masks(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})


class Raw(nn.Module):
    """A weight of its own, with attributes named as words of the library are."""

    kind = "relu"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.register_buffer("average", torch.zeros(8))
        self.calls: list[int] = []
        self.config = SimpleNamespace(gain=2.0)

    def forward(self, x: Any) -> Any:
        return getattr(F, self.kind)(F.linear(x, self.weight)) * self.config.gain


class WithoutGradient(Raw):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = F.linear(x, self.weight)
        return F.linear(x, self.weight) - teacher


class FullPrecision(Raw):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), self.weight)


class Checkpointed(Raw):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]

    def inner(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.weight))


class Counting(Raw):
    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(self.calls))
        return F.linear(x, self.weight)


class Averaging(Raw):
    def forward(self, x: Tensor) -> Tensor:
        self.average: Tensor = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return F.linear(x - self.average, self.weight)


class Constants(Raw):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * torch.arange(8)


class Drawing(Raw):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * (2 if torch.rand(()) < 0.5 else 1)


class SettingData(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("causal", torch.ones(8, 8).tril())

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.causal
        return super().forward(x)


@pytest.mark.parametrize(
    "make", [WithoutGradient, FullPrecision, Checkpointed, Counting, Averaging, Constants, Drawing, SettingData]
)
def test_what_a_graph_would_lose_still_happens(make: Callable[[], nn.Module]) -> None:
    model = make()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert convert(model).masked == {"weight": "substituted"}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    report = verify(model, X)
    assert report.ok and report.identical_train and report.live == ["weight"], (str(report), report.notes)


def test_side_effects_of_a_converted_forward_are_those_of_the_dense_one() -> None:
    model, averaging, precise = Counting(), Averaging(), FullPrecision()
    for module in (model, averaging, precise):
        convert(module)
    for _ in range(3):
        model(X)
    assert model.calls == [0, 1, 2]
    averaging(X)
    torch.testing.assert_close(averaging.average, 0.1 * X.mean(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert precise(X).dtype == torch.float32


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Binary(nn.Linear):
    """Straight-through estimator (Courbariaux et al. 2016)."""

    def __init__(self) -> None:
        super().__init__(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, Sign.apply(self.weight), self.bias)


def test_a_function_with_a_gradient_of_its_own_keeps_it() -> None:
    model = Binary()
    assert convert(model).masked == {"weight": "computed"}
    report = verify(model, X)
    assert report.ok and report.identical_train, str(report)
    half_masks(model)
    folded = fold(model)
    assert type(folded) is nn.Linear and torch.equal(folded(X), model(X))


def test_attributes_of_a_model_may_have_any_name() -> None:
    model = Raw()
    model.__dict__.update(kind="gelu", lent=1, rewritten=2)
    expected = model(X)
    convert(model)
    assert torch.equal(model(X), expected) and verify(model, X).ok
    half_masks(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(X), model(X)) and not torch.equal(copied(X), expected)


@dataclass
class Batch:
    x: Tensor
    scale: float


class AnyInput(Raw):
    def forward(self, *inputs: Any, scale: float = 1.0) -> Tensor:
        value: Any = inputs[0]
        if isinstance(value, Batch):
            scale, value = value.scale, value.x
        x = value if isinstance(value, Tensor) else value["x"] if isinstance(value, dict) else torch.cat(list(value))
        return F.linear(x, self.weight) * scale


@pytest.mark.parametrize("value", [X, {"x": X}, [X, X], (X,), Batch(X, 2.0)])
def test_arguments_of_any_make(value: Any) -> None:
    model = AnyInput()
    assert convert(model).masked == {"weight": "substituted"}
    report = verify(model, (value,))
    assert report.ok and report.live == ["weight"], (str(report), report.notes)


def test_arguments_that_change_are_followed() -> None:
    model = AnyInput()
    dense = copy.deepcopy(model)
    convert(model)
    batch = Batch(X, 2.0)
    for scale in range(100):
        batch.scale = float(scale)
        assert torch.equal(model(batch), dense(batch))
        if scale % 20 == 0:
            assert torch.equal(model(X, scale=batch.scale), dense(X, scale=batch.scale))


class Normed(nn.Module):
    """Reads the settings and the mode of a child that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x, norm = F.linear(x, self.linear.weight), self.norm
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, 0.1, norm.eps
        )


def test_settings_of_children_and_configurations_changed_after_the_conversion_count() -> None:
    model, dense = Raw(), Raw()
    dense.load_state_dict(model.state_dict())
    convert(model)
    for changed in (model, dense):
        changed.config.gain = 5.0
    assert torch.equal(model(X), dense(X))
    normed = Normed()
    convert(normed)
    assert verify(normed, X).ok
    plain = fold(normed)
    for other in (normed, plain):
        other.train().norm.eval()  # type: ignore[union-attr, operator]
        other.norm.eps = 0.5  # type: ignore[union-attr, assignment]
    assert torch.equal(normed(X), plain(X))


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class Outputs(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]  # type: ignore[no-any-return]


class Scaled(nn.TransformerEncoderLayer):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("model", "count"), [(SelfAttention(8, 2), 2), (Outputs(8, 4), 2), (Scaled(8, 2, 16, batch_first=True), 4)]
)
def test_subclasses_of_attention_and_recurrent_layers(model: nn.Module, count: int) -> None:
    model = copy.deepcopy(model)
    report = convert(model)
    assert len(report.masked) == count and not report.skipped
    x = torch.randn(5, 3, 8)
    assert verify(model, x).ok
    half_masks(model)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), fold(model)(x))


class Functional(nn.Module):
    """Attention and a recurrent cell as functions of raw parameters, and weights kept in lists."""

    def __init__(self) -> None:
        super().__init__()
        self.projections, self.output = nn.Parameter(torch.randn(24, 8)), nn.Linear(8, 8)
        self.input, self.hidden = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(24, 8))
        self.layers = nn.ParameterList([torch.randn(8, 8) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        out = self.output
        x, _ = F.multi_head_attention_forward(
            x, x, x, 8, 2, self.projections, None, None, None, False, 0.0, out.weight, out.bias, training=self.training
        )
        h = torch.gru_cell(x[0], x[1], self.input, self.hidden)
        for layer in self.layers:
            h = F.linear(h, layer)
        return h


def test_weights_of_functions_and_in_lists_are_masked() -> None:
    model = Functional()
    report = convert(model)
    assert not report.skipped
    assert set(report.masked) == {"projections", "output.weight", "input", "hidden", "layers.0", "layers.1"}
    found = verify(model, torch.randn(2, 3, 8))
    assert found.ok and len(found.live) == 6, str(found)


class Arranged(nn.Module):
    """Weights that are transposed, joined and cut before they are used, and one used in two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.part = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(4, 8))
        self.scaled = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(F.linear(x, self.square.t()), torch.cat([self.part, self.part])[:8])
        return F.linear(x, self.scaled * 2) + F.linear(x, self.scaled * 3)


def test_weights_that_are_only_arranged_are_masked_where_they_are_stored() -> None:
    model = Arranged()
    assert set(convert(model).masked.values()) == {"substituted"}
    assert verify(model, X).ok
    half_masks(model)
    folded = fold(model)
    assert type(folded) is Arranged and torch.equal(folded(X), model(X))


class Equalised(nn.Module):
    """Learning rates equalised by a constant factor (Karras et al. 2018), two layers in one module, one child."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(5, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(5, 2)
        self.register_buffer("gain", torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.linear(x, self.first * 0.5))
        return self.head(F.linear(x, self.second * 0.3) * self.gain)  # type: ignore[no-any-return]


def test_fold_stores_several_computed_weights_beside_children_and_buffers() -> None:
    model = Equalised()
    keys = set(model.state_dict())
    convert(model)
    half_masks(model)
    folded = fold(model)
    assert set(folded.state_dict()) == keys and torch.equal(folded(X), model(X))


class Stepping(nn.Conv2d):
    """Sets its stride in the call, whatever its attributes say."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 0.5, self.bias, 2, padding=1)


def test_fold_takes_the_settings_of_the_call() -> None:
    model, x = Stepping(3, 4, 3), torch.randn(2, 3, 9, 9)
    convert(model)
    half_masks(model)
    folded = fold(model)
    assert type(folded) is nn.Conv2d and torch.equal(folded(x), model(x))


class Reparametrised(nn.Linear):
    """Its weight is a property of another parameter."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.direction = nn.Parameter(self.weight.detach().clone())
        del self._parameters["weight"]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.direction / self.direction.norm(dim=1, keepdim=True)


class Standardising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        return F.linear(x, weight - weight.mean())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(self.embedding(x)), self.embedding.weight)


def test_weights_read_by_two_modules() -> None:
    assert convert(Reparametrised()).masked == {"direction": "computed"}
    assert convert(Standardising()).skipped == {"layer.weight": "Standardising computes another weight from it"}
    tied = Tied()
    assert list(convert(tied).masked) == ["body.weight"]
    assert verify(tied, torch.tensor([[1, 2]])).ok


class Wrapper(nn.Module):
    """Answers for the module that it wraps, as adapters do."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def forward(self, x: Tensor) -> Any:
        return self.wrapped(x) * 2


class Registered(nn.Linear):
    names: list[str] = []

    def __init_subclass__(cls, *, name: str) -> None:
        cls.names.append(name)


class Layer(Registered, name="layer"):
    pass


def test_wrappers_and_registered_classes_convert_one_part_after_the_other() -> None:
    model = nn.Sequential(Wrapper(Layer(8, 8)), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[2].weight = model[1].weight
    convert(model[0].wrapped)  # type: ignore[arg-type]
    convert(model[1])
    half_masks(model)
    assert set(convert(model).masked) == {"0.wrapped.weight", "1.weight", "2.weight"}
    assert verify(model, X).ok and Registered.names == ["layer"]
    assert type(fold(model)[0]) is Wrapper and torch.equal(fold(model)(X), model(X))  # type: ignore[index]
    assert torch.equal(model[1].weight_mask, model[2].weight_mask) and not model[2].weight_mask.all()  # type: ignore[union-attr, arg-type, operator]


def test_what_cannot_be_reached_is_reported() -> None:
    patched = nn.Linear(8, 8)
    patched.forward = lambda input: F.linear(input, patched.weight)  # type: ignore[method-assign]
    model = nn.ModuleDict(
        {
            "patched": patched,
            "graph": fx.symbolic_trace(Standardising()),
            "complex": nn.Linear(2, 2, dtype=torch.complex64),
        }
    )
    reasons = {name: reason.split(":")[0] for name, reason in convert(model).skipped.items()}
    assert reasons == {
        "patched.weight": "its module's forward was replaced on the object",
        "graph.layer.weight": "read by an fx.GraphModule",
        "complex.weight": "stored as complex64",
    }
