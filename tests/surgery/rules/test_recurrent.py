"""Hidden units of recurrent layers: found, zeroed by masks, and gone with the same outputs."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.rules.table import RULES, Rule


class Recurrent(nn.Module):
    """A linear layer, a recurrent one, and what reads its last output."""

    def __init__(
        self, cls: Any, *, norm: bool = False, packed: bool = False, state: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 7)
        self.rnn = cls(7, 6, batch_first=True, **options)
        size = (options.get("proj_size") or 6) * (2 if options.get("bidirectional") else 1)
        self.norm = nn.LayerNorm(size) if norm else nn.Identity()
        self.leave = nn.Linear(size, 3)
        self.packed, self.width, self.state = packed, 6, state

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        if self.packed:
            lengths = torch.tensor([x.shape[1], x.shape[1] - 1])
            found, _ = self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))
            x = nn.utils.rnn.pad_packed_sequence(found, batch_first=True)[0]
        elif self.state:
            x, _ = self.rnn(x, torch.zeros(self.rnn.num_layers, len(x), self.width, dtype=x.dtype))
        else:
            x, _ = self.rnn(x)
        y: Tensor = self.leave(self.norm(x[:, -1]))
        return y


OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "layers": (nn.LSTM, {"num_layers": 3}),
    "both directions": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "without biases": (nn.LSTM, {"bias": False}),
    "projected": (nn.LSTM, {"proj_size": 4, "num_layers": 2, "bidirectional": True}),
    "packed": (nn.LSTM, {"packed": True, "bidirectional": True}),
    "with a state of zeros": (nn.GRU, {"state": True, "num_layers": 2}),
    "as many layers as units in each": (nn.RNN, {"num_layers": 6}),
}


@pytest.fixture(params=[True, False])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """With MKLDNN and without: in some of its versions torch.backends.mkldnn.flags warns."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(request.param)
    yield
    torch._C._set_mkldnn_enabled(before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", OPTIONS)
def test_units_of_all_layers_and_directions_go_together(name: str) -> None:
    cls, options = OPTIONS[name]
    torch.manual_seed(0)
    model, x = Recurrent(cls, **options).double(), torch.randn(2, 5, 5).double()
    sparsify.convert(model, ignore=["leave"])
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(model, pruning, 1, example_input=x).start()
    report = sparsify.shrink(model, x)
    small: Any = report.model
    assert report.kept == ()
    assert (small.rnn.input_size, small.rnn.hidden_size, small.rnn.num_layers) == (4, 3, model.rnn.num_layers)
    assert small.rnn.proj_size == model.rnn.proj_size // 2
    longer = torch.randn(2, 9, 5).double()
    torch.testing.assert_close(small.eval()(longer), model.eval()(longer), rtol=1e-10, atol=1e-12)


class Packed(nn.Module):
    """A classifier of sequences whose lengths are an input too."""

    def __init__(self, cls: Any) -> None:
        super().__init__()
        self.rnn, self.leave = cls(5, 6, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        y: Tensor = self.leave(states.amax(1))
        return y


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_units_go_where_lengths_are_an_input(cls: Any) -> None:
    torch.manual_seed(0)
    model, given = Packed(cls).double(), (torch.randn(2, 7, 5).double(), torch.tensor([4, 7]))
    sparsify.convert(model, ignore=["leave"])
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(model, pruning, 1, example_input=given).start()
    small: Any = sparsify.shrink(model, given).model
    assert small.rnn.hidden_size == 3
    other = torch.randn(3, 9, 5).double(), torch.tensor([9, 2, 5])
    torch.testing.assert_close(small.eval()(*other), model.eval()(*other), rtol=1e-10, atol=1e-12)


class Cells(nn.Module):
    """Cells in a loop over time; `state` says what they start from."""

    def __init__(self, cls: Any, state: str) -> None:
        super().__init__()
        self.width, self.state = 6, state
        self.cell, self.leave = cls(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        states: Any = None
        if self.state:
            states = torch.zeros(len(x), self.width, dtype=x.dtype)
            states = (states, torch.zeros_like(states)) if self.state == "two" else states
        for step in x.unbind(1):
            states = self.cell(step, states)
        y: Tensor = self.leave(states[0] if isinstance(states, tuple) else states)
        return y


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("cls", "state"), [(nn.LSTMCell, ""), (nn.LSTMCell, "two"), (nn.GRUCell, ""), (nn.GRUCell, "one"), (nn.RNNCell, "")]
)
def test_units_of_cells_go_as_those_of_layers_do(cls: Any, state: str) -> None:
    torch.manual_seed(0)
    model, x = Cells(cls, state).double(), torch.randn(2, 4, 5).double()
    sparsify.convert(model, ignore=["leave"])
    pruning = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}
    sparsify.Pruner(model, pruning, 1, example_input=x).start()
    report = sparsify.shrink(model, x)
    small: Any = report.model
    assert report.kept == () and small.cell.hidden_size == 3
    assert report.multiply_adds[1] == 2 * 4 * sum(w.numel() for w in small.cell.parameters() if w.dim() > 1) + 2 * 3 * 3
    other = torch.randn(3, 7, 5).double()
    torch.testing.assert_close(small.eval()(other), model.eval()(other), rtol=1e-10, atol=1e-12)


def test_units_are_found_whatever_the_default_dtype() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = analyse(Recurrent(nn.LSTM), torch.randn(2, 5, 5))
    finally:
        torch.set_default_dtype(before)
    assert (found.groups, found.barriers) == (13, ())


def test_units_stay_where_a_rule_of_liveness_fails() -> None:
    def flow(live: Any, op: Any) -> None:
        raise ValueError("unknown")

    rules = {"lstm": Rule(RULES["lstm"].couple, flow)}
    found = analyse(Recurrent(nn.LSTM, proj_size=4), torch.randn(2, 5, 5), rules=rules)
    assert found.groups == 7  # those of the layer before
    assert found.barriers[0] == "rnn: operation 'lstm' does not fit its rule (ValueError: unknown)"


def test_units_before_a_norm_stay_and_the_projection_or_the_norm_says_so() -> None:
    found = analyse(Recurrent(nn.LSTM, norm=True), torch.randn(2, 5, 5))
    assert found.groups == 7  # those of the layer before
    assert [line for line in found.barriers if line.startswith("norm: operation 'native_layer_norm'")]


def test_a_unit_that_only_others_read_lives_as_long_as_these() -> None:
    """Unit 0 makes unit 1 by the recurrent weight, unit 1 alone is read; units 2 and 3 read one another only."""
    rnn, leave = nn.RNN(2, 4, batch_first=True, bias=False), nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        for weight in (rnn.weight_ih_l0, rnn.weight_hh_l0, leave.weight):
            weight.zero_()
        rnn.weight_ih_l0[[0, 2]] = 1.0
        rnn.weight_hh_l0[1, 0] = rnn.weight_hh_l0[3, 2] = rnn.weight_hh_l0[2, 3] = 1.0
        leave.weight[0, 1] = 1.0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.leave = rnn, leave

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.leave(self.rnn(x)[0])
            return y

    model, x = Model(), torch.randn(2, 3, 2)
    report = sparsify.shrink(model, x, dead="zeros")
    small: Any = report.model
    assert small.rnn.hidden_size == 2
    torch.testing.assert_close(small(x), model(x))


def test_multiply_adds_of_recurrent_layers_are_those_of_their_products() -> None:
    found = analyse(nn.Sequential(nn.LSTM(5, 6, num_layers=2, bidirectional=True)), torch.randn(3, 2, 5))
    assert sum(op.multiply_adds for op in found.operations) == 3 * 2 * 2 * 24 * (5 + 6 + 12 + 6)
