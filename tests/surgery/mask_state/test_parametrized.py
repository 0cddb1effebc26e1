"""Parametrized weights: the mask is on what is computed, whichever way of torch.nn.utils computes it."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sparsify import Pruner, SparsifyError, convert, fold, get_masks, load, save, set_masks, verify

X = torch.randn(3, 8)
SIGNAL = torch.randn(2, 4, 9)
SEQUENCE = torch.randn(5, 2, 8)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm.*is deprecated")
        yield


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.tensor(0.7))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.amount


class RankOne(nn.Module):
    """Computes a matrix from two vectors."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left[:, None] * right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, 0], weight[0]


class Own(nn.Module):
    """A module with two matrices of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + F.linear(x, self.other)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        parametrizations.weight_norm(self.attention, "in_proj_weight")
        parametrizations.spectral_norm(self.attention.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


def symmetric(module: Any) -> Any:
    parametrize.register_parametrization(module, "weight", Symmetric())
    return parametrize.register_parametrization(module, "weight", Scaled())


new, old = parametrizations, nn.utils
KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "weight norm": (lambda: new.weight_norm(nn.Linear(8, 8)), X, 1),
    "weight norm of all": (lambda: new.weight_norm(nn.Linear(8, 8), dim=None), X, 1),
    "spectral norm": (lambda: new.spectral_norm(nn.Linear(8, 8)), X, 1),
    "orthogonal": (lambda: new.orthogonal(nn.Linear(8, 8)), X, 1),
    "householder": (lambda: new.orthogonal(nn.Linear(8, 8), orthogonal_map="householder"), X, 1),
    "stacked": (lambda: symmetric(nn.Linear(8, 8)), X, 1),
    "old weight norm": (lambda: old.weight_norm(nn.Linear(8, 8)), X, 1),
    "old spectral norm": (lambda: old.spectral_norm(nn.Linear(8, 8)), X, 1),
    "conv": (lambda: new.weight_norm(nn.Conv1d(4, 6, 3)), SIGNAL, 1),
    "transposed": (lambda: new.spectral_norm(nn.ConvTranspose1d(4, 6, 4, stride=2)), SIGNAL, 1),
    "old transposed": (lambda: old.weight_norm(nn.ConvTranspose1d(4, 6, 4, stride=2)), SIGNAL, 1),
    "conv 2d": (lambda: new.spectral_norm(nn.Conv2d(2, 5, 3)), torch.randn(2, 2, 6, 6), 1),
    "lstm": (lambda: new.weight_norm(nn.LSTM(8, 6), "weight_hh_l0"), SEQUENCE, 2),
    "old lstm": (lambda: old.weight_norm(nn.LSTM(8, 6), "weight_hh_l0"), SEQUENCE, 2),
    "spectral lstm": (lambda: new.spectral_norm(nn.LSTM(8, 6), "weight_hh_l0"), SEQUENCE, 1),
    "attention": (Attention, SEQUENCE, 2),
    "own": (lambda: new.weight_norm(Own()), X, 2),
    "own old": (lambda: old.weight_norm(Own()), X, 2),
    "own old spectral": (lambda: old.spectral_norm(Own()), X, 2),
    "own orthogonal": (lambda: new.orthogonal(Own()), X, 2),
}


def output(model: nn.Module, x: Tensor) -> Tensor:
    found = model(x)
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


def half_masks(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})


@pytest.mark.parametrize("kind", KINDS)
def test_parametrized_weights_are_masked(kind: str, tmp_path: Path) -> None:
    make, x, count = KINDS[kind]
    model = nn.Sequential(make())
    keys = [*model.state_dict()]
    dense_keys = {key.replace("parametrizations.", "").split(".original")[0] for key in keys if "0." in key}
    report = convert(model)
    assert len(report.masked) == count and "computed" in report.masked.values()
    assert [key for key in model.state_dict() if key.removesuffix("_mask") not in report.masked or key in keys] == keys
    found = verify(model, x)
    assert found.ok and set(found.live) == set(report.masked), str(found)
    assert found.identical_eval and found.identical_train
    half_masks(model.eval())
    expected = output(model, x)
    folded = fold(model)
    assert torch.equal(output(folded, x), expected)
    assert torch.equal(output(model, x), expected)  # what shares a class with the copy goes on
    assert not any(name in key for key in folded.state_dict() for name in ("parametrizations", "_v", "_orig", "_g"))
    assert dense_keys & set(folded.state_dict())
    save(model, tmp_path / "masked.safetensors")
    again = load(tmp_path / "masked.safetensors", nn.Sequential(make())).eval()
    assert torch.equal(output(again, x), expected)


@pytest.mark.parametrize("kind", ["weight norm", "old weight norm", "old spectral norm", "stacked"])
def test_removed_entries_are_zero_and_have_no_gradient(kind: str) -> None:
    make, x, _ = KINDS[kind]
    model: Any = nn.Sequential(make())
    convert(model)
    half_masks(model)
    (mask,) = get_masks(model).values()
    model(x)
    weight = model[0].weight
    assert bool((weight[~mask] == 0).all()) and bool((weight[mask] != 0).all())


def test_the_names_that_a_person_sees_can_be_ignored() -> None:
    def model() -> nn.Module:
        layers = [
            new.weight_norm(nn.Linear(8, 8)),
            old.weight_norm(nn.Linear(8, 8)),
            new.spectral_norm(nn.Linear(8, 8)),
        ]
        return nn.Sequential(*layers)

    raw = ["0.parametrizations.weight.original1", "1.weight_v", "2.parametrizations.weight.original"]
    for ignore in (["0.weight"], ["0"], [raw[0]]):
        assert [*convert(model(), ignore=ignore).masked] == raw[1:]
    assert [*convert(model(), ignore=["1.weight"]).masked] == [raw[0], raw[2]]
    assert [*convert(model(), ignore=["last"]).masked] == raw[:2]
    assert not convert(model(), ignore=["*.weight"]).masked
    with pytest.raises(SparsifyError, match="matches no weight"):
        convert(model(), ignore=["3.weight"])


def test_the_pruner_counts_parametrized_layers_for_last() -> None:
    model = nn.Sequential(*[new.weight_norm(nn.Linear(8, 8)) for _ in range(3)])
    convert(model, ignore=["last"])
    pruning = {"sparsity": 0.5, "scope": "filter", "ignore": ["last"], "schedule": "one_shot"}
    pruner = Pruner(model, pruning, total_steps=1)
    pruner.start()
    assert [float(mask.float().mean()) for mask in get_masks(model).values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: new.weight_norm(nn.Embedding(5, 8)), "Embedding: not a conv or linear weight"),
        (
            lambda: parametrize.register_parametrization(nn.Linear(8, 8), "weight", RankOne(), unsafe=True),
            None,
        ),
    ],
)
def test_other_parametrizations_are_left_with_a_reason(make: Callable[[], nn.Module], reason: str | None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), make())
    report = convert(model)
    assert [*report.masked] == ["0.weight"]
    assert set(report.skipped.values()) == ({reason} if reason else set())


def test_copies_and_pickles_of_older_norms_keep_their_masks() -> None:
    model = nn.Sequential(old.weight_norm(nn.Linear(8, 8)), old.spectral_norm(nn.Linear(8, 8))).eval()
    convert(model)
    half_masks(model)
    with torch.no_grad():
        expected = model(X)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(X), expected)
            set_masks(other, {name: torch.ones_like(mask) for name, mask in get_masks(other).items()})
            assert not torch.equal(other(X), expected)


def test_the_norms_can_be_removed_after_conversion() -> None:
    model = nn.Sequential(
        new.weight_norm(nn.Linear(8, 8)), old.weight_norm(nn.Linear(8, 8)), old.spectral_norm(nn.Linear(8, 8))
    ).eval()
    convert(model)
    half_masks(model)
    expected = model(X)
    parametrize.remove_parametrizations(model[0], "weight")
    old.remove_weight_norm(model[1])
    old.remove_spectral_norm(model[2])
    assert torch.allclose(model(X), expected)
    assert not get_masks(model) and [*convert(model).masked] == ["0.weight", "1.weight", "2.weight"]


def test_a_dense_state_dict_loads() -> None:
    plain, model = (nn.Sequential(new.weight_norm(nn.Linear(8, 8)), old.weight_norm(nn.Linear(8, 8))) for _ in "ab")
    convert(model)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model(X), plain(X))


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "grasp", "synflow"])
@pytest.mark.parametrize("kind", ["weight norm", "old weight norm", "spectral norm"])
def test_criteria_score_what_is_computed(criterion: str, kind: str) -> None:
    make, x, _ = KINDS[kind]
    model: Any = nn.Sequential(make(), nn.ReLU(), nn.Linear(8, 3)).eval()
    convert(model)
    pruner = Pruner(
        model,
        {"criterion": criterion, "scope": "filter", "sparsity": 0.5, "schedule": "one_shot"},
        total_steps=1,
        example_input=x,
    )
    model(x)
    weight = model[0].weight.detach().clone()
    pruner.start([(x, torch.tensor([0, 1, 2]))], F.cross_entropy)
    mask = next(iter(get_masks(model).values()))
    assert int(mask.sum()) == mask.numel() // 2
    if criterion == "magnitude":
        assert all(w[m].abs().min() >= w[~m].abs().max() for w, m in zip(weight, mask, strict=True))


@pytest.mark.parametrize("setting", ["decay", "freeze", "zero"])
def test_training_goes_on(setting: str, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = nn.Sequential(new.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 3))
    convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruning = {"sparsity": 0.5, "schedule": "one_shot", "masked_weights": setting}
    pruner = Pruner(model, pruning, total_steps=3)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
        kept = model[0].weight.detach().clone()
        pruner.step()
        mask = get_masks(model)["0.parametrizations.weight.original1"]
        if setting != "freeze":
            assert torch.equal(model[0].weight.detach(), kept * mask)  # what is kept does not change with what is not
    assert ("masked_weights: zero" in caplog.text) == (setting == "zero")


@pytest.mark.parametrize("kind", ["weight norm", "old weight norm", "spectral norm"])
def test_compiled(kind: str) -> None:
    make, x, _ = KINDS[kind]
    model = nn.Sequential(make()).eval()
    convert(model)
    half_masks(model)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, backend="eager")(x), model(x))


@pytest.mark.parametrize("sizes", [(8, 6), (6, 8), (8, 8)])
@pytest.mark.parametrize("trivial", [True, False])
@pytest.mark.parametrize("map", ["matrix_exp", "cayley", "householder"])
def test_orthogonal_matrices_of_any_shape_are_verified(map: str, trivial: bool, sizes: tuple[int, int]) -> None:
    layer = parametrizations.orthogonal(nn.Linear(*sizes), orthogonal_map=map, use_trivialization=trivial)
    model: Any = nn.Sequential(layer, nn.ReLU(), nn.Linear(sizes[1], 3))
    assert len(convert(model).masked) == 2
    x = torch.randn(3, sizes[0])
    report = verify(model, x)
    assert report.ok and report.identical_train and not report.notes
    half_masks(model)
    mask = get_masks(model)["0.parametrizations.weight.original"]
    assert torch.equal(model[0].weight == 0, ~mask)
    weight = model[0].weight
    (gradient,) = torch.autograd.grad(F.linear(x, weight).square().sum(), weight, create_graph=True)
    assert gradient.requires_grad
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), model(x))


class Generator(nn.Module):
    """The shape of a HiFi-GAN generator (Kong et al. 2020), small: upsampling, residual blocks, all weight-normed."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.enter = norm(nn.Conv1d(8, 16, 7, padding=3))
        self.ups = nn.ModuleList(norm(nn.ConvTranspose1d(16 >> i, 8 >> i, 4, 2, 1)) for i in range(2))
        self.blocks = nn.ModuleList(norm(nn.Conv1d(8 >> i, 8 >> i, 3, padding=3, dilation=3)) for i in range(2))
        self.leave = norm(nn.Conv1d(4, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = up(F.leaky_relu(x, 0.1))
            x = x + block(F.leaky_relu(x, 0.1))
        return torch.tanh(self.leave(F.leaky_relu(x)))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_generator_of_sound(norm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Generator(norm)
    x = torch.randn(2, 8, 12)
    report = convert(model)
    assert len(report.masked) == 6
    assert verify(model, x).ok
    Pruner(model, {"sparsity": 0.5, "scope": "layer", "schedule": "one_shot"}, total_steps=1).start()
    for mask in get_masks(model).values():
        assert int((~mask).sum()) == mask.numel() // 2
    model.eval()
    with torch.no_grad():
        expected = model(x)
        folded = fold(model)
        assert torch.equal(folded(x), expected)
        save(model, tmp_path / "dense.safetensors", format="dense")
        plain = Generator(lambda layer: layer).eval()
        load(tmp_path / "dense.safetensors", plain)
        assert torch.equal(plain(x), expected)
        save(model, tmp_path / "model.pt2", format="pt2", example_input=x)
        assert torch.allclose(torch.export.load(tmp_path / "model.pt2").module()(x), expected, atol=1e-6)
