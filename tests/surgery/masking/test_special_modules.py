import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sparsify import compile as compile_engine
from sparsify import convert, fold, get_masks, set_masks, verify

X = torch.randn(5, 3, 8)


def half_masks(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})


class Attention(nn.Module):
    def __init__(self, **options: bool | int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.attention(x, x, x)
        return output  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 8, "vdim": 8}, {"add_bias_kv": True}])
def test_attention(options: dict[str, bool | int]) -> None:
    model = Attention(**options)
    convert(model)
    report = verify(model, X)
    assert report.ok and len(report.live) == len(report.masked) >= 2, str(report)


def test_transformer_encoder_keeps_its_fused_path_and_the_fused_path_sees_the_masks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    convert(model)
    report = verify(model, X)
    assert report.ok and len(report.live) == 8, str(report)
    half_masks(model)
    with torch.no_grad():
        assert torch.equal(model(X), fold(model)(X))


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(make: type[nn.RNNBase]) -> None:
    model = make(8, 4, 2, bidirectional=True)
    report = convert(model)
    assert len(report.masked) == 8 and set(report.masked.values()) == {"substituted"}
    assert verify(model, X).ok
    half_masks(model)
    assert torch.equal(model(X)[0], fold(model)(X)[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_cells_and_projections() -> None:
    for model in (nn.LSTMCell(8, 4), nn.GRUCell(8, 4), nn.RNNCell(8, 4)):
        assert list(convert(model).masked) == ["weight_ih", "weight_hh"]
        assert verify(model, X[0]).ok
    projected = nn.LSTM(8, 6, proj_size=3)
    assert "weight_hr_l0" in convert(projected).masked
    assert verify(projected, X).ok


def test_threads_may_share_a_converted_model() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    convert(model)
    half_masks(model)
    with torch.no_grad():
        expected = model(X)
    wrong: list[int] = []

    def work() -> None:
        for _ in range(30):
            with torch.no_grad():
                if not torch.equal(model(X), expected):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_masks_of_torch_prune_are_taken_over() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    keys = list(model.state_dict())
    prune.random_unstructured(model[0], "weight", amount=5)
    mask, parameter = model[0].weight_mask.bool(), model[0].weight_orig
    expected = model(X[..., :4])
    report = convert(model)
    assert list(report.masked) == ["0.weight", "1.weight"]
    assert model[0].weight is parameter
    assert torch.equal(get_masks(model)["0.weight"], mask)
    assert [key for key in model.state_dict() if not key.endswith("_mask")] == keys
    assert torch.equal(model(X[..., :4]), expected)


def test_what_keeps_its_weights_in_a_form_of_its_own_is_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates some of what a user may still have
        old = nn.utils.weight_norm(nn.Linear(4, 4))
        quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    model = nn.ModuleDict(
        {
            "normed": old,
            "spectral": nn.utils.spectral_norm(nn.Linear(4, 4)),
            "parametrized": parametrizations.weight_norm(nn.Linear(4, 4)),
            "lazy": nn.LazyLinear(4),
            "quantized": quantized,
            "scripted": scripted,
            "embedding": nn.Embedding(3, 4),
            "plain": nn.Linear(4, 4),
        }
    )
    report = convert(model)
    assert list(report.masked) == [
        "normed.weight_v",
        "spectral.weight_orig",
        "parametrized.parametrizations.weight.original1",
        "plain.weight",
    ]
    reasons = {name.split(".")[0]: reason.split(":")[0] for name, reason in report.skipped.items()}
    assert reasons == {
        "normed": "only scales the weight computed from weight_v",
        "parametrized": "only scales the weight computed from original1",
        "lazy": "lazy",
        "quantized": "quantized",
        "scripted": "scripted",
        "embedding": "Embedding",
    }


class OverScripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.leave = torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 4)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.below(x), self.leave.weight) + F.linear(x, self.below.weight)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_forward_may_call_and_read_a_scripted_module() -> None:
    model, x = OverScripted(), torch.randn(3, 4)
    report = convert(model)
    assert [*report.masked] == ["leave.weight"] and report.skipped["below.weight"].startswith("scripted")
    set_masks(model, {"leave.weight": torch.rand(4, 4) < 0.5})
    torch.testing.assert_close(compile_engine(model, x, tune=False)(x), model(x).detach())


class Tied(nn.Module):
    def __init__(self, *, embedded: bool) -> None:
        super().__init__()
        self.first = nn.Embedding(6, 4) if embedded else nn.Linear(4, 6, bias=False)
        self.second = nn.Linear(4, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) if isinstance(self.first, nn.Embedding) else x) + self.first.weight.sum()


def test_a_weight_tied_to_an_embedding_stays_dense() -> None:
    report = convert(Tied(embedded=True))
    assert not report.masked
    assert report.skipped["second.weight"] == "shared with first.weight, which is used dense"
    assert report.skipped["first.weight"] == "used dense, and shared with second.weight"


def test_a_weight_tied_among_linear_layers_has_one_mask() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    convert(model)
    assert list(get_masks(model)) == ["0.weight"]
    half_masks(model)
    for changed in (model, copy.deepcopy(model), copy.deepcopy(model).double()):
        assert changed[0].weight is changed[1].weight
        assert torch.equal(changed[0].weight_mask, changed[1].weight_mask)
    assert verify(model, X[..., :4]).ok


def test_unusual_inputs_of_convolutions_still_work() -> None:
    model = nn.ConvTranspose2d(2, 3, 3, stride=2)
    dense = copy.deepcopy(model)
    convert(model)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(model(x, output_size=[10, 10]), dense(x, output_size=[10, 10]))
    unbatched = nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular")
    dense_conv = copy.deepcopy(unbatched)
    convert(unbatched)
    assert torch.equal(unbatched(x[0, :, 0]), dense_conv(x[0, :, 0]))


def test_convolutions_by_another_name_are_masked() -> None:
    from torchvision.ops import DeformConv2d

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = DeformConv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, x.new_full((len(x), 18, 6, 6), 0.25))  # type: ignore[no-any-return]

    model = Deformed()
    dense = copy.deepcopy(model)
    assert convert(model).masked == {"conv.weight": "substituted"}
    x = torch.randn(2, 3, 8, 8)
    assert verify(model, x).ok
    half_masks(model)
    with torch.no_grad():
        dense.conv.weight.mul_(get_masks(model)["conv.weight"])
    assert torch.equal(model(x), dense(x))


def test_an_attribute_in_a_masks_place_is_left_alone() -> None:
    model = nn.Linear(3, 3)
    model.register_buffer("weight_mask", torch.zeros(3, 3))
    assert convert(model).skipped == {"weight": "has an attribute weight_mask of its own"}


def test_a_module_that_something_makes_of_a_masked_class_is_dense() -> None:
    """As peft makes the adapters of a convolution: of its layer's class, by its constructor."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 4))
    convert(model)
    for layer, plain, shape in ((model[0], nn.Conv2d(3, 4, 3), (2, 3, 6, 6)), (model[1], nn.Linear(5, 2), (3, 5))):
        made = type(layer)(*((3, 4, 3) if layer is model[0] else (5, 2)))
        made.load_state_dict(plain.state_dict())
        x = torch.randn(shape)
        assert torch.equal(made(x), plain(x)) and not get_masks(made)
