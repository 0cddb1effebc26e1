import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, get_masks, set_masks, verify

X = torch.randn(4, 6)


class Leaking(nn.Module):
    """Uses its layer's weight a second time, out of a converted forward's sight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.hidden = [self.layer]

    def forward(self, x: Tensor) -> Tensor:
        name = "wei" + "ght"
        return self.layer(x) + F.linear(x, getattr(self.hidden[0], name))


def test_a_second_dense_use_is_found() -> None:
    model = Leaking()
    convert(model)
    report = verify(model, X)
    assert not report.ok
    assert report.dense == ["layer.weight"]
    assert any("layer.weight: linear saw the dense weight" in problem for problem in report.problems)


def test_a_mask_without_effect_is_found() -> None:
    model = nn.Sequential(nn.Linear(6, 6))
    convert(model)
    model[0].__class__ = nn.Linear  # type: ignore[assignment]
    report = verify(model, X)
    assert report.dead == ["0.weight"] and not report.ok
    assert "0.weight: its mask has no effect" in str(report)


class Normalising(nn.Linear):
    """Normalises its weight under control flow on values, so that its mask can only sit on the stored weight."""

    def forward(self, input: Tensor) -> Tensor:
        if input.sum() > 1e9:
            return input
        return F.linear(input, self.weight - self.weight.mean(), self.bias)


def test_zeros_lost_after_masking_are_found() -> None:
    model = Normalising(6, 6)
    report = convert(model)
    assert report.masked == {"weight": "substituted"} and report.notes
    found = verify(model, X)
    assert found.leaks == ["weight: linear saw a weight whose zeros were lost after masking"]


def test_a_fused_kernel_that_sees_dense_weights_is_found() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    convert(model)
    model.__class__ = nn.TransformerEncoderLayer
    report = verify(model, torch.randn(2, 3, 8))
    assert "linear1.weight: _transformer_encoder_layer_fwd saw the dense weight" in report.problems


class SpectrallyNormed(nn.Linear):
    """Divides its weight by an estimate of its largest singular value (Miyato et al. 2018)."""

    def forward(self, input: Tensor) -> Tensor:
        left = F.normalize(self.weight.sum(1), dim=0)
        return F.linear(input, self.weight / (left @ (self.weight @ self.weight.sum(0))), self.bias)


def test_what_computes_a_weight_may_see_it_dense() -> None:
    model = SpectrallyNormed(6, 6)
    assert convert(model).masked == {"weight": "computed"}
    assert verify(model, X).ok


def test_an_output_that_refers_to_itself() -> None:
    class Output:
        def __init__(self, value: Tensor) -> None:
            self.value, self.itself = value, self

    class Model(nn.Linear):
        def forward(self, input: Tensor) -> Output:  # type: ignore[override]
            return Output(super().forward(input))

    model = Model(6, 6)
    convert(model)
    report = verify(model, X)
    assert report.ok and report.identical_train and report.live == ["weight"]


class Picky(nn.Module):
    """Asks for the exact class of its layer, which a conversion changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (1.0 if type(self.layer) is nn.Linear else 1.5)


def test_other_bits_are_found() -> None:
    model = Picky()
    convert(model)
    report = verify(model, X)
    assert report.identical_eval is False and report.identical_train is False
    assert "the outputs in eval mode differ from the model without masks" in report.problems


def test_weights_that_the_forward_does_not_use_are_no_problem_but_listed() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)  # type: ignore[no-any-return]

    model = Unused()
    convert(model)
    report = verify(model, X)
    assert report.ok and report.unused == ["spare.weight"] and report.live == ["used.weight"]


def test_verify_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout())
    convert(model)
    set_masks(model, {"0.weight": torch.rand(6, 6) < 0.5})
    model[1].eval()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    assert verify(model, X).ok
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not get_masks(model)["0.weight"].all()


def test_a_train_mode_that_fails_is_noted() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    convert(model)
    report = verify(model, X[:1])
    assert report.ok and report.identical_train is None
    assert "train mode was not checked: ValueError" in report.notes[0]


def test_a_dense_use_through_another_library_is_found() -> None:
    model = Leaking()
    convert(model)
    weight = model.layer.weight
    model.forward = lambda x: model.layer(x) + F.linear(x, torch.from_numpy(weight.detach().numpy()))  # type: ignore[method-assign]
    report = verify(model, X)
    assert "layer.weight: linear saw the dense weight" in report.problems


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_outputs_is_verified() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.some, self.none = nn.Linear(8, 4), nn.Linear(8, 0)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.some(x), self.none(x)], 1)

    model = Empty()
    assert set(convert(model).masked) == {"some.weight", "none.weight"}
    report = verify(model, torch.randn(2, 8))
    assert report.ok and report.live == ["some.weight", "none.weight"]
