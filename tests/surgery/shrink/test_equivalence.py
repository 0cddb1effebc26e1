"""How outputs are compared, and what a difference is."""

import math

import torch
from torch import Tensor, nn

from sparsify.relative_error import relative_error
from sparsify.surgery.recording.context import all_double
from sparsify.surgery.shrink.equivalence import _failing
from sparsify.surgery.shrink.rounding import moved_by_rounding
from sparsify.surgery.shrink.shrink import shrink
from sparsify.surgery.sizes.other_inputs import outputs


def test_the_difference_is_the_largest_over_the_largest_of_its_tensor() -> None:
    assert relative_error([torch.tensor([1.0, 4.0])], [torch.tensor([2.0, 4.0])]) == 0.25
    assert relative_error([torch.tensor([1.0]), torch.tensor([8.0])], [torch.tensor([2.0]), torch.tensor([8.0])]) == 0.5
    assert relative_error([torch.tensor([0.5])], [torch.tensor([0.0])]) == math.inf, "nothing is small beside zeros"
    assert relative_error([torch.empty(0)], [torch.empty(0)]) == 0


def test_equal_infinities_and_no_numbers_are_no_difference_and_no_measure() -> None:
    inf, nan = math.inf, math.nan
    assert relative_error([torch.tensor([nan, inf, 2.0])], [torch.tensor([nan, inf, 2.0])]) == 0
    assert relative_error([torch.tensor([nan])], [torch.tensor([1.0])]) > 1e300
    assert relative_error([torch.tensor([inf, 2.0])], [torch.tensor([-inf, 2.0])]) > 1e300
    assert relative_error([torch.tensor([-inf, 2.5])], [torch.tensor([-inf, 2.0])]) == 0.25
    lowest = torch.finfo(torch.float32).min
    assert relative_error([torch.tensor([lowest, 2.5])], [torch.tensor([lowest, 2.0])]) == 0.25


def test_whole_numbers_and_truths_are_compared() -> None:
    assert relative_error([torch.tensor([True, False])], [torch.tensor([True, True])]) == math.inf
    assert relative_error([torch.tensor([3])], [torch.tensor([4])]) == math.inf
    assert relative_error([torch.tensor([4])], [torch.tensor([4])]) == 0


class Own(nn.Module):
    """A forward that computes in float32 whatever it is given, with a constant that it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 2)
        self.scale = torch.full((4,), 1.5)  # no buffer: model.double() does not reach it
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x * self.scale).float().relu()
        x = x * torch.rsqrt(x.to(torch.float32).square().sum(-1, keepdim=True) + 1)
        self.seen.append(x.dtype)
        return self.last(x)


def test_float64_is_kept_where_the_forward_asks_for_less() -> None:
    model = Own()
    with torch.no_grad():
        model.first.weight[::2], model.first.bias[::2] = 0, 0
    report = shrink(model, torch.randn(3, 4), dead="zeros")
    assert report.removed == 4 and report.difference is not None
    assert report.difference[0] < 1e-14
    with all_double():
        assert Own().double()(torch.randn(3, 4).double()).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32


def test_models_in_half_precision_are_compared_by_what_it_can_tell() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(dtype)
        with torch.no_grad():
            model[0].weight[::2], model[0].bias[::2] = 0, 0
        report = shrink(model, torch.randn(3, 64, dtype=dtype), dead="zeros")
        assert report.removed == 32 and report.model[0].weight.dtype == dtype
        assert report.difference is not None and report.difference[0] < 1e-14


def test_outputs_leave_the_input_and_the_buffers_alone() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x.mul_(2) + self.calls

    model, x = Counts(), torch.ones(2)
    assert [outputs(model, x)[0].tolist() for _ in range(2)] == [[3.0, 3.0]] * 2
    assert x.tolist() == [1.0, 1.0] and model.calls == 0


def test_running_statistics_are_those_of_the_model_after_a_proof_in_train_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    small = shrink(model, torch.randn(4, 3)).model
    assert not small[1].running_mean.any() and small[1].num_batches_tracked == 0


class Pairs(nn.Module):
    """Takes pairs of images, and forgets their order: no odd batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()).unflatten(0, (-1, 2)).mean(1)


def test_other_inputs_are_the_smallest_that_the_forward_takes() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert shrink(nn.Conv2d(3, 2, 1), x).proved == ("a batch of 3", "an input of shape (1, 3, 8, 8)")
    assert shrink(Pairs(), x).proved == ("a batch of 4", "an input of shape (2, 3, 8, 8)")


def test_the_innermost_module_that_raises_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    assert _failing(model, torch.randn(2, 3)) == "1.1"
    assert _failing(model[0], torch.randn(2, 3)) == "", "what has raised once may run the next time"


class Chooses(nn.Module):
    """Puts out the row of the largest sum; `tilt`, a number that depends on the width, decides between equal sums."""

    def __init__(self, tilt: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.tilt = nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False), tilt
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4, 3))  # the last unit is dead
            self.last.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        sums = self.last(hidden)[..., 0] + self.tilt * (hidden.shape[1] - 3.5) * torch.arange(len(x))
        return x[sums.topk(1).indices]


EQUAL, CLEAR = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 2.0]])


def test_outputs_that_rounding_alone_moves_are_told_from_a_fault_of_the_cut() -> None:
    kept = " ".join(shrink(Chooses(tilt=1e-4), EQUAL, dead="zeros").kept)
    assert "outputs differ by 6.7e-01 of the largest" in kept and "rounding" not in kept
    kept = " ".join(shrink(Chooses(tilt=1e-8), EQUAL, dead="zeros").kept)
    assert "outputs differ by 6.7e-01 of the largest, but rounding alone moves the whole model's by 6.7e-01" in kept
    assert shrink(Chooses(tilt=1e-8), CLEAR, dead="zeros").removed == 1


def test_rounding_moves_a_choice_between_equals_alone() -> None:
    model = Chooses().double()
    assert moved_by_rounding(model, CLEAR.double(), 1e-7) == 0
    assert moved_by_rounding(nn.Linear(3, 2).double(), CLEAR.double(), 1e-7) < 1e-5
    assert math.isclose(moved_by_rounding(model, EQUAL.double(), 1e-7), 2 / 3)


def test_a_difference_where_float64_takes_other_sizes_is_of_no_module_in_particular() -> None:
    class Selects(Chooses):
        """Takes the rows whose sum is 6 in float32."""

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return x[self.last(hidden)[:, 0] - 1e-9 >= 6] * hidden.shape[1]

    report = shrink(Selects(), EQUAL, dead="zeros")
    assert report.removed == 0 and "outputs differ by" in " ".join(report.kept)
