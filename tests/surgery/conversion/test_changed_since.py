"""What other code did to a converted model since: refused in one line that says what to do, or worked with."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsify import Pruner, SparsifyError, convert, fold, get_masks, save, set_masks, trace, verify

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def pruned() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    convert(model)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
    return model


@pytest.mark.parametrize("call", [convert, fold, get_masks, lambda model: Pruner(model, {"sparsity": 0.5}, 3)])
def test_a_weight_that_was_parametrized_since_is_refused(call: Callable[[nn.Module], Any]) -> None:
    model = pruned()
    out = model(X)
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    with pytest.raises(SparsifyError, match=r"0\.weight was parametrized after the conversion"):
        call(model)
    parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=False)  # as the message says
    call(model)
    assert torch.equal(fold(pruned_like(model))(X), out) and verify(model, X).ok


def pruned_like(model: nn.Module) -> nn.Module:
    copy = pruned()
    copy.load_state_dict(model.state_dict())
    return copy


def test_a_weight_of_another_shape_is_not_broadcast() -> None:
    model = pruned()
    model[0].weight = nn.Parameter(torch.randn(1, 8))
    with pytest.raises(SparsifyError, match=r"Linear\.weight has shape \(1, 8\), its mask \(8, 8\)"):
        model(X)


def test_a_mask_that_was_deleted_is_named() -> None:
    model = pruned()
    del model[0].weight_mask
    with pytest.raises(SparsifyError, match=r"Linear\.weight_mask is gone"):
        model(X)


class Named(nn.Module):
    """Has a buffer and a method called as attributes of masked modules are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))
        self.register_buffer("masked_names", torch.ones(4))

    def dense_forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.masked_names

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_forward(x)


def test_a_module_with_an_attribute_of_masked_modules_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Named())
    out = model(X)
    report = convert(model)
    assert (
        list(report.masked) == ["0.weight"] and "has an attribute masked_names of its own" in report.skipped["1.weight"]
    )
    assert torch.equal(model(X), out) and torch.equal(model[1].dense_forward(model[0](X)), out)


class Slotted(nn.Linear):
    """Keeps a value outside of its `__dict__`."""

    __slots__ = ("gain",)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gain


def test_slots_of_a_module_are_followed() -> None:
    model: Any = Slotted(8, 4)
    model.gain = 3.0
    out = model(X)
    assert list(convert(model).masked) == ["weight"] and torch.equal(model(X), out)
    model.gain = 6.0
    assert torch.equal(model(X), 2 * out)


def test_trace_refuses_a_forward_on_the_object() -> None:
    model = pruned()
    forward = model.forward
    model.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]
    with pytest.raises(SparsifyError, match="the forward of Sequential was replaced on the object"):
        trace(model)


class Standardised(nn.Conv2d):
    """Computes its weight, and takes an optional argument: fold stores the weight in the module itself."""

    def forward(self, input: Tensor, scale: float | None = None) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        out = F.conv2d(input, weight, self.bias)
        return out if scale is None else out * scale


def test_a_folded_module_that_stores_its_computed_weight_is_masked_again() -> None:
    x = torch.randn(2, 4, 6, 6)
    model = nn.Sequential(Standardised(4, 6, 3))
    convert(model)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
    folded = fold(model)
    assert convert(folded).masked == {"0.weight": "substituted"} and verify(folded, x).ok
    assert torch.equal(folded(x), model(x))
    mask = torch.rand(6, 4, 3, 3) > 0.5
    set_masks(folded, {"0.weight": mask})
    weight = torch.where(mask, folded[0].weight, 0)
    expected = F.conv2d(x, weight, folded[0].bias)
    for same in (folded, copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), fold(folded)):
        assert torch.equal(same(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_without_values_become_ones(dtype: torch.dtype) -> None:
    dense = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    with torch.device("meta"):
        unmade = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).to(dtype)
    convert(unmade)
    for model in (unmade, pruned().to(dtype)):
        model.to_empty(device="cpu")
        model.load_state_dict(dense.state_dict())
        assert all(bool(mask.all()) for mask in get_masks(model).values())
        assert torch.equal(model(X.to(dtype)), dense(X.to(dtype)))


@pytest.mark.parametrize("how", ["deleted", "None"])
def test_a_model_without_one_of_its_masks_is_moved_and_then_refused(how: str) -> None:
    model = pruned()
    if how == "deleted":
        del model[0]._buffers["weight_mask"]
    else:
        model[0]._buffers["weight_mask"] = None
    with pytest.raises(SparsifyError, match=r"weight_mask is gone"):
        model.double()(X.double())


class Embedded(nn.Module):
    """Its head may be tied to its embedding, as language models do after they are built."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.inner(self.embed(ids)))
        return hidden


@pytest.mark.parametrize("call", [fold, lambda model: Pruner(model, {"sparsity": 0.5}, 3)], ids=["fold", "Pruner"])
def test_a_weight_that_was_tied_to_a_dense_one_since_is_refused(call: Callable[[nn.Module], Any]) -> None:
    model = Embedded()
    convert(model)
    model.head.weight = model.embed.weight
    with pytest.raises(SparsifyError, match=r"embed\.weight was tied to head\.weight after the conversion"):
        call(model)
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())  # as the message says
    call(model)


def test_weights_that_were_tied_since_have_one_mask_or_are_refused(tmp_path: Path) -> None:
    model = Embedded()
    model.head = nn.Linear(8, 8)
    convert(model)
    model.head.weight = model.inner.weight
    assert fold(model).head.weight is not None  # both masks are all ones
    half = torch.arange(64).reshape(8, 8) % 2 == 0
    get_masks(model)["inner.weight"].copy_(half)  # of one module alone
    for call in (fold, lambda model: Pruner(model, {"sparsity": 0.5}, 3), lambda model: save(model, tmp_path / "m")):
        with pytest.raises(SparsifyError, match=r"inner\.weight and head\.weight were tied after the conversion"):
            call(model)
    set_masks(model, {"inner.weight": half})  # as the message says
    ids = torch.arange(9)
    assert torch.equal(fold(model)(ids), model(ids))


@pytest.mark.parametrize("setting", ["decay", "zero", "freeze"])
def test_a_pruner_names_the_weights_that_are_gone(setting: str) -> None:
    model = pruned()
    pruner = Pruner(model, {"sparsity": 0.8, "schedule": "linear", "masked_weights": setting}, 3)
    pruner.start()
    state = pruner.state_dict()
    model[2] = nn.Linear(8, 4)
    for call in (pruner.report, lambda: pruner.load_state_dict(state), pruner.step, pruner.step):
        with pytest.raises(SparsifyError, match=r"Pruner: the model has no masked weight 2\.weight any more"):
            call()


class Centred(nn.Module):
    """Computes its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w - self.w.mean(1, keepdim=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 4), lambda: nn.Conv1d(8, 4, 1), Centred])
def test_torch_jit_traces_masked_models_without_a_warning(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    convert(model)
    half = {name: torch.arange(mask.numel()).reshape(mask.shape) % 3 > 0 for name, mask in get_masks(model).items()}
    set_masks(model, half)
    x = X[..., None] if isinstance(model, nn.Conv1d) else X
    traced: Any = torch.jit.trace(model, x.clone())  # type: ignore[no-untyped-call]
    assert torch.equal(traced(x), model(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("make", [pruned, Embedded, Centred])
def test_torch_jit_script_is_refused(make: Callable[[], nn.Module]) -> None:
    model = make()
    convert(model)
    with pytest.raises(SparsifyError, match=r"torch\.jit\.script takes no masked \w+: give it sparsify\.fold\(model\)"):
        torch.jit.script(model)  # type: ignore[no-untyped-call]


def test_a_bias_may_be_parametrized_since() -> None:
    model = pruned()
    parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    expected = model(X)
    folded = fold(model)
    assert torch.equal(folded(X), expected) and not get_masks(folded)
    assert verify(model, X).ok
    parametrize.remove_parametrizations(folded[0], "bias")  # type: ignore[index, arg-type]
    assert torch.equal(folded(X), expected)


class CopiedByHand(nn.Module):
    """Copies itself by building another one, which takes its values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: Any) -> "CopiedByHand":
        made = CopiedByHand()
        made.load_state_dict({name: value for name, value in self.state_dict().items() if "mask" not in name})
        return made


class CopiedInPart(CopiedByHand):
    def __deepcopy__(self, memo: Any) -> Any:
        return nn.Identity()


def test_a_model_that_copies_itself_is_folded_all_the_same() -> None:
    for model in (CopiedByHand(), nn.Sequential(CopiedByHand(), nn.ReLU())):
        convert(model)
        Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
        assert torch.equal(fold(model)(X), model(X))
    model = CopiedInPart()
    convert(model)
    with pytest.raises(SparsifyError, match=r"fold: a copy of the model has no layer\.weight"):
        fold(model)


def test_the_reason_for_a_weight_that_a_hook_computes_or_a_child_is_given() -> None:
    layer = nn.Linear(8, 8)
    raw = layer.weight
    del layer._parameters["weight"]
    layer.raw, layer.weight = raw, raw.data  # type: ignore[assignment]
    layer.register_forward_pre_hook(lambda module, _: setattr(module, "weight", module.raw / 2))
    report = convert(nn.Sequential(layer, Giving()))
    assert "the forward of Linear does not read it" in report.skipped["0.raw"]
    assert report.skipped["1.w"] == "given as an argument to product, where no mask is put on arguments"


class Halved(nn.Linear):
    """A layer with torch's forward, whose weight is computed by a property."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = 8, 4, None  # type: ignore[assignment]
        self.raw = nn.Parameter(torch.randn(4, 8))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.raw / 2


def test_a_weight_that_a_property_computes_is_masked() -> None:
    model = nn.Sequential(Halved())
    assert convert(model).masked == {"0.raw": "computed"}
    set_masks(model, {"0.raw": torch.zeros(4, 8, dtype=torch.bool)})
    assert not model(X).any()


class Product(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w)


class Giving(nn.Module):
    """Gives its weight to a child."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.product = nn.Parameter(torch.randn(4, 8)), Product()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.w)  # type: ignore[no-any-return]
