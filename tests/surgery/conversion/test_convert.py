import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from sparsify import SparsifyError, convert, get_masks, set_masks, verify
from sparsify.surgery.mask_state.masks import effective_weight, is_computed, masked_weights
from sparsify.surgery.masking.substituted_call import DYNAMO_FOLLOWS


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight, as in Qiao et al. 2019; a gain rescales it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.7))

    def standard(self) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return weight / weight.std((1, 2, 3), keepdim=True) * self.gain

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standard(), self.bias, self.stride, self.padding)


class Borrowing(nn.Module):
    """Reads a child's weight instead of calling the child, with an optional argument and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 6)
        self.proj = nn.Linear(6, 4)
        self.table = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor, scale: Tensor | None = None, doubled: bool = False) -> Tensor:
        x = x + self.table
        if scale is not None:
            x = x * scale
        if doubled:
            x = x * 2
        y = F.linear(x, weight=self.qkv.weight, bias=self.qkv.bias)
        return self.proj(F.dropout(y, 0.5, self.training))


class Branching(nn.Module):
    """A raw weight under control flow on values, which no tracing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) if x.sum() > 0 else x


class BranchingLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if input.sum() > 0 else super().forward(-input)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Standardised(4, 6, 3),
        nn.ConvTranspose2d(6, 2, 2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(2 * 7 * 7, 5),
    )


X = torch.randn(4, 3, 8, 8)


def test_every_weight_gets_a_mask_of_ones_beside_it() -> None:
    model = network()
    dense_keys, text = list(model.state_dict()), repr(model)
    parameters = dict(model.named_parameters())
    report = convert(model)
    assert report.model is model
    assert report.masked == {"0.weight": "direct", "3.weight": "computed", "4.weight": "direct", "7.weight": "direct"}
    assert report.skipped == {"3.gain": "part of the weight computed with weight"}
    assert repr(model) == text
    assert isinstance(model[3], Standardised) and isinstance(model[0], nn.Conv2d)
    assert [key for key in model.state_dict() if not key.endswith("_mask")] == dense_keys
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    for name, mask in get_masks(model).items():
        assert mask.dtype == torch.bool and mask.all() and mask.shape == parameters[name].shape
        assert f"{name}_mask" in model.state_dict()


def test_a_conversion_changes_no_bit_in_eval_or_train_mode() -> None:
    model = network()
    convert(model)
    report = verify(model, X)
    assert report.identical_eval and report.identical_train and report.ok, str(report)
    assert report.live == list(get_masks(model))


def test_removed_weights_have_no_effect_and_no_gradient() -> None:
    model = network()
    convert(model)
    masks = {name: torch.rand(mask.shape) < 0.5 for name, mask in get_masks(model).items()}
    set_masks(model, masks)
    before = model.eval()(X)
    before.sum().backward()
    for name, weight in masked_weights(model).items():
        if not is_computed(weight):
            assert weight.parameter.grad is not None
            assert not weight.parameter.grad[~masks[name]].any()
            weight.parameter.data[~masks[name]] = 1e6
    assert torch.equal(model(X), before)


def test_a_computed_weight_is_masked_after_it_is_computed() -> None:
    model = network()
    convert(model)
    weight = masked_weights(model)["3.weight"]
    assert torch.equal(effective_weight(weight), model[3].standard())
    mask = torch.zeros_like(weight.mask)
    mask[0, 0, 0, 0] = True
    set_masks(model, {"3.weight": mask})
    x = torch.randn(2, 4, 5, 5)
    expected = F.conv2d(x, torch.where(mask, model[3].standard(), 0), model[3].bias)
    assert torch.equal(model[3](x), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"scale": torch.tensor(3.0)}, {"doubled": True}])
def test_a_rewritten_forward_follows_its_arguments(arguments: dict[str, Any], training: bool) -> None:
    dense = Borrowing().train(training)
    model = copy.deepcopy(dense)
    report = convert(model)
    assert report.masked == {"qkv.weight": "substituted", "proj.weight": "direct"}
    assert report.skipped == {"table": "not the weight of a conv or linear operation"}
    x = torch.randn(2, 3, 4)
    torch.manual_seed(1)
    expected = dense(x, **arguments)
    torch.manual_seed(1)
    assert torch.equal(model(x, **arguments), expected)
    set_masks(model, {"qkv.weight": torch.zeros(6, 4)})
    torch.manual_seed(1)
    without = dense.requires_grad_(False)
    without.qkv.weight.zero_()
    expected = without(x, **arguments)
    torch.manual_seed(1)
    assert torch.equal(model(x, **arguments), expected)


def test_a_setting_changed_after_the_conversion_counts() -> None:
    model = Standardised(3, 2, 3)
    convert(model)
    assert model(X).shape[-1] == 6
    model.stride = (2, 2)
    assert model(X).shape[-1] == 3


def test_a_forward_that_cannot_be_traced_is_reported_and_its_weights_still_masked() -> None:
    model = nn.Sequential(BranchingLinear(4, 4), Branching())
    report = convert(model)
    assert list(report.masked) == ["0.weight", "1.weight"]
    for number in "01":
        (note,) = [note for note in report.notes if note.startswith(f"{number}: its forward cannot be traced")]
        assert "test_convert.py" in note
    assert verify(model, torch.randn(2, 4)).ok


def test_ignore_takes_names_modules_globs_first_and_last() -> None:
    def masked(*ignore: str) -> list[str]:
        return list(convert(network(), ignore=ignore).masked)

    assert masked("first", "last") == ["3.weight", "4.weight"]
    assert masked("3", "0.weight") == ["4.weight", "7.weight"]
    assert masked("[0-4]*") == ["7.weight"]
    assert convert(network(), ignore=["last"]).skipped["7.weight"] == "ignored by 'last'"


def test_an_ignore_pattern_that_matches_nothing_is_an_error_and_nothing_is_changed() -> None:
    model = Borrowing()
    with pytest.raises(SparsifyError, match="'qvk.weight' matches no weight of the model; did you mean 'qkv.weight'"):
        convert(model, ignore=["proj", "qvk.weight"])
    assert not get_masks(model) and type(model) is Borrowing


def test_converting_twice_keeps_the_masks_and_adds_missing_ones() -> None:
    model = network()
    convert(model, ignore=["7"])
    set_masks(model, {"0.weight": torch.zeros(4, 3, 3, 3)})
    report = convert(model)
    assert list(report.masked) == list(get_masks(model)) == ["0.weight", "3.weight", "4.weight", "7.weight"]
    assert not get_masks(model)["0.weight"].any() and verify(model, X).ok


def test_a_dense_state_dict_loads_strictly_and_the_masks_stay() -> None:
    dense, model = network(), network()
    convert(model)
    set_masks(model, {"7.weight": torch.zeros(5, 98)})
    model.load_state_dict(dense.state_dict(), strict=True)
    assert not get_masks(model)["7.weight"].any() and get_masks(model)["0.weight"].all()
    with pytest.raises(RuntimeError, match="0.weight"):
        model.load_state_dict({k: v for k, v in dense.state_dict().items() if k != "0.weight"}, strict=True)


def test_values_assigned_to_a_model_on_the_meta_device_come_with_masks_of_ones() -> None:
    dense = network().eval()
    with torch.device("meta"):
        model = network().eval()
    convert(model)
    model.load_state_dict(dense.state_dict(), strict=True, assign=True)
    assert torch.equal(model(X), dense(X)) and verify(model, X).ok


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("make", [network, Borrowing, lambda: nn.LSTM(4, 3), lambda: nn.MultiheadAttention(4, 2)])
def test_copies_compute_the_same_and_have_masks_of_their_own(
    make: Callable[[], nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    model = make().eval()
    convert(model)
    generator = torch.Generator().manual_seed(0)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})
    x = torch.randn(3, 3, 4) if not isinstance(model, nn.Sequential) else X
    arguments = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    other = copied(model)
    assert isinstance(other, type(model))
    expected, given = model(*arguments), other(*arguments)
    pairs = zip(expected, given, strict=True) if isinstance(expected, tuple) else [(expected, given)]
    assert all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))
    set_masks(other, {name: torch.zeros_like(mask) for name, mask in get_masks(other).items()})
    assert any(mask.any() for mask in get_masks(model).values())


def test_half_double_autocast_and_channels_last() -> None:
    for change in (nn.Module.double, nn.Module.bfloat16, lambda m: m.to(memory_format=torch.channels_last)):
        dense = change(network().eval())  # type: ignore[operator]
        model = change(network().eval())  # type: ignore[operator]
        convert(model)
        model = change(model)  # type: ignore[operator]
        x = X.to(dense[0].weight.dtype)
        assert torch.equal(model(x), dense(x))
        assert all(mask.dtype == torch.bool for mask in get_masks(model).values())
    model, dense = network().eval(), network().eval()
    convert(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(X), dense(X))


def test_in_place_initialisation_and_optimisers_see_the_parameter() -> None:
    model = network()
    convert(model)
    init.constant_(model[7].weight, 0.5)
    optimizer = torch.optim.SGD([model[7].weight], lr=1.0)
    model(X).sum().backward()
    before = model[7].weight.detach().clone()
    optimizer.step()
    assert (before == 0.5).all() and not torch.equal(model[7].weight, before)


def test_functional_call_uses_the_given_weights_masked() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    convert(model)
    set_masks(model, {"0.weight": torch.tensor([[True, False]])})
    output = torch.func.functional_call(model, {"0.weight": torch.tensor([[3.0, 4.0]])}, torch.ones(1, 2))
    assert output.item() == 3.0


# Dynamo of torch 2.10 looks at .grad of what it carries over a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("make", [network, Borrowing, lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)])
def test_torch_compile_follows_mask_changes(make: Callable[[], nn.Module]) -> None:
    torch._dynamo.reset()
    model = make().eval()
    convert(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=DYNAMO_FOLLOWS)
    x = X if isinstance(model, nn.Sequential) else torch.randn(3, 3, 4)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})
        torch.testing.assert_close(compiled(x), model(x))


def test_set_masks_refuses_what_is_not_a_mask_of_the_model() -> None:
    model = network()
    convert(model)
    with pytest.raises(SparsifyError, match="no masked weight '0.wieght'; did you mean '0.weight'"):
        set_masks(model, {"7.weight": torch.zeros(5, 98), "0.wieght": torch.zeros(1)})
    with pytest.raises(SparsifyError, match="no masked weight '0'"):
        set_masks(model, {0: torch.zeros(1)})  # type: ignore[dict-item]
    with pytest.raises(SparsifyError, match=r"shape \(1,\), weight \(5, 98\)"):
        set_masks(model, {"7.weight": torch.zeros(1)})
    with pytest.raises(SparsifyError, match="only 0 and 1"):
        set_masks(model, {"7.weight": torch.full((5, 98), 0.5)})
    for given in (1, [[1.0] * 98] * 5, torch.ones(5, 98).to_sparse(), torch.ones(5, 98, device="meta")):
        with pytest.raises(SparsifyError, match="7.weight: a mask is a dense tensor with values"):
            set_masks(model, {"7.weight": given})  # type: ignore[dict-item]
    assert all(mask.all() for mask in get_masks(model).values())
