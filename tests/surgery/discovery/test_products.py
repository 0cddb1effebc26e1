"""Weights of matrix products: which parameters are some, which dimensions are outputs, and which are no weights."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import convert, fold, get_masks, set_masks, verify
from sparsify.pruning.selection.granularity import rows
from sparsify.surgery.mask_state.masks import Layout, layout, masked_weights
from tests.surgery.products import CHOSEN, PRODUCTS, Conv1D, Experts, OfChildren, Vision, X, module_of


def half_masks(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})


def influences(model: nn.Module, weight: Tensor, inputs: tuple[Tensor, ...]) -> set[tuple[int, ...]]:
    """Return the entries of a weight that some output depends on, for every output, by gradients."""
    found = set()
    outputs = model(*inputs)
    for output in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
        for value in output.flatten():
            (gradient,) = torch.autograd.grad(value, weight, retain_graph=True)
            found.add(tuple(gradient.flatten().nonzero().flatten().tolist()))
    return found


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_parameter_in_a_product_is_a_weight(name: str) -> None:
    forward, shape, inputs, _ = PRODUCTS[name]
    model = module_of(forward, w=shape)
    report = convert(model)
    assert list(report.masked) == ["w"] and not report.skipped, report
    found = verify(model, inputs)
    assert found.ok and found.live == ["w"], str(found)
    half_masks(model)
    dense = module_of(forward, w=shape)
    with torch.no_grad():
        dense.w.mul_(get_masks(model)["w"])  # type: ignore[operator, union-attr]
    for expected, given, folded in zip(*(_listed(m(*inputs)) for m in (dense, model, fold(model))), strict=True):
        assert torch.equal(expected, given) and torch.equal(folded, given)


def _listed(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_row_is_what_one_output_depends_on(name: str) -> None:
    forward, shape, inputs, units = PRODUCTS[name]
    model = module_of(forward, w=shape)
    convert(model)
    weight = masked_weights(model)["w"]
    entries = torch.arange(weight.mask.numel()).view(weight.mask.shape)
    found = [tuple(sorted(row)) for row in rows(entries, layout(weight)).tolist()]
    assert len(found) == units
    whole = influences(model, weight.parameter, inputs)
    if name == "experts one by one":  # their outputs are added up
        assert all(any(set(row) <= set(output) for output in whole) for row in found)
    elif name == "slices":  # one output is a product of both
        assert {*found} == whole
    elif name == "transposed convolution":
        assert all(any(set(output) <= set(row) for row in found) for output in whole)
    else:
        assert {*found} == whole


def test_layouts_are_kept_by_copies_and_pickles_and_dropped_by_fold() -> None:
    model = nn.Sequential(Conv1D(), nn.Linear(4, 2), nn.ReLU())
    convert(model)
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        weights = masked_weights(copied)
        assert layout(weights["0.weight"]) == Layout((), (1,), (0,))
        assert layout(weights["1.weight"]) == Layout((), (0,), (1,))
        assert "masked_layouts" not in copied[1].__dict__
    assert "masked_layouts" not in fold(model)[0].__dict__  # type: ignore[index]


def test_weights_of_children_that_are_not_called() -> None:
    model = OfChildren()
    report = convert(model)
    assert set(report.masked) == {"proj.weight", "holder.kernel"} and not report.skipped
    assert verify(model, X).ok
    assert layout(masked_weights(model)["proj.weight"]) == Layout((), (0,), (1,))
    assert layout(masked_weights(model)["holder.kernel"]) == Layout((), (1,), (0,))


def test_a_projection_after_a_norm() -> None:
    model = Vision()
    assert list(convert(model).masked) == ["proj"]
    assert verify(model, X).ok


def test_bilinear_layers() -> None:
    model = nn.Bilinear(3, 4, 5)
    assert list(convert(model).masked) == ["weight"]
    inputs = (torch.randn(6, 3), torch.randn(6, 4))
    assert verify(model, inputs).ok
    half_masks(model)
    assert torch.equal(fold(model)(*inputs), model(*inputs))
    assert layout(masked_weights(model)["weight"]) == Layout((), (0,), (1, 2))


class Head(nn.Module):
    """A language model's: its last weight is its embedding."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.inner = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.randn(8, 8))
        self.read = read

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(tokens, self.table) @ self.inner @ self.table.t()


@pytest.mark.parametrize("read", [F.embedding, lambda i, t: t[i], lambda i, t: t.index_select(0, i)])
def test_what_an_embedding_reads_as_well_stays_dense(read: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Head(read)
    report = convert(model)
    assert list(report.masked) == ["inner"] and "embedding" in report.skipped["table"]
    assert verify(model, torch.tensor([1, 2])).ok


# What is multiplied and yet no weight of an input: forward, shapes, what is masked, a word of the reason.
OTHERS: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[int, ...]], list[str], str]] = {
    "a scale": (lambda self, x: torch.einsum("bi,bi->bi", x, self.w), {"w": (5, 8)}, [], "not the weight"),
    "added": (lambda self, x: x + self.w, {"w": (5, 8)}, [], "not the weight"),
    "an outer product": (lambda self, x: torch.einsum("i,jk->ijk", x[0], self.w), {"w": (2, 3)}, [], "not the weight"),
    "activations": (lambda self, x: (x * self.w) @ x.t(), {"w": (5, 8)}, [], "not the weight"),
    "two constants": (lambda self, x: x + self.a @ self.b, {"a": (5, 2), "b": (2, 8)}, [], "not the weight"),
    "ones of an input's shape": (lambda self, x: x + torch.ones_like(x) @ self.w, {"w": (8, 8)}, [], "not the weight"),
    "shape alone": (lambda self, x: x[:, : self.w.shape[0]] @ self.v, {"w": (3, 2), "v": (3, 2)}, ["v"], "shape"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_weight_says_so(name: str) -> None:
    forward, shapes, masked, reason = OTHERS[name]
    model = module_of(forward, **shapes)
    report = convert(model)
    assert list(report.masked) == masked
    assert report.skipped and all(reason in why for why in report.skipped.values()), report.skipped
    assert verify(model, X).ok


class Attention(nn.Module):
    """Queries and keys are activations; their weights are the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(8, 24))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (x @ self.qkv).chunk(3, dim=-1)
        return (query @ key.t()).softmax(-1) @ value


def test_activations_that_are_made_of_weights_are_none() -> None:
    model = Attention()
    assert list(convert(model).masked) == ["qkv"]
    assert verify(model, X).ok and layout(masked_weights(model)["qkv"]) == Layout((), (1,), (0,))


# Tables of positions: what is looked up, skewed, or called so.
TABLES: dict[str, Callable[..., Tensor]] = {
    "looked up": lambda self, x: torch.einsum("ic,ijc->ij", x, self.w[self.places]),
    "looked up by two": lambda self, x: torch.einsum("ic,ijc->ij", x, self.w.view(3, 3, 8)[self.rows, self.rows]),
    "skewed": lambda self, x: F.pad(x @ self.w.transpose(-1, -2), [0, 1]).flatten(1),
    "skewed from the left": lambda self, x: F.pad(torch.einsum("ic,jc->ij", x, self.w), (1, 0)).view(-1, 5),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_positions_is_no_weight(name: str) -> None:
    model = module_of(TABLES[name], w=(9, 8))
    model.register_buffer("places", torch.arange(5)[:, None] - torch.arange(5) + 4)
    model.register_buffer("rows", torch.arange(5)[:, None].repeat(1, 5) % 3)
    report = convert(model)
    assert not report.masked and "position" in report.skipped["w"]
    assert verify(model, X).ok


@pytest.mark.parametrize(
    ("name", "table"),
    [("rel_height", True), ("height_rel", True), ("relPosition", True), ("pos_proj", False), ("related", False)],
)
def test_a_name_tells_a_table_of_positions_in_the_end(name: str, table: bool) -> None:
    model = module_of(lambda self, x: x @ getattr(self, name).t(), **{name: (9, 8)})
    assert (name in convert(model).skipped) == table


# Forwards that cannot be traced, with the names of their weights.
def _branches(self: Any, x: Tensor) -> Tensor:
    if x.sum() > 1e9:
        return x @ self.first
    if x.mean() > -1e9:
        if x.mean() < 1e9:
            return x @ self.second
    return x @ self.third


def _while(self: Any, x: Tensor) -> Tensor:
    steps = 0
    while x.abs().max() > 1e-9 and steps < 3:
        x, steps = x @ self.first, steps + 1
    return x @ self.second


def _numbers(self: Any, x: Tensor) -> Tensor:
    for i in range(int(x.abs().sum().item()) % 2 + 1):
        x = torch.mm(x, self.first) + i
    return x


def _parts(self: Any, x: Tensor) -> Tensor:
    for part in self.first.view(2, 4, 8):
        x = x + (x @ part.t()).repeat(1, 2)
    return x


def _assigning(self: Any, x: Tensor) -> Tensor:
    output = torch.zeros_like(x)
    output[x[:, 0] > 0] = x[x[:, 0] > 0] @ self.first
    return output


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (_branches, ["first", "second", "third"]),
        (_while, ["first", "second"]),
        (_numbers, ["first"]),
        (_parts, ["first"]),
        (_assigning, ["first"]),
    ],
)
def test_weights_on_the_paths_of_a_forward_that_cannot_be_traced(
    forward: Callable[..., Tensor], names: list[str]
) -> None:
    model = module_of(forward, **dict.fromkeys(names, (8, 8)), unused=(8, 8))
    random = torch.get_rng_state()
    report = convert(model)
    assert list(report.masked) == names and list(report.skipped) == ["unused"]
    assert torch.equal(torch.get_rng_state(), random)
    found = verify(model, X)
    assert found.ok and found.live, str(found)
    half_masks(model)
    assert torch.equal(fold(model)(X), model(X))


def test_experts_that_a_loop_chooses() -> None:
    model = Experts()
    report = convert(model)
    assert list(report.masked) == ["up", "down"] and any("cannot be traced" in note for note in report.notes)
    assert verify(model, (X, CHOSEN)).ok
    assert {layout(weight) for weight in masked_weights(model).values()} == {Layout((0,), (1,), (2,))}
    half_masks(model)
    assert torch.equal(fold(model)(X, CHOSEN), model(X, CHOSEN))
