"""Channels that hold one value whatever the input go into the biases of what reads them, worked out by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsify
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.channels.study import study
from sparsify.surgery.conversion.mask_extra import mask_also
from sparsify.surgery.recording.recorder import record
from sparsify.surgery.shrink.bias_absorption import absorbed, constant_inputs, cut_and_absorb
from sparsify.surgery.shrink.cuts import Cuts
from sparsify.surgery.shrink.remask import mask_again
from sparsify.surgery.shrink.shrink import shrink
from sparsify.surgery.sizes.size_attributes import PrunedShapes
from tests.surgery.halves import zero_half


class Star(nn.Module):
    """s * relu(x)^2 + b, as in MetaFormers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.9))
        self.shift = nn.Parameter(torch.tensor(-0.4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) ** 2 + self.shift


class Two(nn.Module):
    """Two layers, with whatever is between them."""

    def __init__(self, first: nn.Module, between: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = first, between, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def zeroed(model: nn.Module, *units: int) -> nn.Module:
    """Make rows of the first layer zero; their biases stay what they are."""
    with torch.no_grad():
        model.first.weight[list(units)] = 0
    return model


def dead_units(model: nn.Module, x: Tensor) -> list[int]:
    found = analyse(model, x)
    labels = found.labels.get("first.weight", {}).get(0, torch.tensor([], dtype=torch.int64))
    return [unit for unit, group in enumerate(labels.tolist()) if group >= 0 and found.dead[group]]


def shrunk_alike(model: nn.Module, x: Tensor) -> nn.Module:
    """Shrink a model and compare on other inputs than the one that it was shrunk with."""
    model = model.double().eval()
    small = shrink(model, x.double(), dead="zeros").model
    other = torch.randn(x.shape, dtype=torch.float64)
    torch.testing.assert_close(small(other), model(other), rtol=1e-12, atol=1e-12)
    return small


def test_the_sigmoid_of_a_bias_moves_into_the_bias_of_the_next_layer() -> None:
    model = zeroed(Two(nn.Linear(3, 4), torch.sigmoid, nn.Linear(4, 2)), 1, 3).double()
    x = torch.randn(5, 3).double()
    assert dead_units(model, x) == [1, 3]
    small = shrunk_alike(model, x)
    assert small.first.weight.shape == (2, 3) and small.last.weight.shape == (2, 2)
    values = torch.sigmoid(model.first.bias[[1, 3]])
    torch.testing.assert_close(small.last.bias, model.last.bias + model.last.weight[:, [1, 3]] @ values)


def test_a_layer_without_a_bias_gets_one() -> None:
    model = zeroed(Two(nn.Conv2d(3, 4, 1), Star(), nn.Conv2d(4, 2, 1, bias=False)), 0)
    x = torch.randn(2, 3, 5, 5)
    report = shrink(model, x, dead="zeros")
    assert report.cuts.added == ("last.bias",) and report.model.first.out_channels == 3
    value = model.between(model.first.bias[0])
    torch.testing.assert_close(report.model.last.bias, model.last.weight[:, 0, 0, 0] * value)
    shrunk_alike(model, x)


class Expert(nn.Module):
    """Two layers for the rows that begin with a positive number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = (x[:, 0] > 0).nonzero().flatten()
        chosen = self.last(self.first(x[rows]).sigmoid())
        return torch.zeros(len(x), 2, dtype=x.dtype).index_add(0, rows, chosen)


def test_what_an_expert_without_rows_would_absorb_stays() -> None:
    model = zeroed(Expert(), 0, 2).double()
    x = torch.randn(5, 3).double()
    for example, left in ((x, 2), (-x.abs(), 4)):
        small = shrink(model, example, dead="zeros").model
        assert small.first.out_features == left
        torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_constants_are_absorbed_where_a_forward_also_writes_to_parts_of_tensors() -> None:
    class Written(Two):
        def forward(self, x: Tensor) -> Tensor:
            outputs = super().forward(x).clone()
            outputs[:, 0] = 0
            return 2 * outputs

    small = shrunk_alike(zeroed(Written(nn.Linear(3, 4), torch.sigmoid, nn.Linear(4, 2)), 1, 2), torch.randn(5, 3))
    assert small.first.out_features == 2


@pytest.mark.parametrize("between", [F.logsigmoid, F.softplus, F.mish])
def test_values_of_functions_with_a_rule_of_their_own_are_known(between: Callable[[Tensor], Tensor]) -> None:
    small = shrunk_alike(zeroed(Two(nn.Linear(3, 4), between, nn.Linear(4, 2)), 1, 2), torch.randn(5, 3))
    assert small.first.out_features == 2


SPACE = torch.randn(2, 3, 6, 6)
FOLDS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], nn.Module]] = {
    "a kernel without padding": (nn.Conv2d(3, 4, 3, padding=1), torch.sigmoid, nn.Conv2d(4, 2, 3)),
    "stride and dilation": (nn.Conv2d(3, 4, 1), torch.sigmoid, nn.Conv2d(4, 2, 2, stride=2, dilation=2)),
    "in place": (nn.Conv2d(3, 4, 1), lambda x: x.sigmoid_().add_(1), nn.Conv2d(4, 2, 1)),
    "a mean over space": (nn.Conv2d(3, 4, 1), lambda x: x.sigmoid().mean((2, 3)), nn.Linear(4, 2)),
    "pooling and flattening": (
        nn.Conv2d(3, 4, 1),
        lambda x: F.max_pool2d(F.avg_pool2d(x.exp(), 2), 3).flatten(1),
        nn.Linear(4, 2),
    ),
    "flattening with the positions": (nn.Conv2d(3, 4, 1), lambda x: x.cos().flatten(1), nn.Linear(144, 2)),
    "a norm's shift": (nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
    "tokens": (nn.Conv2d(3, 4, 1), lambda x: x.flatten(2).transpose(1, 2).sigmoid(), nn.Linear(4, 2)),
    "tokens and no bias": (
        nn.Conv2d(3, 4, 1),
        lambda x: x.flatten(2).transpose(1, 2).sigmoid(),
        nn.Linear(4, 2, bias=False),
    ),
    "joined": (nn.Conv2d(3, 4, 1), lambda x: torch.cat([x.sigmoid(), x.exp()], 1), nn.Conv2d(8, 2, 1)),
    "one table for all": (nn.Conv2d(3, 4, 1), lambda x: x + torch.ones(6, 6), nn.Conv2d(4, 2, 1)),
}
STAYS: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], nn.Module]] = {
    "padding": (nn.Conv2d(3, 4, 1), torch.sigmoid, nn.Conv2d(4, 2, 3, padding=1)),
    "padding before": (nn.Conv2d(3, 4, 1), lambda x: F.pad(x.sigmoid(), (1, 1)), nn.Conv2d(4, 2, 1)),
    "means at the border": (nn.Conv2d(3, 4, 1), lambda x: F.avg_pool2d(x.sigmoid(), 3, 1, 1), nn.Conv2d(4, 2, 1)),
    "groups": (nn.Conv2d(3, 4, 1), torch.sigmoid, nn.Conv2d(4, 4, 1, groups=4)),
    "transposed": (nn.Conv2d(3, 4, 1), torch.sigmoid, nn.ConvTranspose2d(4, 2, 2)),
    "a table of positions": (
        nn.Conv2d(3, 4, 1),
        lambda x: x + torch.arange(36.0, dtype=x.dtype).reshape(6, 6),
        nn.Conv2d(4, 2, 1),
    ),
    "times the input": (nn.Conv2d(3, 4, 1), lambda x: x.sigmoid() * x.mean((1, 2, 3), True), nn.Conv2d(4, 2, 1)),
    "a norm over channels": (nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 1)),
}


@pytest.mark.parametrize("name", FOLDS)
def test_constant_channels_go_where_they_are_the_same_at_every_position(name: str) -> None:
    model = zeroed(Two(*FOLDS[name]), 1, 2)
    if isinstance(model.between, nn.BatchNorm2d):
        nn.init.uniform_(model.between.bias)
        nn.init.uniform_(model.between.running_mean)
    assert dead_units(model.eval(), SPACE) == [1, 2]
    assert shrunk_alike(model, SPACE).first.out_channels == 2


@pytest.mark.parametrize("name", STAYS)
def test_constant_channels_stay_where_a_bias_cannot_stand_for_them(name: str) -> None:
    model = zeroed(Two(*STAYS[name]), 1, 2)
    assert dead_units(model, SPACE) == []
    assert shrunk_alike(model, SPACE).first.out_channels == 4


class Reads(nn.Module):
    """y = last(sigmoid(first(x))), and something else that is done with the last layer."""

    def __init__(self, more: Callable[["Reads", Tensor, Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.more = more
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self, x, torch.sigmoid(self.first(x)))


@pytest.mark.parametrize(
    "more",
    [
        lambda m, x, y: m.last(y) + m.last(x),
        lambda m, x, y: m.last(y) + F.linear(x, m.last.weight),
        lambda m, x, y: m.last(y) + m.last.bias * x,
        lambda m, x, y: (m.last(y), m.last.bias * 2),
        lambda m, x, y: F.linear(y, 2 * m.last.weight, m.last.bias),
        lambda m, x, y: F.linear(y, m.last.weight, 2 * m.last.bias),
        lambda m, x, y: F.linear(y, m.last.weight),
        lambda m, x, y: (m.last(y), y),
    ],
    ids=["layer twice", "weight twice", "bias elsewhere", "bias out", "made weight", "made bias", "no layer", "out"],
)
def test_layers_whose_tensors_are_read_elsewhere_take_in_nothing(
    more: Callable[[Reads, Tensor, Tensor], Tensor],
) -> None:
    model = zeroed(Reads(more), 1)
    assert dead_units(model, torch.randn(5, 4)) == []
    assert shrink(model, torch.randn(5, 4), dead="zeros").removed == 0


def test_a_forward_that_adds_no_bias_gets_none() -> None:
    class Ignores(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    model = zeroed(Two(nn.Linear(3, 4), torch.sigmoid, Ignores(4, 2, bias=False)), 1)
    assert dead_units(model, torch.randn(5, 3)) == []
    assert shrink(model, torch.randn(5, 3), dead="zeros").removed == 0


def test_rows_emptied_by_masks_go_though_their_bias_stays() -> None:
    model = Two(nn.Linear(3, 4), F.relu, nn.Linear(4, 2))
    nn.init.constant_(model.first.bias, 0.7)
    sparsify.convert(model, ignore=["last"])
    masks = sparsify.get_masks(model)
    masks["first.weight"][2] = False
    sparsify.set_masks(model, masks)
    x = torch.randn(5, 3)
    small = shrink(model, x, dead="zeros").model
    assert small.first.weight.shape == (3, 3)
    torch.testing.assert_close(small.last.bias, model.last.bias + 0.7 * model.last.weight[:, 2])


@pytest.mark.parametrize("whole_row", [False, True])
def test_a_bias_whose_mask_would_hide_the_constants_takes_in_none(whole_row: bool) -> None:
    model = zeroed(Two(nn.Linear(3, 4), torch.sigmoid, nn.Linear(4, 2)), 1)
    sparsify.convert(model)
    mask_also(model, ["last.bias"])
    masks = {**sparsify.get_masks(model), "last.bias": torch.tensor([True, False])}
    masks["last.weight"][1] = not whole_row
    sparsify.set_masks(model, masks)
    x = torch.randn(5, 3)
    report = shrink(model, x, dead="zeros")
    assert report.removed == (1 if whole_row else 0)
    torch.testing.assert_close(mask_again(report.model, model, report.cuts)(x), model(x))


def test_constants_of_constants_go_together() -> None:
    """The second layer reads only unit 0 in its row 1, which is constant: so is that row, and the third takes it in."""
    first, second, third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2, bias=False)
    model = Two(first, lambda x: x, nn.Sequential(nn.Sigmoid(), second, nn.Sigmoid(), third))
    with torch.no_grad():
        first.weight[0] = 0
        second.weight[1, 1:] = 0
    x = torch.randn(5, 3)
    small = shrunk_alike(model, x)
    assert small.first.weight.shape == (3, 3) and small.last[1].weight.shape == (3, 3)
    value = torch.sigmoid(second.weight[1, 0] * torch.sigmoid(first.bias[0]) + second.bias[1])
    torch.testing.assert_close(small.last[3].bias, third.weight[:, 1] * value)


def test_what_was_cut_and_absorbed_can_be_taken_back() -> None:
    model = zeroed(Two(nn.Linear(3, 4), torch.sigmoid, nn.Linear(4, 2)), 1)
    x = torch.randn(5, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = study(record(model, x), killable=False)
    new_shapes = PrunedShapes(found, found.channels.dead.numpy())
    amounts = absorbed(found, new_shapes, constant_inputs(model, x, found))
    (one,) = amounts
    assert (one.weight, one.bias, one.amounts.dtype) == ("last.weight", "last.bias", torch.float64)
    assert absorbed(found, PrunedShapes(found, np.zeros(4, dtype=bool)), constant_inputs(model, x, found)) == []
    undo = cut_and_absorb(model, Cuts({"last.weight": {0: (0,), 1: (1,)}, "last.bias": {0: (0,)}}), amounts)
    torch.testing.assert_close(model.last.bias, before["last.bias"][1:] + one.amounts[1:].float())
    undo()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    cut_and_absorb(model, Cuts({}), amounts)()  # a bias that is not cut is changed in place
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_groups_that_constants_would_tie_to_a_sigmoid_can_be_pruned() -> None:
    found = analyse(Two(nn.Linear(3, 4), torch.sigmoid, nn.Linear(4, 2)), torch.randn(5, 3))
    assert found.groups == 4 and found.produced == {"first.weight": 0, "first.bias": 0}
    padded = Two(nn.Conv2d(3, 4, 1), torch.sigmoid, nn.Conv2d(4, 2, 3, padding=1))
    assert analyse(padded, SPACE).groups == 0


def narrow() -> nn.Module:
    torch.manual_seed(0)
    return zeroed(Two(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False)), 1)  # type: ignore[arg-type]


def test_a_model_with_an_added_bias_is_saved_and_loaded_and_trained(tmp_path: Path) -> None:
    model = narrow()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(5, 3)
    model(x).square().sum().backward()
    optimizer.step()
    zeroed(model, 1)
    report = shrink(model, x, dead="zeros")
    small = report.model
    sparsify.save(small, tmp_path / "small.safetensors")
    loaded = sparsify.load(tmp_path / "small.safetensors", model=narrow())
    assert torch.equal(loaded(x), small(x)) and torch.equal(loaded.last.bias, small.last.bias)
    sparsify.cut_optimizer(optimizer, model, small, report.cuts)
    before = small.last.bias.detach().clone()
    small(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(small.last.bias, before)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_shrunk_networks_give_the_same_outputs(data: st.DataObject) -> None:
    """Random depth, width, activations, rows of zeros, biases, convolutions with and without padding."""
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    layers: list[nn.Module] = []
    width = 3
    for _ in range(data.draw(st.integers(2, 4))):
        new, kernel = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 1, 3]))
        padding = data.draw(st.sampled_from([0, kernel // 2]))
        layer = nn.Conv2d(width, new, kernel, padding=padding, bias=data.draw(st.booleans()))
        keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=new, max_size=new)))
        mask = torch.rand(layer.weight.shape) < data.draw(st.sampled_from([0.3, 1.0]))
        layer.weight.data *= keep[:, None, None, None] * mask
        layers += [layer, data.draw(st.sampled_from([nn.ReLU, nn.Sigmoid, Star, nn.Softplus, nn.Identity]))()]
        if data.draw(st.booleans()):
            norm = nn.BatchNorm2d(new)
            norm.running_mean.uniform_()
            norm.bias.data.uniform_()
            layers.insert(-1, norm)
        width = new
    shrunk_alike(nn.Sequential(*layers), torch.randn(1, 3, 10, 10))


@pytest.mark.slow
def test_poolformerv2_shrinks_when_half_of_its_units_are_zero() -> None:
    torch.manual_seed(0)
    model = timm.create_model("poolformerv2_s24").eval()
    x = torch.randn(1, 3, 224, 224)
    found = analyse(model, x)
    killed = zero_half(model, found)
    report = shrink(model, x, dead="zeros")
    assert report.removed == killed and not report.kept
    assert report.parameters[1] < 0.65 * report.parameters[0]


READERS = {
    "its padding makes them differ at the border": nn.Conv2d(4, 2, 3, padding=1),
    "a grouped or transposed convolution has no bias that could take them in": nn.ConvTranspose2d(4, 2, 2),
}


@pytest.mark.parametrize("why", READERS)
def test_a_constant_channel_that_no_bias_takes_in_stays_with_the_reason(why: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), READERS[why])
    with torch.no_grad():
        model[0].weight[1:3] = 0
    report = shrink(model, torch.randn(1, 3, 5, 5), dead="zeros")
    assert report.removed == 0
    assert report.kept == (f"2: 2 constant channels stay: {why}",)


def test_a_constant_channel_whose_reader_shares_its_bias_stays_with_the_reason() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.first(x).sigmoid()) + self.last.bias
            return y

    model = Model()
    with torch.no_grad():
        model.first.weight[1:3] = 0
    report = shrink(model, torch.randn(5, 3), dead="zeros")
    assert report.removed == 0
    why = "it has no bias of its own, or one that something else reads"
    assert report.kept == (f"last: 2 constant channels stay: {why}",)


def test_norms_with_masked_biases_do_not_stand_in_the_way() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    x = torch.randn(1, 3, 8, 8)
    sparsify.convert(model, ignore=["last"])
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5}
    sparsify.Pruner(model, pruning, total_steps=1, example_input=x).start()
    small = sparsify.shrink(model, x).model
    assert small[0].weight.shape == (3, 3, 3, 3) and small[1].weight.shape == (3,)
