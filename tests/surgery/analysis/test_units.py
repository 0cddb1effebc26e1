"""Units of grouped attention, rotary embeddings, states, grouped convolutions: pruned, gone, nothing else changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsify
from sparsify.surgery.channels.analyse import analyse

PRUNING = {"granularity": "unit", "scope": "layer", "sparsity": 0.5, "schedule": "one_shot"}


def pruned_and_shrunk(model: nn.Module, x: Tensor, other: Tensor) -> Any:
    """Return the model after half of its units went, which has to be right at another batch and another size."""
    model = model.double().eval()
    sparsify.convert(model, ignore=["o" if isinstance(model, Attention) else "last"])
    sparsify.Pruner(model, PRUNING, 1, example_input=x.double()).start()
    report = sparsify.shrink(model, x.double())
    assert report.kept == () and report.removed > 0
    torch.testing.assert_close(report.model(other.double()), model(other.double()), rtol=1e-10, atol=1e-12)
    return report.model


class Attention(nn.Module):
    """Attention of `heads` queries over `shared` keys and values of size 4, turned by tables that `turn` says."""

    def __init__(self, function: Callable[..., Tensor], heads: int, shared: int, turn: str = "") -> None:
        super().__init__()
        self.q, self.o = nn.Linear(6, 4 * heads), nn.Linear(4 * heads, 6)
        self.k, self.v = nn.Linear(6, 4 * shared), nn.Linear(6, 4 * shared)
        self.function, self.turn = function, turn
        angles = torch.arange(16.0)[:, None] * torch.tensor([1.0, 0.3])
        if turn == "complex":
            self.register_buffer("table", torch.polar(torch.ones_like(angles), angles).to(torch.complex128))
        else:
            self.register_buffer("table", torch.cat([angles, angles], -1))

    def turned(self, t: Tensor) -> Tensor:
        table = self.table[: t.shape[2]]  # type: ignore[index]
        if self.turn == "halves":
            a, b = t[..., :2], t[..., 2:]
            return t * table.cos() + torch.cat([-b, a], -1) * table.sin()
        if self.turn == "gathered":
            places = torch.arange(t.shape[2], device=t.device).expand(len(t), -1)
            angle = self.table[places][:, None]  # type: ignore[index]
            a, b = t.chunk(2, -1)
            return t * angle.cos() + torch.cat([-b, a], -1) * angle.sin()
        if self.turn == "interleaved":
            pairs = t.unflatten(-1, (2, 2))
            other = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
            return t * table.cos() + other * table.sin()
        if self.turn == "complex":
            pairs = torch.view_as_complex(t.unflatten(-1, (2, 2)).contiguous())
            return torch.view_as_real(pairs * table.to(pairs.dtype)).flatten(-2)
        return t

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = self.function(self.turned(q), self.turned(k), v)
        found: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return found


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, tokens, size = k.shape
    times = q.shape[1] // heads
    k, v = (t[:, :, None].expand(batch, heads, times, tokens, size).reshape(batch, -1, tokens, size) for t in (k, v))
    return ((q @ k.transpose(2, 3)) / 2).softmax(-1) @ v


@pytest.mark.parametrize("function", [fused, causal, masked, repeated, expanded])
@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (8, 2), (4, 4), (4, 1)])
def test_heads_of_keys_go_with_the_queries_that_read_them(
    function: Callable[..., Tensor], heads: int, shared: int
) -> None:
    model, x = Attention(function, heads, shared), torch.randn(2, 5, 6)
    found = analyse(model, x)
    units = shared if shared > 1 else heads  # of one head of keys, the heads of queries are units
    assert found.groups == units
    if shared > 1:
        small = pruned_and_shrunk(model, x, torch.randn(3, 7, 6))
        assert (small.q.out_features, small.k.out_features) == (2 * heads, 2 * shared)


def test_heads_of_queries_go_by_what_reads_them() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.last = Attention(fused, 4, 1), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.norm(self.a(x)))
            return y

    small = pruned_and_shrunk(Model(), torch.randn(2, 5, 6), torch.randn(3, 7, 6))
    assert (small.a.q.out_features, small.a.k.out_features, small.a.v.out_features) == (8, 4, 4)


@pytest.mark.parametrize("turn", ["halves", "gathered", "interleaved", "complex"])
@pytest.mark.parametrize(("heads", "shared"), [(2, 2), (8, 8), (4, 2)])
def test_heads_are_units_although_a_buffer_turns_them(turn: str, heads: int, shared: int) -> None:
    model = Attention(fused, heads, shared, turn)
    found = analyse(model.double(), torch.randn(2, 5, 6).double())
    assert (found.groups, found.barriers) == (shared, ())
    small = pruned_and_shrunk(model, torch.randn(2, 5, 6), torch.randn(3, 7, 6))
    assert small.q.out_features == 2 * heads and small.table.shape[0] == 16


def cell(m: Any, x: Tensor, state: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        state = (m.a(x[:, t]) + m.b(state)).tanh()
    y: Tensor = m.last(state)
    return y


class Cell(nn.Module):
    def __init__(self, state: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.last, self.width = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2), 8
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return cell(self, x, self.state(self, x))


STATES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "zeros": lambda m, x: torch.zeros(len(x), m.width, dtype=x.dtype),
    "new zeros": lambda m, x: x.new_zeros((len(x), m.width)),
    "expanded": lambda m, x: torch.zeros(1, m.width, dtype=x.dtype).expand(len(x), -1),
    "from the weight": lambda m, x: x.new_zeros(len(x), m.a.out_features),
    "full": lambda m, x: torch.full((len(x), m.width), 0.0, dtype=x.dtype),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_zeros_is_as_wide_as_its_cell(name: str) -> None:
    small = pruned_and_shrunk(Cell(STATES[name]), torch.randn(2, 4, 6), torch.randn(3, 7, 6))
    assert small.b.weight.shape == (4, 4)


class ConvolutionalCell(nn.Module):
    """The cell of a ConvLSTM: one convolution of the input and the state, side by side, makes all gates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gates = nn.Conv2d(3 + width, 4 * width, 3, padding=1)

    def first_state(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.width, *x.shape[-2:])

    def forward(self, x: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        enter, forget, new, leave = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * memory.tanh(), memory


class Frames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = ConvolutionalCell(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = (self.cell.first_state(x), self.cell.first_state(x))
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], *state)
        y: Tensor = self.last(state[0])
        return y


def test_a_state_of_zeros_beside_the_input_is_as_wide_as_its_cell() -> None:
    small = pruned_and_shrunk(Frames(), torch.randn(2, 3, 3, 4, 4), torch.randn(1, 2, 3, 5, 5))
    assert small.cell.gates.weight.shape[:2] == (16, 7) and small.cell.width == 4


def test_a_state_of_a_fixed_width_stays_and_the_module_is_named() -> None:
    torch.manual_seed(0)
    model, x = Cell(lambda m, x: torch.zeros(len(x), 8)), torch.randn(2, 4, 6)
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight[:3], layer.bias[:3] = 0, 0
    report = sparsify.shrink(model, x, dead="zeros")
    assert report.removed == 0
    assert report.kept[0].startswith(("the model: 3 dead groups stay", "b: 3 dead groups stay"))


def test_a_state_with_different_entries_keeps_the_width_and_is_named() -> None:
    found = analyse(Cell(lambda m, x: torch.arange(m.width).expand(len(x), -1) / 8), torch.randn(2, 4, 6))
    assert found.groups == 0
    assert "operation 'mm'" in found.barriers[0] or "operation 'addmm'" in found.barriers[0]


CONVOLUTIONS = {
    "1d": (nn.ConvTranspose1d, nn.Conv1d, (5,)),
    "2d": (nn.ConvTranspose2d, nn.Conv2d, (5, 4)),
    "3d": (nn.ConvTranspose3d, nn.Conv3d, (3, 4, 2)),
}


@pytest.mark.parametrize("dims", CONVOLUTIONS)
@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(2, 8, 16), (4, 8, 16), (8, 8, 16), (8, 8, 8), (4, 8, 4)])
def test_grouped_transposed_convolutions_lose_channels(dims: str, groups: int, inputs: int, outputs: int) -> None:
    transposed, conv, size = CONVOLUTIONS[dims]
    up = transposed(inputs, outputs, 2, 2, groups=groups)
    model = nn.Sequential(conv(3, inputs, 1), nn.ReLU(), up, nn.ReLU())
    model.add_module("last", conv(outputs, 4, 1))
    other = torch.randn(1, 3, *(side + 1 for side in size))
    small = pruned_and_shrunk(model, torch.randn(2, 3, *size), other)
    assert small[2].in_channels == inputs // 2 and small[2].out_channels == outputs // 2
    assert small[2].groups == (groups // 2 if groups >= inputs // groups else groups)


def test_a_grouped_convolution_of_what_stays_loses_positions_of_its_groups() -> None:
    model = nn.Sequential(nn.Conv2d(8, 32, 3, groups=8), nn.ReLU())
    model.add_module("last", nn.Conv2d(32, 4, 1))
    small = pruned_and_shrunk(model, torch.randn(2, 8, 6, 6), torch.randn(1, 8, 7, 7))
    assert (small[0].in_channels, small[0].out_channels, small[0].groups) == (8, 16, 8)


EMPTY: dict[str, Callable[[Tensor], Tensor]] = {
    "cat": lambda k: torch.cat([k, k]),
    "hstack": lambda k: torch.hstack([k, k]),
    "stack": lambda k: torch.stack([k, k]),
    "cat of matrices": lambda k: torch.cat([k[:, None], k[:, None]], 1),
    "cat with something": lambda k: torch.cat([k, k.new_ones(2)]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_parts_are_joined_like_others(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.last(self.a(x))
            return y, EMPTY[name](y[y > 1e9])

    assert analyse(Model(), torch.randn(1, 3, 4, 4)).groups == 8


NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda z: z.new_zeros(len(z), z.shape[1], 0),
    "a product of zeros": lambda z: (torch.zeros(len(z), z.shape[1], 0) * 2).relu(),
    "a slice": lambda z: z[..., :0],
    "a reshape": lambda z: z[..., :0].reshape(0, z.shape[1]).reshape(*z.shape[:2], 0),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_part_without_entries_hides_no_channels(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.last = nn.Conv1d(3, 8, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x).relu()
            none = NOTHING[name](z)
            return self.last(torch.cat([none, z], 2).mT) + self.last(none.mT.flatten(0, 1).to(z)).sum()

    small = pruned_and_shrunk(Model(), torch.randn(2, 3, 5), torch.randn(3, 3, 7))
    assert small.a.out_channels == 4


def test_a_shuffle_of_channels_ties_the_positions_of_its_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), nn.ChannelShuffle(3), nn.Conv2d(12, 8, 3, groups=2))
    model.add_module("last", nn.Conv2d(8, 4, 1))
    assert analyse(model[:3].append(nn.Conv2d(12, 2, 1)), torch.randn(2, 3, 6, 6)).groups == 4
    found = analyse(model, torch.randn(2, 3, 6, 6))
    assert found.labels["0.weight"][0].reshape(3, 4).unique(dim=0).shape == (1, 4)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ChannelShuffle(2), nn.ReLU())
    model.add_module("last", nn.Conv2d(8, 4, 1))
    small = pruned_and_shrunk(model, torch.randn(2, 3, 6, 6), torch.randn(1, 3, 7, 7))
    assert small[0].out_channels == 4


def test_norms_without_parameters_say_why_channels_stay() -> None:
    norm = nn.BatchNorm2d(8, affine=False)
    norm.running_mean = torch.linspace(-1, -0.1, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    found = analyse(model.eval(), torch.randn(1, 3, 9, 9))
    assert found.groups == 0
    assert found.barriers == ("1: operation 'native_batch_norm' makes other values of zeros: 0.weight stay",)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(4, 8, affine=False), nn.InstanceNorm2d(8), nn.BatchNorm2d(8, affine=False)]
)
def test_norms_without_parameters_that_keep_zeros_pass_channels(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())
    model.add_module("last", nn.Conv2d(8, 4, 3, padding=1))
    small = pruned_and_shrunk(model, torch.randn(2, 3, 9, 9), torch.randn(1, 3, 8, 8))
    assert small[0].out_channels == 4


def test_what_a_buffer_remembers_is_as_wide_as_the_layer_that_is_copied_to_it() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.width = nn.Linear(6, 8), nn.Linear(8, 2), 8
            self.register_buffer("mean", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            self.mean.copy_(x.mean(0))
            held = torch.zeros(len(x), self.width, dtype=x.dtype).copy_(x)
            y: Tensor = self.last(held + self.mean)
            return y

    small = pruned_and_shrunk(Remembering(), torch.randn(4, 6), torch.randn(3, 6))
    assert small.mean.shape == (4,) and small.width == 4
