"""Pruning of weights whose outputs are not their first dimension: units, filters, groups, blocks follow the layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsify import Pruner, convert, get_masks, load, save
from sparsify.pruning.selection.granularity import along_inputs, rows, set_rows
from sparsify.pruning.selection.k_lowest import kept_in_rows
from sparsify.surgery.mask_state.masks import Layout, layout, masked_weights, matrix_shapes, usual_layout
from tests.surgery.products import CHOSEN, PRODUCTS, Conv1D, Experts, X, module_of

LAYOUTS = [
    ((3, 4), Layout((), (1,), (0,))),
    ((2, 3, 4), Layout((0,), (2,), (1,))),
    ((2, 3, 4), Layout((0,), (1,), (2,))),
    ((2, 3, 4), Layout((), (0, 2), (1,))),
    ((4, 3, 2), Layout((), (2,), (0, 1))),
    ((2, 3, 4, 5), Layout((3,), (1,), (0,), (2,))),
    ((6, 3, 2), Layout((), (1,), (0,), (2,), 2)),
    ((2, 6, 3, 2), Layout((0,), (2,), (1,), (3,), 3)),
]


# Small random models lose whole filters, which is said.
pytestmark = pytest.mark.filterwarnings("ignore::sparsify.pruning.report.SparsityWarning")


def pruned(model: nn.Module, **settings: Any) -> Pruner:
    convert(model)
    pruner = Pruner(model, {"schedule": "one_shot", **settings}, total_steps=1)
    pruner.start()
    return pruner


@pytest.mark.parametrize(("shape", "own"), LAYOUTS)
def test_rows_hold_every_entry_once_and_are_written_back(shape: tuple[int, ...], own: Layout) -> None:
    entries = torch.arange(torch.Size(shape).numel()).view(shape)
    matrix = rows(entries, own)
    assert sorted(matrix.flatten().tolist()) == list(range(entries.numel()))
    copied = torch.zeros_like(entries)
    set_rows(copied, matrix.clone(), own)
    assert torch.equal(copied, entries)
    strided = torch.zeros(shape[::-1], dtype=torch.int64).permute(*reversed(range(len(shape))))
    set_rows(strided, matrix.clone(), own)
    assert torch.equal(strided, entries)
    assert sum(one.numel() for one in matrix_shapes(entries.shape, own)) == entries.numel()


def test_neighbours_are_inputs_that_follow_each_other() -> None:
    entries = torch.arange(24).view(2, 3, 4)
    assert along_inputs(entries, Layout((0,), (2,), (1,)))[0].tolist() == [[0, 4, 8]]
    assert along_inputs(entries, Layout((), (0,), (1,), (2,)))[0].tolist() == [
        [0, 4, 8],
        [1, 5, 9],
        [2, 6, 10],
        [3, 7, 11],
    ]


def test_a_unit_is_a_column_where_the_weight_is_inputs_by_outputs() -> None:
    model = Conv1D(3, 4)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 9, 1, 9], [1, 9, 1, 9], [1, 9, 1, 9]]))
    report = pruned(model, granularity="unit", scope="layer", sparsity=0.5).report()
    assert get_masks(model)["weight"].tolist() == [[False, True, False, True]] * 3
    assert report.choices == 4 and report.layers[0].units == 4 and report.layers[0].dead_units == (0, 2)


def test_a_filter_is_a_column_where_the_weight_is_inputs_by_outputs() -> None:
    model = Conv1D(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.arange(12.0).view(4, 3))
    pruned(model, scope="filter", sparsity=0.5)
    assert get_masks(model)["weight"].tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_output_unit_loses_its_share(name: str) -> None:
    forward, shape, _, units = PRODUCTS[name]
    model = module_of(forward, w=shape)
    pruned(model, scope="filter", sparsity=0.5)
    weight = masked_weights(model)["w"]
    kept = kept_in_rows(rows(weight.mask, layout(weight)))
    assert kept.tolist() == [weight.mask.numel() // units - weight.mask.numel() // units // 2] * units


@pytest.mark.parametrize("name", [name for name, case in PRODUCTS.items() if 8 in case[1] and name != "bilinear"])
def test_two_of_four_inputs_are_kept(name: str) -> None:
    forward, shape, inputs, _ = PRODUCTS[name]
    model = module_of(forward, w=shape)
    pruned(model, granularity="2:4")
    mask = get_masks(model)["w"].numpy().astype(int)
    if name == "transposed convolution":  # four inputs to each of two groups
        assert (mask.reshape(2, 4, 3, 2).sum(1) == 2).all()
    else:
        inputs_at = shape.index(8)
        assert (np.moveaxis(mask, inputs_at, -1).reshape(-1, 4).sum(1) == 2).all()
    assert inputs


def test_experts_are_pruned_each_by_itself() -> None:
    model = Experts(2)
    with torch.no_grad():
        model.up.copy_(torch.arange(96.0).view(2, 6, 8))
    pruned(model, granularity="4x8", scope="filter", sparsity=0.5, ignore=["down"])
    # Rows of blocks end with the expert: four rows and two for each.
    mask = get_masks(model)["up"]
    assert mask.shape == (2, 6, 8) and mask.all(2).sum() + (~mask).all(2).sum() == 12
    report = pruned(Experts(3), granularity="2x8", sparsity=0.5, scope="layer").report()
    assert report.choices == 3 * 3 + 3 * 4 and report.chosen == report.due


def test_erk_counts_the_outputs_and_inputs_of_one_expert() -> None:
    assert matrix_shapes(torch.Size((5, 6, 8)), Layout((0,), (1,), (2,))) == (torch.Size((6, 8)),) * 5
    assert matrix_shapes(torch.Size((2, 8, 3)), Layout((), (0, 2), (1,))) == (torch.Size((6, 8)),)
    assert matrix_shapes(torch.Size((4, 8, 3)), usual_layout(nn.Bilinear(8, 3, 4), 3)) == (torch.Size((4, 24)),)
    flat, stacked = nn.ModuleDict(), Experts(3)
    for i in range(3):
        flat[f"up{i}"], flat[f"down{i}"] = nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False)
    reached = [pruned(model, scope="erk", sparsity=0.7).report() for model in (stacked, flat)]
    removed = {layer.name: layer.removed for layer in reached[1].layers}
    assert reached[0].removed == reached[1].removed
    for layer in reached[0].layers:
        assert abs(layer.removed - sum(removed[f"{layer.name}{i}.weight"] for i in range(3))) <= 3


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.7, "scope": "filter"},
        {"sparsity": 0.7, "scope": "global"},
        {"granularity": "2:4"},
        {"granularity": "unit", "sparsity": 0.5, "scope": "layer"},
        {"granularity": "2x2", "sparsity": 0.9, "scope": "layer"},
    ],
)
def test_files_give_such_masks_back(settings: dict[str, Any], tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.ModuleList([Conv1D(32, 16), Experts(4), nn.Bilinear(8, 4, 8)])

    model = build()
    pruned(model, **settings)
    for form in ("sparsify", "masks"):
        path = tmp_path / f"{form}.safetensors"
        save(model, path, **({"format": "masks"} if form == "masks" else {}))
    again = load(tmp_path / "sparsify.safetensors", build())
    masks = get_masks(model)
    assert masks.keys() == get_masks(again).keys() and not all(bool(mask.all()) for mask in masks.values())
    assert all(torch.equal(mask, masks[name]) for name, mask in get_masks(again).items())
    kept = {name: value for name, value in model.state_dict().items() if name in masks}
    assert all(torch.equal(again.get_parameter(name)[masks[name]], value[masks[name]]) for name, value in kept.items())


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "snip", "grasp", "synflow"])
def test_criteria_score_the_weights_of_products(criterion: str) -> None:
    model = nn.Sequential(Conv1D(8, 6), nn.Tanh(), Conv1D(6, 4))
    convert(model)
    settings = {"criterion": criterion, "sparsity": 0.5, "scope": "filter", "schedule": "one_shot"}
    pruner = Pruner(model, settings, total_steps=1, example_input=X)
    pruner.start([(X, torch.tensor([0, 1, 2, 3, 0]))], loss_of)
    assert pruner.report().chosen == pruner.report().due == 24 + 12
    assert [kept_in_rows(rows(w.mask, layout(w))).unique().tolist() for w in masked_weights(model).values()] == [
        [4],
        [3],
    ]


def test_whole_channels_of_products_are_removed_with_an_example() -> None:
    model = nn.Sequential(Conv1D(8, 6), nn.ReLU(), Conv1D(6, 4))
    convert(model)
    settings = {"granularity": "unit", "sparsity": 0.5, "scope": "layer", "schedule": "one_shot"}
    Pruner(model, settings, total_steps=1, example_input=X).start()
    mask = get_masks(model)["0.weight"]
    assert torch.equal(mask, mask[:1].expand_as(mask)) and int(mask[0].sum()) == 3


def test_experts_by_input_keep_their_shares() -> None:
    model = Experts(3)
    report = pruned(model, sparsity=0.5, scope="filter").report()
    assert report.chosen == report.due == 3 * (6 * 4 + 8 * 3) and model(X, CHOSEN).shape == X.shape
