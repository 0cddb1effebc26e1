"""The recorded pass: what is seen, what is a constant, what was written to, and that the model stays as it was."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparsify.calls import tensors_in
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.recording.ops import STALE, Recording
from sparsify.surgery.recording.recorder import record


class Calls(nn.Module):
    """A model whose forward is a function of it and the input."""

    def __init__(self, function: Callable[["Calls", Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(4, 4, bias=False)
        self.last = nn.Linear(4, 2, bias=False)
        self.register_buffer("held", torch.ones(4))

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def names(recording: Recording) -> list[str]:
    return [op.name for op in recording.ops]


def test_operations_come_in_order_with_values_for_tensors() -> None:
    model = Calls(lambda m, x: m.last(m.first(x).relu()) + 1)
    recording = record(model, torch.randn(3, 4))
    assert names(recording) == ["t", "mm", "relu", "t", "mm", "add"]
    transposed, product = recording.ops[:2]
    assert transposed.args == (recording.state["first.weight"],)
    assert product.args[1] is transposed.results[0]
    assert product.results[0].shape == (3, 4) and product.results[0].constant is None
    assert transposed.results[0].constant is not None, "made of the model's tensors alone"
    assert (product.module, recording.ops[2].module) == ("first", "")
    assert recording.outputs == recording.ops[-1].results


def test_what_depends_on_no_input_and_no_tensor_of_the_model_is_not_recorded() -> None:
    recording = record(Calls(lambda m, x: x * torch.arange(4).float().exp()), torch.randn(3, 4))
    assert names(recording) == ["mul"]
    constant = recording.ops[0].args[1].constant
    assert torch.equal(constant, torch.arange(4).float().exp())


def test_a_tensor_with_several_names_is_one_value() -> None:
    model = Calls(lambda m, x: m.first(x))
    model.tied = nn.Linear(4, 4, bias=False)
    model.tied.weight = model.first.weight
    state = record(model, torch.randn(1, 4)).state
    assert state["first.weight"] is state["tied.weight"]
    assert state["first.weight"].names == ("first.weight", "tied.weight")


def through_a_view(m: Calls, x: Tensor) -> Tensor:
    y = m.first(x)
    y[:, :2] = 0
    return m.last(y)


def two_writes_into_new_memory(m: Calls, x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 4)
    y[:, :2] = m.first(x)[:, :2]
    y[:, 2:] = m.first(x)[:, 2:]
    return m.last(y)


def a_sibling_view(m: Calls, x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 4)
    one, other = y.view(-1), y.view(-1)
    one.copy_(m.first(x).view(-1))
    return m.last(other.view(len(x), 4))


def data_of_a_tensor(m: Calls, x: Tensor) -> Tensor:
    y = m.first(x)
    y.data.mul_(2)
    return m.last(y)


def a_detached_one(m: Calls, x: Tensor) -> Tensor:
    y = m.first(x)
    y.detach().add_(1)
    return m.last(y)


@pytest.mark.parametrize(
    "function", [through_a_view, two_writes_into_new_memory, a_sibling_view, data_of_a_tensor, a_detached_one]
)
def test_memory_written_through_another_tensor_is_a_barrier(function: Callable[[Calls, Tensor], Tensor]) -> None:
    model = Calls(function)
    with torch.no_grad():
        model.first.weight[1] = 0
    recording = record(model, torch.randn(3, 4))
    assert STALE in names(recording)
    stale = next(op for op in reversed(recording.ops) if op.name == STALE)
    writers = [
        op for op in recording.ops[: recording.ops.index(stale)] if op.name in ("fill_", "copy_", "mul_", "add_")
    ]
    assert writers and all(set(op.results) & set(stale.args) for op in writers)
    found = analyse(model, torch.randn(3, 4))
    assert not found.dead.any()
    assert any("memory written through another tensor" in sentence for sentence in found.barriers)


def test_every_write_is_read_by_who_reads_the_memory() -> None:
    recording = record(Calls(two_writes_into_new_memory), torch.randn(3, 4))
    copies = [op.results[0] for op in recording.ops if op.name == "copy_"]
    last = [op for op in recording.ops if op.name == STALE][-1]
    assert len(copies) == 2 and set(copies) <= set(last.args)


def test_a_constant_is_what_it_was_when_it_was_read() -> None:
    def overwritten(m: Calls, x: Tensor) -> Tensor:
        scale = torch.ones(4)
        y = m.first(x) * scale
        scale.zero_()
        return m.last(y)

    model = Calls(overwritten)
    recording = record(model, torch.randn(3, 4))
    product = next(op for op in recording.ops if op.name == "mul")
    assert torch.equal(product.args[1].constant, torch.ones(4))


def test_an_operation_that_writes_the_whole_of_its_own_tensor_is_no_barrier() -> None:
    recording = record(Calls(lambda m, x: m.last(m.first(x).relu_().mul_(2))), torch.randn(3, 4))
    assert STALE not in names(recording)


@pytest.mark.parametrize("how", ["numpy", "tolist"])
def test_what_leaves_for_another_library_is_read_and_whatever_comes_back_depends_on_it(how: str) -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        y = m.first(x)
        back = torch.from_numpy(y.numpy() * 1) if how == "numpy" else torch.tensor(y.tolist())
        return m.last(back)

    recording = record(Calls(forward), torch.randn(3, 4))
    left = next(op for op in recording.ops if op.name == how)
    first = next(op for op in recording.ops if op.name == "mm").results[0]
    assert len(left.args) == 1 and left.results == ()
    product = [op for op in recording.ops if op.name == "mm"][-1]
    assert product.args[0] is not first and product.args[0].constant is None
    assert not analyse(Calls(forward), torch.randn(3, 4)).dead.any()


def test_a_control_flow_that_reads_values_reads_them() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        gate = m.first(x)
        return m.last(x) if float(gate[0, 2]) > 0 else -m.last(x)

    model = Calls(forward)
    found = analyse(model, torch.ones(1, 4))
    assert found.groups == 0
    assert found.barriers[0].startswith("the model: its forward asks what activations hold")


def test_an_operation_with_out_is_a_barrier() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.last(torch.mul(y, y, out=torch.empty(0)))

    model = Calls(forward)
    with torch.no_grad():
        model.first.weight[1] = 0
    found = analyse(model, torch.randn(3, 4))
    assert any("'mul(out=)' has no rule" in sentence for sentence in found.barriers)
    assert not found.dead.any()


def test_attention_without_a_scale_is_noted() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        q = m.first(x)[None, None]
        return torch.nn.functional.scaled_dot_product_attention(query=q, key=q, value=q)

    assert "scaled_by_size" in names(record(Calls(forward), torch.randn(3, 4)))


def test_tensors_are_found_in_whatever_a_model_returns() -> None:
    class Box:
        def __init__(self) -> None:
            self.inner = {"a": [torch.zeros(1)], "b": 3}
            self.outer = torch.zeros(2)

    assert [tuple(t.shape) for t in tensors_in((torch.zeros(3), Box()))] == [(3,), (1,), (2,)]


def test_the_model_and_the_input_stay_as_they_were() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        m.held.add_(1)
        m.__dict__["calls"] = 1
        x.mul_(2)
        return m.last(m.first(x) * m.held)

    model = Calls(forward).train()
    model.last.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(3, 4)
    given = x.clone()
    record(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(x, given)
    assert not hasattr(model, "calls")
    assert [m.training for m in (model, model.first, model.last)] == [True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_stays_as_it_was_when_its_forward_fails() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        raise ValueError("no")

    model = Calls(forward).train()
    with pytest.raises(ValueError, match="no"):
        record(model, torch.randn(3, 4))
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Caching(nn.Module):
    """Keeps a tensor that it made of a parameter until its mode is set, as some attention does with its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(4))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Caching":
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if "shift" not in self.cache:
            self.cache["shift"] = self.shift * 2
        return x + self.cache["shift"]


def test_what_a_model_in_eval_mode_has_in_a_cache_is_made_anew() -> None:
    model = Caching().eval()
    with torch.no_grad():
        model(torch.ones(4))
    cached = model.cache["shift"]
    assert names(record(model, torch.ones(4))) == ["mul", "add"]
    assert model.cache == {"shift": cached}


class Modal(nn.Module):
    """Asks for the mode by itself, around layers that do not; some write in place, one returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.same, self.flat, self.last = nn.Identity(), nn.Flatten(), nn.Linear(16, 2)
        self.only_in_training = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(self.same(self.body(x)).relu_())
        return self.only_in_training(x) if self.training else self.last(x)  # type: ignore[no-any-return]


def test_a_second_pass_holds_only_what_it_does_differently() -> None:
    recording = record(Modal().eval(), torch.randn(1, 3, 2, 2))
    first, second = names(recording)[: recording.eval_count], names(recording)[recording.eval_count :]
    assert first == ["convolution", "native_batch_norm", "relu_", "convolution", "relu_", "view", "t", "addmm"]
    assert second == ["t", "addmm"] and len(recording.outputs) == 2
    entered = [next(op for op in reversed(recording.ops[:n]) if op.name == "addmm").args[1] for n in (8, 10)]
    assert entered[0] is entered[1]


def test_a_second_pass_is_the_same_with_activations() -> None:
    results: list[tuple[Tensor, ...]] = []
    model, x = Modal().eval(), torch.randn(1, 3, 2, 2)
    assert names(record(model, x, results)) == names(record(model, x)) and len(results) == len(record(model, x).ops)
