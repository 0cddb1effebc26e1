"""A converted module is its own forward: it follows everything that it reads, whenever that changes."""

import copy
import functools
import os
import pickle
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import compile as compile_engine
from sparsify import convert, fold, get_masks, set_masks, shrink, verify
from sparsify.surgery.copies import deep_copy
from sparsify.surgery.masking.substituted_call import DYNAMO_FOLLOWS

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
SCALE = 1.0
SETTINGS = {"power": 1.0}


def activation(x: Tensor) -> Tensor:
    return x.relu()


def _counter() -> tuple[Callable[[], float], Callable[[], None]]:
    value = 1.0

    def read() -> float:
        return value

    def change() -> None:
        nonlocal value
        value = 3.0

    return read, change


READ, CHANGE = _counter()


class Surrounded(nn.Module):
    """Reads what is around it: globals, a closure, the class, the environment, modes, a parent."""

    gain = 1.0

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.parents = (parent,)

    def effective(self) -> Tensor:
        return self.weight

    def bias(self) -> float:
        return 0.0

    def more(self) -> Any:
        return 0.0

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = F.linear(x, self.effective()) * SCALE * self.gain * type(self).gain * READ() * SETTINGS["power"]
        y = activation(y * float(os.environ.get("SPARSIFY_TEST_SCALE", 1))) + self.bias()
        y = y + self.more()
        if self.parents[0] is not None:
            y = y * self.parents[0].factor
        if shift is not None:
            y = y + shift
        if torch.is_autocast_enabled("cpu"):
            y = y + 7
        return y if torch.is_grad_enabled() else y.softmax(-1)


class Computing(Surrounded):
    """Computes its weight, so that the mask goes on what is computed."""

    def effective(self) -> Tensor:
        return F.normalize(self.weight)


class Borrowing(Surrounded):
    """Reads the weight of a child, which it also calls."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        del self._parameters["weight"]
        self.layer = nn.Linear(8, 8)

    def effective(self) -> Tensor:
        layer = self.layer
        return layer.weight

    def more(self) -> Any:
        return self.layer(X[:1]).sum()


class Parent:
    factor = 1.0


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[], Any]]]:
    module = __import__(__name__, fromlist=["SCALE"])
    global READ, CHANGE
    yield {
        "a global": lambda: monkeypatch.setattr(module, "SCALE", 2.5),
        "a global that is changed in place": lambda: monkeypatch.setitem(SETTINGS, "power", 2.0),
        "a global function": lambda: monkeypatch.setattr(module, "activation", torch.tanh),
        "a closure": CHANGE,
        "a class attribute": lambda: monkeypatch.setattr(Surrounded, "gain", 3.0),
        "a method of the class": lambda: monkeypatch.setattr(Surrounded, "bias", lambda self: 5.0),
        "the forward of the class": lambda: monkeypatch.setattr(
            Surrounded, "forward", lambda self, x: F.linear(x, self.effective()) - 1
        ),
        "the environment": lambda: monkeypatch.setenv("SPARSIFY_TEST_SCALE", "4"),
        "an attribute of the parent": lambda: monkeypatch.setattr(Parent, "factor", 6.0),
    }
    READ, CHANGE = _counter()


NAMES = [
    "a global",
    "a global that is changed in place",
    "a global function",
    "a closure",
    "a class attribute",
    "a method of the class",
    "the forward of the class",
    "the environment",
    "an attribute of the parent",
]
KINDS: list[type[Surrounded]] = [Surrounded, Computing, Borrowing]


def half_masks(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_changes_around_a_module_counts(
    cls: type[Surrounded], name: str, change: dict[str, Callable[[], Any]]
) -> None:
    model = cls(Parent())
    plain = copy.deepcopy(model)
    convert(model)
    before = plain(X)
    assert torch.equal(model(X), before)
    change[name]()
    assert torch.equal(model(X), plain(X)) and not torch.equal(plain(X), before)
    if name != "the forward of the class":
        half_masks(model)
        assert torch.equal(fold(model)(X), model(X))


@pytest.mark.parametrize("cls", KINDS)
def test_modes_and_arguments_count(cls: type[Surrounded]) -> None:
    model = cls()
    plain = copy.deepcopy(model)
    convert(model)
    masked = copy.deepcopy(model)
    half_masks(masked)
    folded = fold(masked)
    for mine, other in ((model, plain), (folded, masked), (pickle.loads(pickle.dumps(folded)), masked)):
        with torch.no_grad():
            assert torch.equal(mine(X), other(X))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(mine(X), other(X))
        assert torch.equal(mine(X, torch.ones(8)), other(X, torch.ones(8)))
        assert torch.equal(mine(X, shift=torch.ones(8)), other(X, shift=torch.ones(8)))


@pytest.mark.parametrize("cls", KINDS)
@pytest.mark.parametrize("name", ["a global", "a class attribute", "a global function"])
def test_torch_compile_follows_them_too(
    cls: type[Surrounded], name: str, change: dict[str, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSIFY_TEST_SCALE", "1")
    torch._dynamo.reset()
    model = cls()
    convert(model)
    half_masks(model)
    compiled = torch.compile(model, backend="eager", fullgraph=DYNAMO_FOLLOWS)
    assert torch.equal(compiled(X), model(X))
    with torch.no_grad():
        assert torch.equal(compiled(X), model(X))
    change[name]()
    assert torch.equal(compiled(X), model(X))


class Patched(nn.Linear):
    pass


def test_a_class_of_a_plain_layer_may_get_a_forward_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(Patched(8, 8), nn.Linear(8, 8))
    plain = copy.deepcopy(model)
    convert(model)
    monkeypatch.setattr(Patched, "forward", lambda self, x: F.linear(x, self.weight) * 2)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, self.weight) * 3)
    assert torch.equal(model(X), plain(X))
    half_masks(model)
    assert torch.equal(model(X), fold(model)(X))


def test_the_forward_of_a_convolution_may_be_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3)), torch.randn(1, 1, 5, 5)
    plain = copy.deepcopy(model)
    convert(model)
    own = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: own(self, x) + 1)
    monkeypatch.setattr(nn.ConvTranspose2d, "forward", lambda self, x: x * 2)
    assert torch.equal(model(x), plain(x))


class Branching(nn.Module):
    """Weights that only some of its calls read."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("always", "given", "flagged", "both", "quiet", "never"):
            self.register_parameter(name, nn.Parameter(torch.randn(8, 8)))

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, extra: bool = False) -> Any:
        if x is None:
            return None
        y = F.linear(x, self.always)
        if context is not None:
            y = y + F.linear(context, self.given)
        if extra:
            y = y + F.linear(x, self.flagged)
        if context is not None and self.training:
            y = y + F.linear(context, self.both)
        if not torch.is_grad_enabled():
            y = F.linear(y, self.quiet)
        if SCALE > 100:
            y = F.linear(y, self.never)
        return y


def test_weights_that_only_some_calls_read_are_masked_or_named() -> None:
    model = Branching()
    plain = copy.deepcopy(model)
    report = convert(model)
    assert set(report.masked) == {"always", "given", "flagged", "both", "quiet"}
    assert report.skipped == {"never": "its module's forward mentions it, but no call that was traced reads it"}
    half_masks(model)
    dense = fold(model)
    with torch.no_grad():
        for name, mask in get_masks(model).items():
            plain.get_parameter(name).mul_(mask)
    for training in (True, False):
        for module in (model, dense, plain):
            module.train(training)
        for args, kwargs in [((X,), {}), ((X, X), {}), ((X,), {"context": X, "extra": True}), ((), {"x": X})]:
            assert torch.equal(model(*args, **kwargs), plain(*args, **kwargs))
            assert torch.equal(model(*args, **kwargs), dense(*args, **kwargs))
    assert model() is None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(16, 8)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.w).relu())  # type: ignore[no-any-return]


def _by_closure(net: Any) -> None:
    former = net.forward
    net.forward = lambda x: former(x) * 2


def _by_decorator(net: Any) -> None:
    former = net.head.forward

    @functools.wraps(former)
    def forward(*args: Any, scale: float = 2.0) -> Any:
        return former(*args) * scale

    net.head.forward = forward


def _by_partial(net: Any) -> None:
    net.former = net.forward
    net.forward = functools.update_wrapper(functools.partial(lambda module, x: module.former(x) * 2, net), net.forward)


def _by_method(net: Any) -> None:
    function = net.forward.__func__
    net.forward = MethodType(lambda self, x: function(self, x) * 2, net)


def _by_default(net: Any) -> None:
    def forward(x: Tensor, former: Any = net.forward, held: Any = (net.head,)) -> Any:
        return former(x) + held[0].bias

    net.forward = forward


@pytest.mark.parametrize("wrap", [_by_closure, _by_decorator, _by_partial, _by_method, _by_default])
def test_a_forward_set_on_the_object_after_the_conversion_stays(wrap: Callable[[Any], None]) -> None:
    net = Net().eval()
    convert(net)
    half_masks(net)
    wrap(net)
    expected = net(X).detach()
    folded, copied = fold(net), deep_copy(net)
    assert verify(net, X).ok
    torch.testing.assert_close(shrink(net, X, dead="zeros").model(X), expected)
    torch.testing.assert_close(compile_engine(net, X, tune=False)(X), expected)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        assert torch.equal(folded(X), expected) and torch.equal(copied(X), expected)
        assert not torch.equal(net(X), expected)


class Nested(nn.Linear):
    """Calls itself and methods that read weights; remembers what it does on itself."""

    def __init__(self) -> None:
        super().__init__(8, 8, bias=False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last: Tensor | None = x
        if len(x) > 1:
            return torch.cat([self(row[None]) for row in x])
        del self.last
        return F.linear(x, self.weight)


def test_what_a_forward_does_to_its_module_is_done_to_the_module() -> None:
    model = Nested()
    plain = copy.deepcopy(model)
    assert convert(model).masked == {"weight": "substituted"}
    assert torch.equal(model(X), plain(X)) and model.calls == plain.calls == 4
    assert not hasattr(model, "last") and not hasattr(plain, "last") and isinstance(model.weight, nn.Parameter)


class Replacing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.other = nn.Parameter(torch.ones(1))
        return F.linear(x, self.weight)


def test_a_parameter_that_a_forward_assigns_is_kept() -> None:
    model = Replacing()
    convert(model)
    model(X)
    assert float(model.other.detach()) == 1 and isinstance(model.other, nn.Parameter)


class Twice(nn.Module):
    """Reads the weights of modules that it calls as well."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x)) + F.linear(x, self.body[0].weight)  # type: ignore[no-any-return, index, arg-type]


def test_a_module_that_is_read_and_called_is_called_itself() -> None:
    model = Twice()
    plain = copy.deepcopy(model)
    convert(model)
    called: list[nn.Module] = []
    for module in (model.body, model.body[0]):
        module.register_forward_hook(lambda module, *_: called.append(module))
    assert torch.equal(model(X), plain(X))
    assert called == [model.body[0], model.body]
    assert verify(model, X).ok
