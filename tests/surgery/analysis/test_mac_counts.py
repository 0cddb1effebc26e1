"""Multiply-adds of every kind of operation, against PyTorch's own counter or by hand where that knows none."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsify import Pruner, convert
from sparsify.errors import SparsifyError
from sparsify.surgery.analysis.counted_pass import counted_pass
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.recording.shape_only import ValuesNeededError
from sparsify.surgery.shrink.shrink import shrink


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(1, -1, count, 2).transpose(1, 2)


COUNTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w: x @ w,
    "addmm": lambda x, w: torch.addmm(x[:, :1], x, w),
    "bmm": lambda x, w: torch.bmm(x[None], w[None]),
    "baddbmm": lambda x, w: torch.baddbmm(x[None], x[None], w[None]),
    "einsum": lambda x, w: torch.einsum("bi,ij->bj", x, w),
    "einsum of three": lambda x, w: torch.einsum("bi,ij,bj->b", x, w, x),
    "a chain": lambda x, w: torch.linalg.multi_dot([x, w, w]),
    "convolution": lambda x, w: F.conv1d(x[None], w[:3, :2, None].expand(3, 2, 3), groups=3),
    "transposed convolution": lambda x, w: F.conv_transpose1d(x[None], w[:6, :, None].expand(6, 8, 3), stride=2),
    "attention": lambda x, w: F.scaled_dot_product_attention(heads(x, 2), heads(x @ w, 2), heads(x, 2)),
    "attention of other sizes": lambda x, w: F.scaled_dot_product_attention(x[None], w[None], w[None, :, :4]),
    "a projection": lambda x, w: F.linear(x, w),
}


def counted(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Return what sparsify and PyTorch count."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return sum(operation.multiply_adds for operation in analyse(model, x).operations), counter.get_total_flops() // 2


@pytest.mark.parametrize("name", COUNTED)
def test_products_count_as_in_pytorch(name: str) -> None:
    ours, theirs = counted(Call(COUNTED[name]), torch.randn(6, 8))
    assert ours == theirs > 0


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(8, 5, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(8, 5, proj_size=3),
    "gru": lambda: nn.GRU(8, 5, bias=False),
    "rnn": lambda: nn.RNN(8, 5, batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_count_their_matrices_at_every_position(name: str) -> None:
    model, x = RECURRENT[name](), torch.randn(6, 3, 8)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert shrink(model, x, verify=False).multiply_adds == (6 * 3 * matrices,) * 2


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_count_as_in_pytorch(cell: Callable[[int, int], nn.Module]) -> None:
    ours, theirs = counted(cell(8, 5), torch.randn(3, 8))
    assert ours == theirs == 3 * (8 + 5) * {nn.LSTMCell: 20, nn.GRUCell: 15, nn.RNNCell: 5}[cell]  # type: ignore[index]


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(8, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, x[:, :6])


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.taken = nn.Conv2d(4, 18, 3), torchvision.ops.DeformConv2d(4, 6, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.taken(x, self.offsets(x))


def test_bilinear_and_deformable_layers_are_counted() -> None:
    assert shrink(Bilinear(), torch.randn(3, 8), verify=False).multiply_adds[0] == 3 * 8 * 6 * 5
    image = torch.randn(2, 4, 8, 8)
    expected = 2 * 36 * 9 * (18 * 4 + 6 * 2)
    assert shrink(Deformable(), image, verify=False).multiply_adds[0] == expected


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 16, 3, padding=1), nn.Conv1d(16, 8, 3, padding=1)
        self.rnn, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.two(self.one(x).relu()).relu().transpose(1, 2))[0][:, -1])


def test_the_share_that_goes_is_of_everything() -> None:
    torch.manual_seed(0)
    model, x = Recurrent(), torch.randn(1, 3, 20)
    convert(model, ignore=["head", "rnn"])
    settings = {"granularity": "unit", "of": "flops", "scope": "global", "sparsity": 0.3}
    pruner = Pruner(model, settings, 1, example_input=x)
    pruner.start()
    small = shrink(model, x)
    before, after = small.multiply_adds
    assert pruner.report().share == pytest.approx(1 - after / before) and pruner.report().share >= 0.3

    def by_hand(m: nn.Module) -> int:
        matrices = [m.one, m.two, *(p for p in m.rnn.parameters() if p.dim() == 2)]  # type: ignore[union-attr]
        sizes = [getattr(one, "weight", one).numel() for one in matrices]
        return int(20 * sum(sizes) + m.head.weight.numel())  # type: ignore[union-attr,operator]

    assert (by_hand(Recurrent()), by_hand(small.model)) == (before, after)


UNCOUNTED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "a transform": ("_fft_r2c", lambda x: torch.fft.rfft(x).real),
    "distances": ("_cdist_forward", lambda x: torch.cdist(x, x)),
    "a solution": ("_linalg_solve_ex", lambda x: torch.linalg.solve(x.mT @ x + 9 * torch.eye(8), x.mT)),
    "another library": ("numpy", lambda x: torch.from_numpy(x.numpy() + 1)),
}


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.two(F.relu(self.one(x))))


@pytest.mark.parametrize("name", UNCOUNTED)
def test_what_can_not_be_counted_is_named_and_no_budget_is_taken_of_it(name: str) -> None:
    operation, function = UNCOUNTED[name]
    model, x = Between(function), torch.randn(4, 3)
    report = shrink(model, x)
    assert report.uncounted == (f"the model: {operation}",)
    assert f"not counted: multiply-adds of the model: {operation}" in str(report)
    convert(model)
    settings = {"granularity": "unit", "scope": "global", "sparsity": 0.5}
    why = rf"^pruning\.of: 'flops': multiply-adds of the model: {operation} cannot be counted"
    with pytest.raises(SparsifyError, match=why):
        Pruner(model, {**settings, "of": "flops"}, 0, example_input=x)
    if operation == "numpy":  # what it does to the values may choose the way that the forward takes
        with pytest.raises(SparsifyError, match="^Pruner: no unit of this model can be removed"):
            Pruner(model, {**settings, "of": "parameters"}, 0, example_input=x)
    else:
        Pruner(model, {**settings, "of": "parameters"}, 0, example_input=x).start()


@pytest.mark.parametrize("function", [lambda x: x.sort(1).values.cumsum(1), lambda x: F.normalize(x, dim=1)])
def test_what_sorts_compares_moves_or_scales_takes_none(function: Callable[[Tensor], Tensor]) -> None:
    assert analyse(Between(function), torch.randn(4, 3)).uncounted == ()


@pytest.mark.parametrize("name", COUNTED)
def test_a_pass_counts_what_a_recording_does(name: str) -> None:
    model, x = Call(COUNTED[name]), torch.randn(6, 8)
    with torch.no_grad(), counted_pass() as counting:
        model(x)
    assert counting.multiply_adds == counted(model, x)[0] and counting.complete


def test_a_pass_with_an_operation_that_has_no_count_is_incomplete() -> None:
    with torch.no_grad(), counted_pass() as counting:
        Call(lambda x, w: torch.linalg.inv(w) @ x.T)(torch.randn(6, 8))
    assert not counting.complete


def test_a_pass_need_not_compute_what_it_counts() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5, bias=False)),
        torch.ones(2, 3, 5, 5),
    )
    with torch.no_grad(), counted_pass(computed=False) as counting:
        output = model(x)
    assert counting.multiply_adds == counted(model, x)[0] and counting.complete and not output.any()


@pytest.mark.parametrize(
    "ask", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.numpy(), lambda x: x.equal(x)]
)
def test_a_pass_that_does_not_compute_refuses_what_needs_values(ask: Callable[[Tensor], object]) -> None:
    with pytest.raises(ValuesNeededError), counted_pass(computed=False):
        ask(torch.ones(2, 3))
