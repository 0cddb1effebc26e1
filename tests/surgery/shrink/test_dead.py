"""What counts as dead: what masks removed for good, or also what only holds zeros for now."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import Pruner, convert, get_masks, set_masks
from sparsify.errors import SparsifyError
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.conversion.mask_extra import mask_also
from sparsify.surgery.shrink.shrink import shrink

X = torch.randn(2, 3, 6, 6)


class Branch(nn.Module):
    """x + f(x), where f starts at zero in one of the usual ways."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.one, self.two = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.ones(1))
        self.layer_scale = nn.Parameter(torch.ones(6, 1, 1))
        zero = {"norm": [self.norm.weight], "scale": [self.scale], "layer scale": [self.layer_scale]}
        zero |= {"convolution": list(self.two.parameters()), "head": list(self.head.parameters())}
        with torch.no_grad():
            for parameter in zero[start]:
                parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.scale * self.layer_scale * self.norm(self.two(F.relu(self.one(x)))))


@pytest.mark.parametrize("start", ["norm", "scale", "layer scale", "convolution", "head"])
def test_what_starts_at_zero_stays_unless_it_is_asked_for(start: str) -> None:
    report = shrink(Branch(start), X)
    assert report.removed == 0 and report.parameters[0] == report.parameters[1]
    assert report.kept == (
        "everything: no mask of this model removes anything; dead='zeros' also removes channels that are zero now",
    )
    assert shrink(Branch(start), X, dead="zeros").removed > 0


@pytest.mark.parametrize("start", ["norm", "scale", "layer scale", "convolution", "head"])
def test_pruned_units_of_a_branch_that_starts_at_zero_go_alone(start: str) -> None:
    torch.manual_seed(0)
    model = Branch(start)
    convert(model, ignore=["head"])
    Pruner(model, {"granularity": "unit", "scope": "layer", "sparsity": 0.5}, 0, example_input=X).start()
    report = shrink(model, X)
    assert (report.model.one.out_channels, report.model.stem.out_channels) == (4, 3)
    assert report.removed == report.pruned == 7 and not report.kept
    both = shrink(model, X, dead="zeros")
    assert both.removed > both.pruned == 7
    assert f"({both.pruned} pruned, {both.removed - both.pruned} dead before)" in str(both)


def masked(model: nn.Module, further: tuple[str, ...] = (), **rows: list[int]) -> nn.Module:
    """Put masks on a model and remove rows, by parameter name with "_" for "."."""
    convert(model)
    if further:
        mask_also(model, further)
    masks = {name: mask.clone() for name, mask in get_masks(model).items()}
    for name, gone in rows.items():
        masks[name.replace("_", ".")][gone] = False
    set_masks(model, masks)
    return model


def layers(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), *between, nn.Linear(6, 2))


def left(model: nn.Module) -> list[int]:
    x = torch.randn(4, 3)
    small = shrink(model, x).model
    torch.testing.assert_close(small(x), model(x))
    return [module.out_features for module in small.modules() if isinstance(module, nn.Linear)]


BETWEEN: dict[str, Callable[[], list[nn.Module]]] = {
    "relu": lambda: [nn.ReLU()],
    "sigmoid, absorbed": lambda: [nn.Sigmoid()],
    "a norm": lambda: [nn.BatchNorm1d(6).eval()],
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_removed_row_whose_bias_still_learns_stays(name: str) -> None:
    model = layers(*BETWEEN[name]()).eval()
    with torch.no_grad():
        model[0].bias.zero_()  # for now
    assert left(masked(model, **{"0_weight": [1, 4]})) == [6, 2]


@pytest.mark.parametrize("name", ["relu", "sigmoid, absorbed"])
def test_a_removed_row_whose_bias_is_removed_as_well_goes(name: str) -> None:
    model = layers(*BETWEEN[name]()).eval()
    assert left(masked(model, ("0.bias",), **{"0_weight": [1, 4], "0_bias": [1]})) == [5, 2]


def test_a_removed_row_goes_before_a_norm_that_is_removed_there() -> None:
    model = layers(nn.BatchNorm1d(6)).eval()
    with torch.no_grad():
        model[1].running_mean.normal_()
    convert(model)
    mask_also(model, ["1.weight", "1.bias"])
    masks = {name: mask.clone() for name, mask in get_masks(model).items()}
    masks["0.weight"][[1, 4]] = False
    masks["1.weight"][[1, 4]] = False
    masks["1.bias"][1] = False
    set_masks(model, masks)
    assert left(model) == [5, 2]


def test_what_no_kept_weight_reads_goes_with_all_that_made_it() -> None:
    model = layers(nn.ReLU())
    convert(model)
    masks = {name: mask.clone() for name, mask in get_masks(model).items()}
    masks["2.weight"][:, 3] = False
    set_masks(model, masks)
    assert left(model) == [5, 2]


class Shift(nn.Module):
    """A learnt number that all channels share, as StarReLU's."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_a_learnt_number_of_all_channels_is_folded_as_it_is(value: float) -> None:
    model = layers(Shift(value), nn.ReLU())
    convert(model)
    mask_also(model, ["0.bias"])
    masks = {name: mask.clone() for name, mask in get_masks(model).items()}
    masks["0.weight"][2], masks["0.bias"][2] = False, False
    set_masks(model, masks)
    assert left(model) == [5, 2]


def test_units_that_only_a_norm_of_zeros_hides_are_not_said_to_be_killable() -> None:
    """Two layers of one width meet in a sum that a zero scale hides: layer norm ties what it reads."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
            self.gain = nn.Parameter(torch.zeros(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(x) + self.gain * self.b(torch.sigmoid(self.a(x)))

    assert analyse(Hidden(), X).groups == 0  # a sigmoid's half before padding can not be made zero


def test_another_word_is_refused() -> None:
    with pytest.raises(SparsifyError, match=r"shrink: unknown dead 'mask'.*masks"):
        shrink(layers(), torch.randn(2, 3), dead="mask")  # type: ignore[arg-type]


KIN: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(0, 1),
    "threshold": nn.Threshold(0.1, 0),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(inplace=True),
    "twice": nn.Sequential(nn.Tanh(), nn.ReLU()),
}


class Clamped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


KIN |= {
    "clamp": Clamped(lambda x: x.clamp(min=0)),
    "where": Clamped(lambda x: torch.where(x > 0, x, 0.0)),
    "masked": Clamped(lambda x: x * (x > 0)),
    "masked fill": Clamped(lambda x: x.masked_fill(x <= 0, 0.0)),
    "maximum": Clamped(lambda x: torch.maximum(x, torch.zeros(()))),
    "softshrink": Clamped(lambda x: F.relu(F.softshrink(x))),
}


@pytest.mark.parametrize("name", KIN)
def test_negative_constants_are_zero_after_a_relu_also_before_padding(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), KIN[name], nn.Conv2d(8, 2, 3, padding=1)).double()
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = -4.0
        model[0].bias[4:] = 1.0
    x = X.double()
    report = shrink(model, x, dead="zeros")
    assert report.model[0].out_channels == 4
    torch.testing.assert_close(report.model(2 * x), model(2 * x))


def test_positive_constants_before_padding_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[0].bias[:4] = torch.tensor([4.0, 1e-6, -1e-6, -4.0])
    assert shrink(model, X, dead="zeros").model[0].out_channels == 6
