"""Heads that only run in training: their channels are tied to those of the rest, and cut with them."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.relative_error import relative_error
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.recording.recorder import record
from sparsify.surgery.shrink.shrink import shrink
from tests.surgery.halves import zero_half

IMAGE = torch.randn(2, 3, 8, 8)


class Head(nn.Module):
    """One that drops at random in training, by itself and by a layer."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 6, kernel, bias=False), nn.BatchNorm2d(6)
        self.drop, self.classes = nn.Dropout(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.classes(self.drop(x))  # type: ignore[no-any-return]


class Auxiliary(nn.Module):
    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.stem, self.norm, self.body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 7, 3)
        self.drop, self.last, self.auxiliary = nn.Dropout(), nn.Linear(7, 5), Head(kernel)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        y = self.last(self.drop(F.relu(self.body(x)).mean((2, 3))))
        return [y, self.auxiliary(x)] if self.training else [y]


def test_what_only_runs_in_training_is_tied_to_the_rest() -> None:
    model = Auxiliary().eval()
    found = analyse(model, IMAGE)
    stem = found.labels["stem.weight"][0]
    assert stem.unique().numel() == 8 and not found.barriers and not found.dead.any()
    assert torch.equal(found.labels["auxiliary.conv.weight"][1], stem)
    assert torch.equal(found.labels["auxiliary.classes.weight"][1], found.labels["auxiliary.conv.weight"][0])
    assert 0 not in found.labels.get("auxiliary.classes.weight", {}) and "spare.weight" not in found.labels
    assert "auxiliary.conv" not in {operation.name for operation in found.operations}
    pixels = 3 * 9 * 8 * 36 + 8 * 9 * 7 * 16 + 7 * 5
    assert sum(operation.multiply_adds for operation in found.operations) == 2 * pixels


def test_a_shrunk_model_trains_as_the_whole_one_does() -> None:
    torch.manual_seed(0)
    model = Auxiliary().eval()
    gone = zero_half(model, analyse(model, IMAGE))
    report = shrink(model, IMAGE, dead="zeros")
    assert report.removed == gone and report.model.auxiliary.conv.weight.shape != model.auxiliary.conv.weight.shape
    whole, small = (copy.deepcopy(m).double().train() for m in (model, report.model))
    for module in (*whole.modules(), *small.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        outputs = [network(IMAGE.double()) for network in (small, whole)]
    assert len(outputs[0]) == 2 and relative_error(outputs[0], outputs[1]) < 1e-10


def test_the_model_and_the_modes_of_its_modules_are_left_as_they_were() -> None:
    model = Auxiliary().train()
    model.norm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    recording = record(model, IMAGE)
    assert 0 < recording.eval_count < len(recording.ops)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_head_that_does_not_run_is_said_to_stay_as_it_is() -> None:
    model = Auxiliary(kernel=9).eval()
    found = analyse(model, IMAGE)
    why = "it runs neither in eval mode nor, with this input, in train mode (RuntimeError), and is not cut"
    assert found.barriers == (f"auxiliary.conv: {why}",)
    assert "auxiliary.conv.weight" not in found.labels and "stem.weight" in found.labels


def test_layers_that_never_run_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plain = record(model, torch.ones(1, 3))
    model[0].spare = nn.Linear(3, 3)
    recording = record(model, torch.ones(1, 3))
    assert (
        len(recording.ops) == len(plain.ops) == recording.eval_count
        and len(recording.outputs) == 1
        and not recording.problems
    )


class Dropping(nn.Module):
    """A forward that drops at random in training by a function, between two convolutions."""

    def __init__(self, drop: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), drop

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.drop(self.a(x).relu(), self.training))
        return y


DROPS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "entries": lambda x, training: F.dropout(x, 0.3, training),
    "channels": lambda x, training: F.dropout2d(x, 0.3, training),
    "channels of sequences": lambda x, training: F.dropout1d(x.flatten(2), 0.3, training).view(x.shape),
    "all but certainly": lambda x, training: F.dropout2d(x, 0.999, training),
    "in eval mode too": lambda x, training: F.dropout2d(x, 0.3, True),
}


@pytest.mark.parametrize("name", DROPS)
def test_dropout_by_a_function_couples_entry_by_entry(name: str) -> None:
    torch.manual_seed(0)
    model = Dropping(DROPS[name]).eval()
    found = analyse(model, IMAGE)
    assert found.groups == 8 and not found.barriers and not found.dead.any()
    gone = zero_half(model, found)
    report = shrink(model, IMAGE, dead="zeros", verify=name != "in eval mode too")  # its outputs are never the same
    assert report.removed == gone > 0 and report.model.b.weight.shape[1] == 8 - gone


def test_what_only_a_dropped_channel_reaches_is_alive() -> None:
    class Auxiliary2d(Dropping):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(self.drop(y, True)) if self.training else y[:, :3]  # type: ignore[no-any-return]

    model = Auxiliary2d(lambda x, training: F.dropout2d(x, 0.999, training)).eval()
    assert not analyse(model, IMAGE).dead.any()
