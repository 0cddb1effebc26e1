"""What analyse says, checked against the networks themselves: dead channels are replaced by noise, and cut out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify import convert, fold, set_masks
from sparsify.relative_error import relative_error
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.shrink.shrink import shrink
from sparsify.surgery.sizes.other_inputs import outputs
from tests.surgery.shrink.test_shrink import perturbed, same_on, without

ACTIVATIONS = [
    nn.ReLU(),
    nn.GELU(),
    nn.Sigmoid(),
    nn.Hardswish(),
    nn.LeakyReLU(0.2),
    nn.Softplus(),
    nn.ReLU6(),
    nn.Tanh(),
]


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = 2
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).view(b, h * w, 3, self.heads, c // 2).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, h * w, -1)).transpose(1, 2).reshape(b, -1, h, w)


class Network(nn.Module):
    """A chain of blocks over images; each is (kind, layers)."""

    def __init__(self, plan: list[tuple[str, int]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kinds = [kind for kind, _ in plan]
        self.blocks = nn.ModuleList()
        width = 3
        for kind, choice in plan:
            layers, width = _block(kind, choice, width)
            self.blocks.append(layers)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            if kind == "add":
                x = x + block(x)
            elif kind == "cat":
                x = torch.cat([x, block(x)], 1)
            elif kind == "gate":
                x = x * block(x.mean((2, 3), keepdim=True)).sigmoid()
            elif kind == "split":
                first, second = x.chunk(2, 1)
                x = torch.cat([block(first), second], 1)
            else:
                x = block(x)
        return self.head(x)


def _block(kind: str, choice: int, width: int) -> tuple[nn.Module, int]:
    """Return the layers of a block that `width` channels enter, and how many leave it."""
    activation = ACTIVATIONS[choice % len(ACTIVATIONS)]
    wide = 2 * (2 + choice % 3)
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(width, wide, 3, padding=choice % 2, bias=choice % 3 > 0), activation), wide
    if kind == "norm":
        norms = [nn.BatchNorm2d(width), nn.GroupNorm(1, width), nn.InstanceNorm2d(width, affine=True), nn.PReLU(width)]
        return norms[choice % 4], width
    if kind == "activation":
        return activation, width
    if kind == "add":
        return nn.Sequential(nn.Conv2d(width, wide, 1), activation, nn.Conv2d(wide, width, 1)), width
    if kind == "cat":
        return nn.Sequential(nn.Conv2d(width, wide, 1), activation), width + wide
    if kind == "gate":
        return nn.Sequential(nn.Conv2d(width, 3, 1), activation, nn.Conv2d(3, width, 1)), width
    if kind == "depthwise":
        return nn.Conv2d(width, width * (1 + choice % 2), 3, padding=1, groups=width), width * (1 + choice % 2)
    if kind == "split" and width % 2 == 0:
        return nn.Conv2d(width // 2, width // 2, 1), width
    if kind == "pool":
        return [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1, padding=1), nn.Upsample(scale_factor=2)][choice % 3], width
    if kind == "attention" and width % 2 == 0:
        return Attention(width), width
    return nn.Identity(), width


KINDS = ["conv", "norm", "activation", "add", "cat", "gate", "depthwise", "split", "pool", "attention"]
PLANS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 23)), min_size=1, max_size=6).map(
    lambda plan: [(kind if kind != "split" else "conv", c) if i == 0 else (kind, c) for i, (kind, c) in enumerate(plan)]
)


def network(plan: list[tuple[str, int]], seed: int) -> nn.Module:
    plan = [("conv", seed), *plan]
    return perturbed(Network(plan, seed))


def noise_in_dead_channels(model: nn.Module, x: Tensor, noise: float) -> float:
    """Return how much the outputs differ when dead groups that are read nowhere put out noise, in float64."""
    found = analyse(model, x)
    model, x = model.double(), x.double()
    expected = outputs(model, x)
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            labels = found.labels.get(f"{path}.weight", {}).get(0)
            if labels is not None:
                dead = (labels >= 0) & found.dead[labels.clamp(min=0)]
                handles.append(module.register_forward_hook(_noisy(dead, noise)))
    differing = relative_error(outputs(model, x), expected)
    for handle in handles:
        handle.remove()
    return differing


def _noisy(dead: Tensor, noise: float) -> Any:
    def hook(module: nn.Module, given: Any, result: Tensor) -> Tensor:
        high, low = result.flatten(2).amax((0, 2)), result.flatten(2).amin((0, 2))
        constant = high - low <= 1e-9  # dead for what it holds; sums may differ in the last bit from place to place
        unread = dead & ~constant
        return torch.where(unread[:, None, None], noise * torch.randn_like(result), result)

    return hook


SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@SETTINGS
@given(PLANS, st.integers(0, 5), st.sampled_from([0.3, 0.6, 0.9]))
def test_groups_of_zeros_go_and_the_outputs_stay(plan: list[tuple[str, int]], seed: int, share: float) -> None:
    x = torch.randn(2, 3, 14, 14).double()  # a folded constant is rounded to the bits of the bias
    model, gone = without(network(plan, seed).double(), x, share, seed)
    report = shrink(model, x, dead="zeros")
    assert same_on(report, model, x, torch.randn(3, 3, 14, 14), torch.randn(1, 3, 15, 13))
    assert report.removed > 0 or not gone.any() or report.kept or report.groups <= 2 * int(gone.sum())


@SETTINGS
@given(PLANS, st.integers(0, 5), st.sampled_from([0.7, 0.9, 0.98]))
def test_what_unstructured_masks_leave_dead_goes(plan: list[tuple[str, int]], seed: int, share: float) -> None:
    model, x = network(plan, seed).double(), torch.randn(2, 3, 14, 14).double()
    convert(model)
    masks = {
        k.removesuffix("_mask"): torch.rand(v.shape) >= share
        for k, v in model.state_dict().items()
        if k[-5:] == "_mask"
    }
    set_masks(model, masks)
    plain = fold(model).eval()
    report = shrink(model, x, dead="zeros")
    assert same_on(report, plain, x, torch.randn(3, 3, 14, 14), torch.randn(1, 3, 15, 13))


@SETTINGS
@given(PLANS, st.integers(0, 5))
def test_channels_said_to_be_unread_may_hold_anything(plan: list[tuple[str, int]], seed: int) -> None:
    model, x = network(plan, seed), torch.randn(2, 3, 14, 14)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # nothing reads some of the channels
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                unread = torch.rand(module.in_channels, generator=generator) < 0.5
                module.weight[:, unread] = 0
    assert noise_in_dead_channels(model, x, 100.0) <= 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_to_be_dead_is_dead_by_brute_force(seed: int) -> None:
    """Every unit of a layer, one by one: dead if its noise changes nothing, or it is zero; alive if both fail."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        for layer, kept in ((0, 0.3), (2, 0.06), (4, 0.3)):
            model[layer].weight.mul_(torch.rand_like(model[layer].weight) < kept)
            model[layer].bias.abs_().mul_(torch.rand_like(model[layer].bias) < 0.5)
    model.requires_grad_(False)
    x = torch.rand(4, 3, 5, 5)
    found = analyse(model, x)
    labels = found.labels.get("0.weight", {}).get(0, torch.full((8,), -1))
    for unit in range(8):

        def hook(_: Any, __: Any, result: Tensor, unit: int = unit) -> Tensor:
            return torch.cat([result[:, :unit], 50 * torch.randn_like(result[:, :1]), result[:, unit + 1 :]], 1)

        handle = model[0].register_forward_hook(hook)
        unread = relative_error(outputs(model, x), [model(x)]) == 0
        handle.remove()
        with_noise_off = torch.equal(F.relu(model[0](x))[:, unit], torch.zeros(4, 5, 5))
        if labels[unit] >= 0 and found.dead[labels[unit]]:
            values = F.relu(model[0](x))[:, unit]
            assert unread or with_noise_off or torch.equal(values.amax(), values.amin()), unit


def test_groups_are_numbered_and_what_makes_them_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    found = analyse(model, torch.randn(1, 3, 4, 4))
    assert found.groups == 2 and found.dead.tolist() == [False, False]
    assert found.produced == {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0}
    assert set(found.labels) == {*found.produced, "1.running_mean", "1.running_var", "2.weight"}
    assert [(o.name, o.multiply_adds) for o in found.operations] == [("0", 3 * 2 * 16), ("2", 2 * 16)]
    assert [[axis.tolist() for axis in o.axes] for o in found.operations] == [[[0, 1], [-1, -1, -1]], [[0, 1]]]
