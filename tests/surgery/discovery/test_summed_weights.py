"""Weights that a forward makes of several parameters: one mask on what is multiplied with, whatever is drawn for it."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import Pruner, SparsifyError, convert, fold, get_masks, load, save, set_masks, trace, verify
from sparsify.surgery.mask_state.masks import Layout, effective_weight, layout, masked_weights
from tests.surgery.products import X, module_of

SHAPES = {"mu": (4, 8), "rho": (4, 8)}


def drawn(self: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, self.mu + F.softplus(self.rho) * torch.randn_like(self.mu))


def drawn_convolution(self: nn.Module, x: Tensor) -> Tensor:
    weight = self.mu + self.rho.exp() * torch.randn_like(self.rho)
    return F.conv1d(x.t()[None], weight[..., None]).squeeze(0).t()


def drawn_product(self: nn.Module, x: Tensor) -> Tensor:
    return x @ (self.mu + 0.1 * self.rho * torch.randn_like(self.rho)).t().to(x.dtype)


def noisy(self: nn.Module, x: Tensor) -> Tensor:
    """Fortunato et al. 2018: the noise is in buffers, and only in train mode."""
    return F.linear(x, self.mu + self.rho * self.noise if self.training else self.mu)


def average(self: nn.Module, x: Tensor) -> Tensor:
    return torch.einsum("bi,oi->bo", x, (self.mu + self.rho) / 2)


FORWARDS = [drawn, drawn_convolution, drawn_product, noisy, average]


def model_of(forward: Callable[..., Tensor]) -> nn.Module:
    model = module_of(forward, **SHAPES)
    with torch.no_grad():
        model.rho.sub_(4)  # type: ignore[operator, union-attr]
    model.register_buffer("noise", torch.randn(4, 8, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.mark.parametrize("forward", FORWARDS)
def test_two_parameters_that_form_one_weight_have_one_mask(forward: Callable[..., Tensor]) -> None:
    model = model_of(forward)
    report = convert(model)
    assert list(report.masked) == ["mu"] and report.skipped == {"rho": "part of the weight computed with mu"}
    found = verify(model, X)
    assert found.ok and found.live == ["mu"], str(found)
    assert layout(masked_weights(model)["mu"]) == Layout((), (0,), (1,))


@pytest.mark.parametrize("forward", FORWARDS)
def test_the_reported_sparsity_is_that_of_the_weight(forward: Callable[..., Tensor]) -> None:
    model = model_of(forward)
    convert(model)
    pruner = Pruner(model, {"sparsity": 0.75, "schedule": "one_shot"}, total_steps=1)
    pruner.start()
    assert pruner.report().reached == 0.75
    with torch.no_grad():
        outputs = torch.stack([model(torch.eye(8)).t() for _ in range(20)])
    assert torch.equal(outputs.abs().amax(0) == 0, ~get_masks(model)["mu"])
    if "drawn" in forward.__name__:  # what is kept is drawn as before
        assert bool((outputs.std(0) > 0)[get_masks(model)["mu"]].all())


@pytest.mark.parametrize("forward", FORWARDS)
def test_scores_of_a_weight_that_is_drawn_are_the_same_each_time(forward: Callable[..., Tensor]) -> None:
    masks = []
    for seed in range(3):
        model = model_of(forward)
        convert(model)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, total_steps=1).start()
        assert torch.equal(torch.get_rng_state(), before)
        masks.append(get_masks(model)["mu"])
        weight = masked_weights(model)["mu"]
        assert torch.equal(effective_weight(weight), effective_weight(weight))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[1], masks[2])


def test_a_low_rank_sum_is_masked_as_a_whole(tmp_path: object) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return F.linear(x, self.base + self.b @ self.a)

    model = module_of(forward, a=(2, 8), b=(4, 2), base=(4, 8))
    report = convert(model)
    part = "part of the weight computed with base"
    assert list(report.masked) == ["base"] and report.skipped == {"a": part, "b": part}
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, total_steps=1).start()
    assert int((model(torch.eye(8)) == 0).sum()) == 16
    path = f"{tmp_path}/model.safetensors"
    save(model, path)
    again = load(path, module_of(forward, a=(2, 8), b=(4, 2), base=(4, 8)))
    assert torch.equal(again(X), model(X)) and torch.equal(fold(model)(X), model(X))


def test_a_product_of_parameters_alone_is_masked_at_its_factors_and_says_so() -> None:
    model = module_of(lambda self, x: F.linear(x, self.a @ self.b), a=(4, 2), b=(2, 8))
    report = convert(model)
    assert list(report.masked) == ["a", "b"] and verify(model, X).ok
    assert report.notes == ["a: multiplied or added up with b: each has a mask of its own"]


def test_a_part_that_is_used_by_itself_as_well_leaves_the_weight_dense() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return F.linear(x, self.mu + self.rho) + F.linear(x, self.mu)

    report = convert(model_of(forward))
    assert not report.masked and "also used in another way" in report.skipped["mu"]


class Drawing(nn.Linear):
    """Draws its noise by a shape, which no graph holds."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.rho = nn.Parameter(torch.full((4, 8), -5.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + F.softplus(self.rho) * torch.randn(4, 8), self.bias)


def test_a_part_of_a_weight_is_never_masked_where_it_is_stored() -> None:
    model = Drawing()
    report = convert(copy.deepcopy(model))
    masked = list(report.masked.values())
    assert masked == ["computed"] or (not masked and set(report.skipped) == {"weight", "rho"})


def transposed_by_attribute(self: nn.Module, x: Tensor) -> Tensor:
    return x @ (self.mu + self.rho * self.noise).T


def cut(self: nn.Module, x: Tensor) -> Tensor:
    first, second = (self.mu + self.rho * self.noise).chunk(2)
    return F.linear(x, first) * F.linear(x, second)


@pytest.mark.parametrize("forward", [noisy, average, drawn_product, transposed_by_attribute, cut])
def test_no_mask_is_lost_by_torch_compile_and_trace(forward: Callable[..., Tensor]) -> None:
    model = model_of(forward).eval()
    convert(model)
    Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, total_steps=1).start()
    torch.manual_seed(0)
    expected = model(X)
    if "drawn" not in forward.__name__:
        assert torch.equal(fold(model)(X), expected)
    for made in (lambda: torch.compile(model, backend="eager"), lambda: trace(model)):
        torch.manual_seed(0)
        try:
            given = made()(X)
        except SparsifyError as error:
            assert "cannot be traced" in str(error)
        else:
            torch.testing.assert_close(given, expected)


def test_an_older_pickle_of_a_module_that_must_run_eagerly_does() -> None:
    model = model_of(transposed_by_attribute).eval()
    convert(model)
    set_masks(model, {name: torch.rand(mask.shape) < 0.5 for name, mask in get_masks(model).items()})
    folded = fold(model)
    for module, flag in ((model, "computed_eagerly"), (folded, "given_eagerly")):
        assert module.__dict__.pop(flag)  # which older versions called otherwise
        torch.testing.assert_close(torch.compile(module, backend="eager")(X), model(X))
