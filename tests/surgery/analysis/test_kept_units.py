"""Units of which a part stays: the notes say how many, and which operation makes something else of zeros."""

import pytest
import torch
from torch import Tensor, nn

from sparsify import Pruner, analyse, convert, shrink

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def with_norm(padding: int, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 8, 3, padding=padding)).eval()


def plain_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(16, affine=False)
    assert norm.running_mean is not None
    norm.running_mean.copy_(torch.cat([torch.full((9,), -1.0), torch.full((7,), 1.0)]))
    return norm


def test_a_norm_without_shift_before_padding_keeps_some_and_a_note_says_how_many() -> None:
    model = with_norm(
        1, plain_norm()
    )  # nine channels of zeros come out at 1: beside the padding no bias stands for them
    found = analyse(model, X)
    assert found.groups == 7
    (barrier,) = found.barriers
    assert barrier == "1: operation 'native_batch_norm' makes other values of zeros: 9 of 16 units of 0.weight stay"
    convert(model, ignore=["last"])
    pruner = Pruner(model, {"granularity": "unit", "sparsity": 0.5}, 1, example_input=X)
    assert barrier in pruner.report().notes and pruner.report().choices == 7


@pytest.mark.parametrize(("padding", "affine"), [(0, False), (0, True), (1, True)])
def test_there_is_no_note_where_all_can_go(padding: int, affine: bool) -> None:
    model = with_norm(padding, nn.BatchNorm2d(16) if affine else plain_norm())
    found = analyse(model, X)
    assert (found.groups, found.barriers) == (16, ())


class Shifted(nn.Module):
    """Adds fixed numbers, some below zero, before a ReLU and a padded convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 3, padding=1)
        self.register_buffer("shift", torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, -1.0]).reshape(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b((self.a(x) + self.shift).relu())
        return y


def test_of_fixed_shifts_the_negative_ones_go_and_a_note_counts_the_others() -> None:
    model = Shifted().eval()
    found = analyse(model, X)
    assert found.groups == 4
    assert found.barriers == ("the model: operation 'add' makes other values of zeros: 2 of 6 units of a.weight stay",)


@pytest.mark.parametrize(("groups", "out"), [(2, 16), (2, 8), (4, 16), (8, 16)])
@pytest.mark.parametrize("transposed", [False, True])
def test_whole_dead_groups_of_a_grouped_convolution_go(groups: int, out: int, transposed: bool) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    middle = kind(8, out, 2, 2, groups=groups)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(out, 4, 1)).double()
    dead = out // 2
    with torch.no_grad():
        for parameter in (*model[0].parameters(), *([middle.weight] if transposed else [])):
            parameter[:4] = 0
        for name, own in middle.named_parameters():
            if name == "bias" or not transposed:
                own[:dead] = 0
    report = shrink(model, X.double(), dead="zeros")
    small = report.model[2]  # type: ignore[index]
    assert (small.in_channels, small.out_channels, small.groups) == (4, out - dead, groups // 2)
    torch.testing.assert_close(report.model(X.double()), model(X.double()))


def test_dead_positions_of_every_group_go_still() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=2), nn.Conv2d(16, 4, 1))
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[[0, 4]] = 0
        for parameter in model[2].parameters():
            parameter[[0, 1, 8, 9]] = 0
    report = shrink(model, X, dead="zeros")
    assert (report.model[0].out_channels, report.model[2].out_channels, report.model[2].groups) == (6, 12, 2)  # type: ignore[index]
