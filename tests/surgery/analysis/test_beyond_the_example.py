"""An analysis says what it rests on: values, sizes and modes that its example did not show."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsify import Pruner, SparsifyError, analyse, convert, fold, shrink
from sparsify.surgery.recording.recorder import record

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class Branching(nn.Module):
    """A forward that decides by what its activations hold; `ask` is how."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.ask = ask
        self.trunk, self.head, self.other = nn.Linear(4, 8), nn.Linear(4, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        z = self.trunk(x).relu()
        return self.head(z[:, :4]) if self.ask(x) else self.other(z)


ASKING: dict[str, Callable[[Tensor], Any]] = {
    "bool": lambda x: x.mean() > 0,
    "item": lambda x: x.sum().item() > 0,
    "int": lambda x: int(x.sum() * 10) > 0,
    "float": lambda x: float(x.max()) > 0,
    "numpy": lambda x: x.numpy().sum() > 0,
    "tolist": lambda x: x.mean(1).tolist()[0] > 0,
    "equal": lambda x: torch.equal(x, x.abs()),
    "allclose": lambda x: torch.allclose(x, x.abs()),
}


class Wrapped(nn.Module):
    """A branch in a part of the model: what comes before it and is not given to it may go."""

    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.inner = nn.Linear(4, 6), nn.Linear(6, 4), Branching(ask)

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.second(self.first(x).relu()))


@pytest.mark.parametrize("name", ASKING)
def test_what_meets_a_branch_on_values_stays(name: str) -> None:
    model = Branching(ASKING[name]).eval()
    report = shrink(model, X, dead="zeros")
    assert report.removed == 0
    assert torch.equal(report.model(-X), model(-X))
    (barrier,) = analyse(model, X).barriers
    assert barrier == "the model: its forward asks what activations hold, and may do something else with others"


@pytest.mark.parametrize("name", ASKING)
def test_what_a_branch_does_not_meet_may_go(name: str) -> None:
    model = Wrapped(ASKING[name]).eval()
    found = analyse(model, X)
    assert set(found.labels) == {"first.weight", "first.bias", "second.weight"} and found.groups == 6
    assert any(barrier.startswith("inner: its forward asks what") for barrier in found.barriers)


def test_a_value_that_is_known_is_no_branch() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x) * float(self.scale))  # type: ignore[arg-type]

    assert analyse(Scaled(), X).groups == 6 and not analyse(Scaled(), X).barriers


def test_a_pruner_of_a_model_that_is_all_branch_says_why() -> None:
    model = Branching(ASKING["bool"])
    convert(model, ignore=["other"])
    with pytest.raises(SparsifyError, match="no unit .* its forward asks what activations hold"):
        Pruner(model, {"granularity": "unit", "sparsity": 0.5}, 1, example_input=X)


class Mixing(nn.Module):
    """Takes channels for positions by a view, by the example's height times width."""

    def __init__(self, channels: int = 16, *, before: bool = False) -> None:
        super().__init__()
        self.channels, self.before = channels, before
        self.a, self.b, self.o = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        n, _, h, w = x.shape
        y = self.b(x).flatten(2).transpose(1, 2)
        return self.o(x + y.reshape(n, self.channels, h, w))


class Bucketed(nn.Module):
    """Another way for long inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.short, self.long = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.long(y) if x.shape[-1] > 4 else self.short(y[:, :4])


class Positions(nn.Module):
    """Adds as much of a table as there are positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)
        self.table = nn.Parameter(torch.randn(1, 12, 8))

    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x) + self.table[:, : x.shape[1]])


def prune_units(model: nn.Module, example: Tensor) -> None:
    convert(model)
    settings = {"granularity": "unit", "scope": "global", "sparsity": 0.4, "schedule": "one_shot"}
    Pruner(model, settings, 1, example_input=example).start()


SIZED: list[tuple[Callable[[], nn.Module], Tensor, Tensor]] = [
    (Mixing, torch.randn(1, 3, 2, 2), torch.randn(1, 3, 4, 4)),
    (Mixing, torch.randn(2, 3, 4, 4), torch.randn(1, 3, 6, 6)),
    (lambda: Mixing(8), torch.randn(1, 3, 2, 4), torch.randn(3, 3, 4, 2)),
    (Bucketed, torch.randn(1, 3, 4, 4), torch.randn(1, 3, 8, 8)),
    (Positions, torch.randn(2, 4, 5), torch.randn(2, 12, 5)),
]


@pytest.mark.parametrize(("make", "example", "other"), SIZED)
def test_a_model_is_right_at_another_size(make: Callable[[], nn.Module], example: Tensor, other: Tensor) -> None:
    torch.manual_seed(0)
    model = make().eval()
    try:
        prune_units(model, example)
    except SparsifyError:
        convert(model)
    report = shrink(model, example, dead="zeros")
    for given in (example, other):
        torch.testing.assert_close(report.model(given), model(given))
    assert any("shape" in what for what in report.proved) and any("batch" in what for what in report.proved)


def test_examples_of_the_user_widen_what_is_known() -> None:
    model = Bucketed().eval()
    short, long = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 16, 16)
    report = shrink(model, short, examples=[long], dead="zeros")
    assert report.removed == 0 and "example 2" in report.proved
    assert any("for example 2 the groups differ, or are not dead" in reason for reason in report.kept)
    torch.testing.assert_close(report.model(long), model(long))


class Supervised(nn.Module):
    """A head that runs in both modes and is returned in train mode only, in one of several makes of output."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.make = make
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.h1, self.h2 = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        side = self.h1(x)
        y = self.h2(self.b(x))
        return self.make(y, side) if self.training else y


@pytest.mark.parametrize(
    "make",
    [
        lambda y, s: torch.stack([y, s], 1),
        lambda y, s: (y, s),
        lambda y, s: {"out": y, "aux": s},
        lambda y, s: [y, [s]],
    ],
)
def test_outputs_of_the_training_pass_are_outputs(make: Callable[[Tensor, Tensor], Any]) -> None:
    model = Supervised(make).eval()
    report = shrink(model, IMAGE, dead="zeros")
    assert report.model.h1.out_channels == 3 and report.training == "equal"
    assert not model.training


class AskingDropout(Supervised):
    """A head that is returned where a dropout below is in train mode: the analysis keeps layers in eval mode."""

    def __init__(self) -> None:
        super().__init__(lambda y, s: (y, s))
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Any:
        x = self.drop(self.a(x))
        side, y = self.h1(x), self.h2(self.b(x))
        return (y, side) if self.drop.training else y


def test_a_pass_in_train_mode_has_dropout_in_train_mode_too() -> None:
    model = AskingDropout().eval()
    report = shrink(model, IMAGE, dead="zeros")
    assert report.training == "its outputs have other shapes"
    assert (model.drop.p, report.model.drop.p, report.model.drop.training) == (0.4, 0.4, False)


class Dropping(Supervised):
    """Drops entries in its own forward, as timm's models do before their classifier."""

    def forward(self, x: Tensor) -> Any:
        y = nn.functional.dropout(self.b(self.a(x)), 0.3, training=self.training)
        return self.h1(y), self.h2(y)


def test_what_a_forward_drops_in_train_mode_may_go() -> None:
    found = analyse(Dropping(lambda y, s: (y, s)), IMAGE)
    assert (found.groups, found.barriers) == (16, ())


def test_an_analysis_of_a_converted_model_is_that_of_the_plain_one() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 9, 1), nn.ReLU(), nn.Conv2d(9, 2, 1)
    )
    plain = analyse(model, IMAGE)
    convert(model)
    masked = analyse(model, IMAGE)
    assert (masked.groups, masked.barriers) == (plain.groups, plain.barriers) == (15, ())
    prune_units(model, IMAGE)
    pruned = analyse(model, IMAGE)
    assert pruned.groups == 15 and int(pruned.dead.sum()) == int(analyse(fold(model), IMAGE).dead.sum()) == 6


class TwoOutputs(nn.Module):
    """One output is a million times as large as the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.small, self.large = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.small(self.a(x)) * 1e-6, self.large(x) * 1e6


def test_each_output_is_compared_by_its_own_largest_entry() -> None:
    from sparsify.relative_error import relative_error

    with torch.no_grad():
        ours = TwoOutputs()(X)
    theirs = (ours[0] * 1.5, ours[1])
    assert relative_error(ours, theirs) == pytest.approx(1 / 3, rel=1e-3)


def stacked() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1), Mixing()).eval()


SMALL, OTHER = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 8, 4)


def test_units_that_another_example_does_not_have_are_left_out() -> None:
    model = stacked()
    alone, both = analyse(model, SMALL), analyse(model, SMALL, examples=[SMALL, OTHER])
    assert (alone.groups, both.groups) == (13, 9) and not alone.barriers
    assert "4 units stay: for example 3 the groups differ, or are not dead" in both.barriers
    assert both.produced == {"0.weight": 0, "0.bias": 0, "2.weight": 0, "2.bias": 0}
    assert set(both.labels) == {*both.produced, "3.a.weight"} and len(both.dead) == 9
    assert sorted(both.labels["0.weight"][0].tolist() + both.labels["2.weight"][0].tolist()) == list(range(9))
    assert max(int(axis.max()) for operation in both.operations for axis in operation.axes) == 8


def test_a_pruner_leaves_units_that_another_example_does_not_have() -> None:
    torch.manual_seed(0)
    model = stacked()
    convert(model)
    settings = {"granularity": "unit", "sparsity": 0.5, "schedule": "one_shot"}
    pruner = Pruner(model, settings, 1, example_input=SMALL, examples=[OTHER])
    pruner.start()
    assert pruner.report().choices == 9 and any("for example 2" in note for note in pruner.report().notes)
    report = shrink(model, SMALL, examples=[OTHER])
    for given in (SMALL, OTHER):
        torch.testing.assert_close(report.model(given), model(given))
    assert report.removed == pruner.report().chosen == 4 and not report.kept
    assert report.model[3].a.out_channels == 16  # type: ignore[index, union-attr]


def test_a_pruner_whose_examples_agree_about_nothing_says_why() -> None:
    model = Bucketed()
    convert(model, ignore=["short", "long"])
    with pytest.raises(SparsifyError, match="no unit .* for example 2 the groups differ"):
        Pruner(
            model,
            {"granularity": "unit", "sparsity": 0.5},
            1,
            example_input=torch.randn(1, 3, 4, 4),
            examples=[torch.randn(1, 3, 16, 16)],
        )


class AskingForGradients(nn.Module):
    """A forward that does something else where gradients are on; `ask` is how it finds out."""

    def __init__(self, ask: Callable[[Tensor], bool], *, fails: bool = False) -> None:
        super().__init__()
        self.ask, self.fails = ask, fails
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
        self.with_gradients, self.without = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu()
        if not self.ask(x):
            return self.without(x)  # type: ignore[no-any-return]
        if self.fails:
            raise ValueError("no gradients here")
        return self.with_gradients(x)  # type: ignore[no-any-return]


GRADIENTS: dict[str, Callable[[Tensor], bool]] = {
    "the mode": lambda x: torch.is_grad_enabled(),
    "the tensor": lambda x: x.requires_grad,
    "both": lambda x: torch.is_grad_enabled() and x.requires_grad,
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_what_only_runs_with_gradients_is_tied_to_the_rest(name: str) -> None:
    torch.manual_seed(0)
    model = AskingForGradients(GRADIENTS[name]).eval()
    found = analyse(model, X)
    assert torch.equal(found.labels["with_gradients.weight"][1], found.labels["second.weight"][0])
    with torch.no_grad():
        model.second.weight[:3], model.second.bias[:3] = 0.0, 0.0
        model.without.weight[:, 3:5] = 0.0  # read with gradients on
    report = shrink(model, X, dead="zeros")
    assert report.removed == 3
    with torch.enable_grad():
        assert torch.allclose(report.model(X), model(X), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(report.model(X), model(X), atol=1e-6)


class RecomputesInTraining(nn.Module):
    """A forward with activation checkpointing, as models write it."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.trunk, self.block, self.head = nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 6), nn.ReLU()), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        if self.training and torch.is_grad_enabled():
            return self.head(checkpoint(self.block, x.relu(), use_reentrant=self.reentrant))  # type: ignore[no-any-return]
        return self.head(self.block(x.relu()))  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_that_recomputes_activations_in_training_has_all_its_units(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = RecomputesInTraining(reentrant=reentrant)
    found = analyse(model, X)
    assert found.barriers == () and found.groups == 8 + 6
    with torch.no_grad():
        model.trunk.weight[:3], model.trunk.bias[:3] = 0.0, 0.0
    small = shrink(model, X, dead="zeros").model
    assert small.trunk.out_features == 5 and small.training
    assert torch.allclose(small(X), model(X), atol=1e-6)


def test_what_only_runs_with_gradients_in_train_mode_is_tied_to_the_rest() -> None:
    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.added, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            if torch.is_grad_enabled() and self.training:  # asked in eval mode too
                y = y + self.added(x)
            return self.last(y)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Adding()
    found = analyse(model, X)
    assert torch.equal(found.labels["added.weight"][0], found.labels["first.weight"][0])
    with torch.no_grad():
        for layer in (model.first, model.added):
            layer.weight[:3], layer.bias[:3] = 0.0, 0.0
        model.first.weight[3:5], model.first.bias[3:5] = 0.0, 0.0
    small = shrink(model, X, dead="zeros").model
    assert small.added.out_features == 5
    assert torch.allclose(small.train()(X), model.train()(X), atol=1e-6)


def test_a_forward_that_does_not_run_with_gradients_keeps_what_it_meets() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Linear(6, 4), AskingForGradients(GRADIENTS["the mode"], fails=True)
    ).eval()
    found = analyse(model, X)
    (barrier,) = found.barriers
    assert barrier == "2: its forward asks whether gradients are on, and may do something else otherwise"
    assert found.groups == 6


class Switched(nn.Module):
    """A head that a setting turns on later, an argument that this call does not give, and a counter's other head."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = False
        self.trunk, self.head, self.more, self.other = (nn.Linear(4, 8), *(nn.Linear(8, 2) for _ in range(3)))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        z = self.trunk(x).relu()
        if y is not None:
            z = z + self.other(y)
        return self.head(z) + self.more(z) if self.auxiliary else self.head(z)  # type: ignore[no-any-return]


def test_layers_that_did_not_run_are_named_where_something_went() -> None:
    model = Switched().eval()
    assert shrink(model, X, dead="zeros").kept == ()
    with torch.no_grad():
        model.trunk.weight[:3], model.trunk.bias[:3] = 0, 0
    report = shrink(model, X, dead="zeros")
    assert report.removed == 3
    assert report.kept == ("more, other: not cut, since not run with the example; another call of them may fail",)


def test_torch_asks_for_gradients_without_consequences() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    recording = record(layer, torch.rand(2, 3, 8))
    assert not recording.branches and recording.eval_count == len(recording.ops)


SELECTING: dict[str, Callable[[Tensor], Any]] = {
    "numel of an index": lambda x: x[x > 0].numel() > 0,
    "length of nonzero": lambda x: len(torch.nonzero(x)),
    "size of masked_select": lambda x: torch.masked_select(x, x > 0).size(0) > 2,
    "shape of rows": lambda x: x[x[:, 0] > 0].relu().shape[0] == 3,
    "numbers that differ": lambda x: x.long().unique().numel() == 1,
    "a loop": lambda x: [row for row in torch.where(x > 0)[0]],  # noqa: C416
}


@pytest.mark.parametrize("name", SELECTING)
def test_what_meets_a_branch_on_how_many_were_selected_stays(name: str) -> None:
    model = Wrapped(SELECTING[name]).eval()
    channels = analyse(model, X)
    why = "inner: its forward asks what activations hold, and may do something else with others"
    assert why in channels.barriers
    assert channels.groups == 6  # of the first layer, which is outside


@pytest.mark.parametrize("name", ["rows", "in place", "sizes of others", "layers that ran"])
def test_a_selection_without_another_path_to_layers_keeps_nothing(name: str) -> None:
    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.trunk(x).relu()
            hit = x[:, 0] > 0.3
            if name == "in place":
                y = torch.zeros_like(z)
                y[hit] = z[hit] * 2
                return self.head(y)
            if name == "sizes of others" and z.shape[1] > 100:
                z = z * 2
            if name == "layers that ran" and not len(z[hit]):
                return z.sum(0)[:2]
            return self.head(z[hit]).sum(0)

    assert analyse(Selecting(), X).groups == 8
