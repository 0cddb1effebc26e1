"""What other libraries do to masks: averages, numbers in the place of bools, adapters."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from sparsify import Pruner, SparsifyError, convert, fold, get_masks, save, set_masks, sync_masks, verify

pytestmark = pytest.mark.filterwarnings("ignore:filters lost all")
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
RAMP = {"sparsity": 0.8, "schedule": "cubic", "end": 0.5}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scaled = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.weight).relu()
        return nn.functional.linear(x, nn.functional.normalize(self.scaled))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)),
    "a forward of its own": Own,
    "recurrent": lambda: nn.Sequential(nn.LSTM(6, 4)),
}


Average = tuple[Callable[[nn.Module], Any], Callable[[Any, nn.Module], Any]]
AVERAGES: dict[str, Average] = {
    "mean": (AveragedModel, lambda a, m: a.update_parameters(m)),
    "mean of buffers too": (lambda m: AveragedModel(m, use_buffers=True), lambda a, m: a.update_parameters(m)),
    "moving": (
        lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
        lambda a, m: a.update_parameters(m),
    ),
    "moving by pairs": (
        lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(0.9), use_buffers=True),
        lambda a, m: a.update_parameters(m),
    ),
    "timm 2": (lambda m: ModelEmaV2(m, decay=0.9), lambda a, m: a.update(m)),
    "timm 3": (lambda m: ModelEmaV3(m, decay=0.9), lambda a, m: a.update(m)),
}


def train(model: nn.Module, pruner: Pruner, average: Any, update: Callable[[Any, nn.Module], Any]) -> None:
    for step in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        pruner.step()
        update(average, model)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_carries_the_masks_of_the_live_model(network: str, name: str) -> None:
    model = NETWORKS[network]()
    convert(model)
    make, update = AVERAGES[name]
    average = make(model)
    inner: Any = getattr(average, "module", average)
    pruner = Pruner(model, RAMP, 20)
    train(model, pruner, average, update)
    saved: dict[str, Tensor] = inner.state_dict()
    out = inner(X)
    for weight, mask in get_masks(model).items():
        assert torch.equal(saved[f"{weight}_mask"], mask) and torch.equal(get_masks(inner)[weight], mask)
    folded = fold(inner)(X)
    first, second = (value[0] if isinstance(value, tuple) else value for value in (out, folded))
    torch.testing.assert_close(first, second)
    assert verify(inner, X).ok


def test_copies_keep_the_masks_that_they_are_given() -> None:
    model = NETWORKS["layers"]()
    convert(model)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
    snapshot, reset = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reset.parameters():
            parameter.add_(1.0)
    reset[0].weight_mask.fill_(True)  # type: ignore[index, union-attr, operator]
    Pruner(model, {"sparsity": 0.75, "schedule": "one_shot"}, 1).start()
    assert bool(get_masks(reset)["0.weight"].all()) and int(get_masks(snapshot)["0.weight"].sum()) == 24


def test_an_average_that_was_made_by_hand_is_mended_by_sync_masks() -> None:
    model = NETWORKS["layers"]()
    convert(model)
    average = copy.deepcopy(model)
    Pruner(model, {"sparsity": 0.75, "schedule": "one_shot"}, 1).start()
    with torch.no_grad():
        for own, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            own.copy_(0.9 * own + 0.1 * other)
    assert bool(get_masks(average)["0.weight"].all())
    sync_masks(average, torch.compile(model))  # type: ignore[arg-type]
    assert all(torch.equal(get_masks(average)[name], mask) for name, mask in get_masks(model).items())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_made_before_the_conversion_says_so_and_is_converted(name: str, network: str) -> None:
    model = NETWORKS[network]()
    make, update = AVERAGES[name]
    average = make(model)
    before = {key: value.clone() for key, value in average.state_dict().items()}
    convert(model)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
    line = "carries no masks, its model does: it was built before sparsify.convert; build it of the converted model"
    with pytest.raises(SparsifyError, match=line):
        update(average, model)
    assert all(torch.equal(value, before[key]) for key, value in average.state_dict().items())
    with pytest.raises(SparsifyError, match="carries no mask in the average"):
        sync_masks(average.module, model)
    convert(average)
    update(average, model)
    assert all(torch.equal(get_masks(average.module)[key], mask) for key, mask in get_masks(model).items())


def test_sync_masks_serves_averages_of_any_make() -> None:
    model = NETWORKS["layers"]()
    convert(model)
    other = NETWORKS["layers"]()
    convert(other)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
    average = AveragedModel(other)
    sync_masks(average, nn.DataParallel(model))
    assert all(torch.equal(get_masks(average.module)[name], mask) for name, mask in get_masks(model).items())
    plain = NETWORKS["layers"]()
    with pytest.raises(SparsifyError, match="sync_masks: '0.weight' carries no mask in the average"):
        sync_masks(plain, model)
    with pytest.raises(SparsifyError, match="the live model carries no masks"):
        sync_masks(average, plain)


@pytest.mark.parametrize("how", ["copied", "assigned", "loaded", "set", "put there"])
@pytest.mark.parametrize("network", NETWORKS)
def test_true_is_one_whatever_its_byte(network: str, how: str) -> None:
    model, other = NETWORKS[network](), NETWORKS[network]()
    other.load_state_dict(model.state_dict())
    convert(model)
    convert(other)
    bits = {name: torch.rand(mask.shape) < 0.5 for name, mask in get_masks(model).items()}
    set_masks(other, bits)
    odd = {name: (mask.byte() * 2).view(torch.bool) for name, mask in bits.items()}
    state = {**model.state_dict(), **{f"{name}_mask": mask for name, mask in odd.items()}}
    if how in ("assigned", "loaded"):
        model.load_state_dict(state, assign=how == "assigned")
    elif how == "set":
        set_masks(model, odd)
    for name, mask in odd.items() if how in ("copied", "put there") else ():
        owner, _, key = name.rpartition(".")
        if how == "copied":
            get_masks(model)[name].copy_(mask)
        else:
            setattr(model.get_submodule(owner), f"{key}_mask", mask)
    results = []
    for one in (model, other):
        out = one(X)
        out = out[0] if isinstance(out, tuple) else out
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in one.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    assert all(int(get_masks(model)[name].sum()) == int(mask.sum()) for name, mask in bits.items())


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
@pytest.mark.parametrize("network", NETWORKS)
def test_masks_of_numbers_become_bool_again(network: str, dtype: torch.dtype, assign: bool) -> None:
    model = NETWORKS[network]().eval()
    convert(model)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, 1).start()
    expected = model(X)
    state = {key: value.to(dtype) if key.endswith("_mask") else value for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    assert all(mask.dtype is torch.bool for mask in get_masks(model).values())
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("assign", [True, False])
def test_an_averaged_state_is_refused_before_anything_changes(network: str, assign: bool) -> None:
    model = NETWORKS[network]()
    convert(model)
    before = copy.deepcopy(model.state_dict())
    masks = [key for key in before if key.endswith("_mask")]
    averaged = {key: value + 1.0 if key not in masks else value.float() for key, value in before.items()}
    averaged[masks[-1]] = averaged[masks[-1]].clone()
    averaged[masks[-1]].view(-1)[0] = 0.25
    with pytest.raises(SparsifyError, match=f"{masks[-1]}: a mask holds only 0 and 1, here 0.25"):
        model.load_state_dict(averaged, assign=assign)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_mask_that_is_none_is_an_error_where_it_is_used(network: str, tmp_path: Any) -> None:
    def broken() -> nn.Module:
        model = NETWORKS[network]()
        convert(model)
        module, name = next((m, n) for m in model.modules() for n in m._buffers if n.endswith("_mask"))
        module._buffers[name] = module._buffers[name].float() * 0.5  # type: ignore[union-attr]
        return model

    pruner_of: Callable[[nn.Module], Any] = lambda m: Pruner(m, {"sparsity": 0.5, "schedule": "one_shot"}, 1)  # noqa: E731
    uses: list[Callable[[nn.Module], Any]] = [lambda m: m(X), lambda m: m.state_dict(), pruner_of]
    uses += [lambda m: save(m, tmp_path / "model.safetensors"), fold]
    for use in uses:
        with pytest.raises(SparsifyError, match="a mask holds only 0 and 1, here 0.5 of dtype float32"):
            use(broken())


def test_the_guard_of_loading_goes_with_the_masks() -> None:
    model = NETWORKS["layers"]()
    convert(model)
    convert(model)
    assert len(model._load_state_dict_pre_hooks) == 1
    assert not fold(model)._load_state_dict_pre_hooks


class Adapted(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})

    def forward(self, x: Tensor) -> Any:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("first", [True, False])
def test_adapters_stay_dense(first: bool) -> None:
    model = NETWORKS["layers"]()
    if first:
        convert(model)
        set_masks(model, {"0.weight": torch.rand(8, 6) < 0.5})
    before = get_masks(model).get("0.weight")
    model[0] = Adapted(model[0])  # type: ignore[index, operator]
    report = convert(model)
    assert list(report.masked) == ["0.base_layer.weight", "3.weight"]
    assert set(report.skipped.values()) == {"an adapter (LoRA), which stays dense"} and len(report.skipped) == 2
    if before is not None:
        assert torch.equal(get_masks(model)["0.base_layer.weight"], before)
    assert verify(model, X).ok


def test_a_masked_layer_whose_forward_was_wrapped_keeps_its_mask_when_converted_again() -> None:
    model = NETWORKS["layers"]()
    convert(model)
    former = model[0].forward  # type: ignore[index]
    model[0].forward = lambda x: former(x) * 2  # type: ignore[index]
    report = convert(model)
    assert report.masked == {"0.weight": "direct", "3.weight": "direct"} and not report.skipped
    assert verify(model, X).ok
