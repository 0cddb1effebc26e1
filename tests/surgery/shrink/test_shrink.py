"""What shrink takes out of whole architectures, what it leaves, and that the outputs are those of the model given."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, fold, set_masks
from sparsify.errors import RunError, SparsifyError
from sparsify.relative_error import relative_error
from sparsify.surgery.channels.analyse import analyse
from sparsify.surgery.shrink.shrink import ShrinkReport, shrink
from sparsify.surgery.sizes.other_inputs import outputs
from tests.surgery.rules.test_rules import CASES, Forward, conv, image, linear


def perturbed(model: nn.Module) -> nn.Module:
    """Return the model with nothing in it zero or one by chance."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model.eval()


def without(model: nn.Module, x: Any, share: float = 0.5, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Set what produces some groups to zero; return the model and which groups they are."""
    found = analyse(model, x)
    gone = torch.rand(found.groups, generator=torch.Generator().manual_seed(seed)) < share
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, dim in found.produced.items():
            if name in parameters:
                labels = found.labels[name][dim]
                sizes = [-1 if d == dim else 1 for d in range(parameters[name].dim())]
                parameters[name].masked_fill_(((labels >= 0) & gone[labels.clamp(min=0)]).reshape(sizes), 0)
    return model, gone


def same_on(report: ShrinkReport, model: nn.Module, *inputs: Any) -> bool:
    """Whether the smaller model gives the model's outputs in float64."""
    small, whole = copy.deepcopy(report.model).double().eval(), copy.deepcopy(model).double().eval()

    def doubles(x: Any) -> Any:
        return x.double() if x.is_floating_point() else x

    return all(relative_error(outputs(small, doubles(x)), outputs(whole, doubles(x))) <= 1e-10 for x in inputs)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.out(torch.cat([self.up(self.deep(skip)), skip], 1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.two = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 8, 1))
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        x = F.relu(x + self.two(x))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(3 + 4 * i), nn.ReLU(), nn.Conv2d(3 + 4 * i, 4, 3, padding=1)) for i in range(3)
        )
        self.last = nn.Conv2d(15, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.last(x)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.table = nn.Embedding(20, 16)
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(12, 16)
        self.last = nn.Linear(16, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) * 0.5 + torch.full((n, n), -torch.inf).triu(1)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        gate, value = self.up(x).chunk(2, -1)
        return self.last(x + self.down(F.silu(gate) * value))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = conv(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = conv(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = F.channel_shuffle(torch.cat([left, self.branch(right).relu()], 1), 2)
        return self.last(F.pixel_shuffle(x, 2))


ARCHITECTURES: dict[str, tuple[type[nn.Module], list[Tensor]]] = {
    "residual, depthwise, squeeze-excitation": (Residual, [image(3, 8), torch.randn(5, 3, 12, 10)]),
    "skip and transposed convolution": (UNet, [image(3, 8), torch.randn(3, 3, 12, 16)]),
    "dense": (Dense, [image(3, 8), torch.randn(1, 3, 5, 7)]),
    "attention, gated": (Transformer, [torch.randint(0, 20, (2, 7)), torch.randint(0, 20, (3, 4))]),
    "shuffled": (Shuffled, [image(3, 8), torch.randn(1, 3, 6, 6)]),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_lose_the_groups_that_produce_zeros(name: str) -> None:
    build, inputs = ARCHITECTURES[name]
    model, gone = without(perturbed(build()), inputs[0])
    assert 0 < gone.sum() < len(gone)
    report = shrink(model, inputs[0], dead="zeros")
    assert report.parameters[1] < report.parameters[0] and report.multiply_adds[1] < report.multiply_adds[0]
    assert not report.kept
    assert report.difference is not None and report.difference[0] <= 1e-10
    assert same_on(report, model, *inputs)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("weight_norm")])
def test_every_case_of_the_rules_shrinks_or_says_why_not(name: str) -> None:
    model, x, _ = CASES[name]()
    model, gone = without(perturbed(model), x)
    before = outputs(model, x)
    report = shrink(model, x, dead="zeros")
    assert relative_error(outputs(report.model, x), before) <= 1e-4
    assert report.removed <= report.groups


def test_channels_that_unstructured_masks_leave_dead_by_accident_go() -> None:
    model = perturbed(Residual())
    x = image(3, 8)
    convert(model)
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(p.shape, generator=generator) < 0.05 for name, p in model.named_parameters() if p.dim() > 1
    }
    set_masks(model, {name: mask for name, mask in masks.items() if f"{name}_mask" in model.state_dict()})
    plain = fold(model).eval()
    report = shrink(model, x)
    assert 0 < report.removed < report.groups
    assert same_on(report, plain, x, torch.randn(4, 3, 9, 9))


def test_counts_are_rounded_up() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 2, 1))
    with torch.no_grad():
        model[0].weight[5:], model[0].bias[5:] = 0, 0
    assert [shrink(model, image(3), round_to=n, dead="zeros").model[0].out_channels for n in (None, 1, 4, 8, 100)] == [
        5,
        5,
        8,
        8,
        32,
    ]
    with pytest.raises(SparsifyError, match="round_to=0: channel counts are rounded to multiples of 1 or more"):
        shrink(model, image(3), round_to=0, dead="zeros")


def test_something_is_left_of_every_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.zero_()
    report = shrink(model, torch.randn(2, 3), dead="zeros")
    assert report.model[0].weight.shape == (1, 3) and report.removed == 3
    torch.testing.assert_close(report.model(torch.ones(1, 3)), model(torch.ones(1, 3)))


class Strict(nn.Module):
    """A layer that takes one width and no other."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 4:
            raise ValueError("four channels only")
        return x * 2


def test_a_module_that_takes_no_fewer_channels_keeps_them_and_is_named() -> None:
    model = nn.Sequential(linear(3, 4), Strict(), linear(4, 6), nn.ReLU(), linear(6, 2))
    with torch.no_grad():
        model[0].weight[1], model[2].weight[4] = 0, 0
    report = shrink(model, torch.randn(2, 3), dead="zeros")
    assert [tuple(report.model[i].weight.shape) for i in (0, 2, 4)] == [(4, 3), (5, 4), (2, 5)]
    assert report.kept == (
        "1: 1 dead groups stay: its forward does not take fewer channels (ValueError: four channels only)",
    )


def test_outputs_that_would_differ_keep_what_the_module_meets() -> None:
    """The scale comes from a number of channels that no operation shows."""
    model = Forward(lambda m, x: m.last(m.mid(m.first(x))), first=linear(3, 4), last=linear(4, 2))
    model.mid = Forward(lambda m, x: x * x.shape[1] ** 0.5)
    with torch.no_grad():
        model.first.weight[1] = 0
    report = shrink(model, torch.randn(2, 3), dead="zeros")
    assert report.model.first.weight.shape == (4, 3) and report.removed == 0
    assert len(report.kept) == 1 and report.kept[0].startswith("mid: 1 dead groups stay: outputs differ by")


def test_what_a_forward_needs_without_an_operation_that_shows_it_stays_and_the_rest_goes() -> None:
    """A number of channels is what other channels are cut into: positions and channels of `b` change places."""

    def mixed(m: Any, x: Tensor) -> Tensor:
        x = m.a(m.mid(m.first(x).relu()))
        y = m.b(x).flatten(2).mT.reshape(x.shape)
        out: Tensor = m.last(y)
        return out

    layers = {"first": conv(3, 8), "mid": conv(8, 3), "a": conv(3, 16), "b": conv(16, 16), "last": conv(16, 2)}
    model = Forward(mixed, **layers)
    with torch.no_grad():
        for layer in (model.first, model.a):
            layer.weight[:4] = 0
    x = torch.randn(1, 3, 4, 4)
    report = shrink(model, x, dead="zeros")
    assert (report.model.first.out_channels, report.model.a.out_channels) == (4, 16)
    (reason,) = report.kept
    assert reason.startswith("the model: 4 dead groups stay: its forward does not take fewer channels (RuntimeError: ")
    assert relative_error([report.model(x)], [model(x)]) < 1e-5


def test_a_sparse_buffer_keeps_what_it_meets_alone() -> None:
    """A graph's neighbours: a product with a sparse matrix has no rule, and no cost that is known."""

    def spread(m: Any, x: Tensor) -> Tensor:
        z = torch.sparse.mm(m.neighbours, m.mid(m.first(x).relu())).relu()
        out: Tensor = m.last(z)
        return out

    model = Forward(spread, first=linear(3, 6), mid=linear(6, 4), last=linear(4, 2))
    model.register_buffer("neighbours", torch.eye(5).to_sparse())
    with torch.no_grad():
        model.first.weight[:2] = 0
        model.mid.weight[:2] = 0
    x = torch.randn(5, 3)
    report = shrink(model, x, dead="zeros")
    assert (report.model.first.out_features, report.model.mid.out_features) == (4, 4)
    assert report.uncounted == ("the model: _sparse_addmm",)
    assert relative_error([report.model(x)], [model(x)]) < 1e-5


def test_a_model_whose_outputs_are_never_the_same_is_refused() -> None:
    model = nn.Sequential(linear(3, 4), nn.ReLU(), linear(4, 2), Forward(lambda m, x: x + torch.rand(2)))
    with torch.no_grad():
        model[0].weight[1] = 0
    with pytest.raises(RunError, match="nothing was changed"):
        shrink(model, torch.randn(2, 3), dead="zeros")


def test_the_model_given_is_not_changed() -> None:
    model = Residual().train()
    model.one.eval()
    model.seen = []  # type: ignore[assignment]
    handle = model.stem.register_forward_hook(lambda module, given, result: None)
    with torch.no_grad():
        model.two[0].weight[:3], model.two[0].bias[:3] = 0, 0
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    report = shrink(model, image(3, 8), dead="zeros")
    assert report.removed and report.model.training
    now = model.state_dict(keep_vars=True)
    assert list(now) == list(before) and all(now[name] is t and torch.equal(t, c) for name, (t, c) in before.items())
    assert [module.training for module in model.modules()] == modes
    assert list(model.stem._forward_hooks) == [handle.id] and not model._forward_hooks and not model._forward_pre_hooks
    assert type(report.model) is Residual and model.two[0].out_channels == 6


def test_tied_weights_and_modules_that_run_twice_shrink_once() -> None:
    inner = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), inner, nn.ReLU(), inner, nn.ReLU(), nn.Linear(6, 2))
    _, gone = without(perturbed(model), torch.randn(4, 3))
    assert gone.any()
    report = shrink(model, torch.randn(4, 3), dead="zeros")
    assert report.model[2] is report.model[4] and report.model[2].weight.shape == (6 - int(gone.sum()),) * 2
    assert same_on(report, model, torch.randn(9, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:The .grad attribute of a Tensor")
def test_scripted_children_and_several_inputs_and_containers_of_outputs() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))  # type: ignore[no-untyped-call]

    def forward(m: Any, x: Tensor, more: dict[str, Tensor]) -> dict[str, Any]:
        return {"out": [m.last(m.scripted(m.first(x).relu())), more["y"] * 2], "n": 3}

    model = Forward(forward, first=nn.Linear(3, 6), scripted=scripted, last=nn.Linear(6, 2))
    given = (torch.randn(2, 3), {"y": torch.randn(2)})
    _, gone = without(perturbed(model), given)
    report = shrink(model, given, dead="zeros")
    assert report.removed == gone.sum() > 0
    torch.testing.assert_close(report.model(*given), model(*given))


def test_channels_last_stays() -> None:
    model, _ = without(perturbed(UNet().to(memory_format=torch.channels_last)), image(3, 8))
    report = shrink(model, image(3, 8).to(memory_format=torch.channels_last), dead="zeros")
    assert report.removed and report.model.out.weight.is_contiguous(memory_format=torch.channels_last)
    assert same_on(report, model, image(3, 8))
