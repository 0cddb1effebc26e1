"""Cuts written by hand: applied to a model in place, checked before, composed, taken back."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.surgery.shrink.cuts import Cuts, apply_cuts, beyond, compose, cut, cuts_of
from tests.surgery.cut_models import MODELS, OWN, Own, dead, own, tokens


def kept(tensor: Tensor, axes: dict[int, tuple[int, ...]]) -> Tensor:
    """Take out indices one by one, by concatenation."""
    for dimension, indices in axes.items():
        pieces = [piece for i, piece in enumerate(tensor.split(1, dimension)) if i not in indices]
        tensor = torch.cat(pieces, dimension)
    return tensor


def everything(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@pytest.mark.parametrize("name", MODELS)
def test_the_cut_model_is_the_same_function_where_the_units_were_dead(name: str) -> None:
    make, cuts, images = MODELS[name]
    model = dead(make().double(), cuts).eval()
    images = images.double() if images.is_floating_point() else images
    before, tensors = model(images), {key: value.clone() for key, value in everything(model).items()}
    assert apply_cuts(model, cuts) is model
    assert (model(images) - before).abs().max() <= 1e-12 * before.abs().max()
    for key, tensor in everything(model).items():
        assert torch.equal(tensor, kept(tensors[key], cuts.removed.get(key, {}))), key
    assert [type(module) for module in model.modules()] == [type(module) for module in make().modules()]


def test_attributes_keep_their_types_and_the_tie_and_the_unsaved_buffer_hold() -> None:
    model = own()
    original = copy.deepcopy(model.sizes)
    sizes = model.sizes
    apply_cuts(model, OWN)
    assert model.sizes == {"hidden": [6, (6, 6)]} and isinstance(model.sizes["hidden"], list)
    assert type(model.sizes["hidden"][1]) is tuple and type(model.shape) is torch.Size and model.shape == (1, 6)
    assert sizes == original  # another model may hold the same dictionary
    assert model.out.weight is model.embedding.weight
    assert model.scale.tolist() == [1, 3, 4, 5, 6, 8]
    assert "scale" not in model.state_dict()
    assert model(tokens()).shape == (20, 11)


def test_a_tied_parameter_is_cut_once_under_either_name() -> None:
    for name in ("embedding.weight", "out.weight"):
        model = own()
        before = model.out.weight.detach().clone()
        apply_cuts(model, Cuts({name: {0: (2,)}}))
        assert model.out.weight is model.embedding.weight
        assert torch.equal(model.out.weight, kept(before, {0: (2,)}))
        assert cuts_of(model) == Cuts({"embedding.weight": {0: (2,)}, "out.weight": {0: (2,)}})
    both = Cuts({"embedding.weight": {0: (2,)}, "out.weight": {0: (2,)}})
    assert len(apply_cuts(own(), both).embedding.weight) == 10
    differing = Cuts({"embedding.weight": {0: (2,)}, "out.weight": {0: (3,)}})
    with pytest.raises(SparsifyError, match="embedding.weight and out.weight are one tensor, and would be cut diff"):
        apply_cuts(own(), differing)


def test_two_cuts_of_a_tied_parameter_under_different_names_are_one() -> None:
    model = apply_cuts(apply_cuts(own(), Cuts({"embedding.weight": {0: (2,)}})), Cuts({"out.weight": {0: (2, 9)}}))
    expected = kept(own().out.weight, {0: (2, 3, 10)})
    assert torch.equal(model.embedding.weight, expected)
    assert torch.equal(apply_cuts(own(), cuts_of(model)).out.weight, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_dtype_memory_format_gradient_and_marks_are_kept(dtype: torch.dtype, memory: torch.memory_format) -> None:
    model = nn.Conv2d(3, 6, 2)
    model.weight = nn.Parameter(torch.randn(6, 3, 2, 2).to(dtype).contiguous(memory_format=memory), requires_grad=False)
    model.weight.no_decay = True  # type: ignore[attr-defined]
    old = model.weight
    model.weight.grad = old.clone() if dtype == torch.float64 else None
    apply_cuts(
        model, Cuts({"weight": {0: (0, 5), 1: (1,)}, "bias": {0: (0, 5)}}, {"out_channels": 4, "in_channels": 2})
    )
    assert model.weight is not old and old.shape == (6, 3, 2, 2)
    assert model.weight.dtype == dtype and vars(model.weight) == {"no_decay": True} and not model.weight.requires_grad
    assert model.weight.is_contiguous(memory_format=memory) and isinstance(model.weight, nn.Parameter)
    assert torch.equal(model.weight.float(), kept(old.float(), {0: (0, 5), 1: (1,)}))
    assert model.bias.requires_grad and model.bias.shape == (4,)
    if dtype == torch.float64:
        assert torch.equal(model.weight.grad, model.weight)
    assert "Conv2d(2, 4, " in repr(model)


def test_a_model_without_memory_is_cut_too() -> None:
    with torch.device("meta"):
        model = Own()
    apply_cuts(model, OWN)
    assert model.first.weight.shape == (6, 6) and model.first.weight.is_meta


def test_a_recurrent_layer_keeps_what_it_hands_to_its_kernel_up_to_date() -> None:
    torch.manual_seed(0)
    model = nn.GRU(5, 3).double()
    inputs = torch.randn(4, 2, 5).double()
    inputs[..., 1] = 0
    before = model(inputs)[0]
    apply_cuts(model, Cuts({"weight_ih_l0": {1: (1,)}}, {"input_size": 4}))
    assert torch.allclose(model(inputs[..., [0, 2, 3, 4]])[0], before, rtol=1e-12, atol=0)


def test_a_missing_bias_is_added() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False, dtype=torch.float64), nn.ConvTranspose2d(4, 3, 1, bias=False))
    model[0].weight.requires_grad_(False)
    apply_cuts(model, Cuts({"0.weight": {0: (1,)}, "1.weight": {0: (1,)}}, {"0.out_channels": 3}, ("0.bias", "1.bias")))
    assert torch.equal(model[0].bias, torch.zeros(3, dtype=torch.float64)) and not model[0].bias.requires_grad
    assert model[1].bias.shape == (3,) and isinstance(model[1].bias, nn.Parameter)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    grouped = apply_cuts(nn.ConvTranspose2d(4, 6, 1, bias=False, groups=2), Cuts({}, {}, ("bias",)))
    assert grouped.bias.shape == (6,)


MISTAKES: dict[str, tuple[Cuts, str]] = {
    "a tensor": (
        Cuts({"frist.weight": {0: (0,)}}),
        "no parameter or buffer 'frist.weight'; did you mean 'first.weight'",
    ),
    "a dimension": (Cuts({"first.weight": {2: (0,)}}), r"first.weight \(8x6\) has no dimension 2"),
    "a negative dimension": (Cuts({"first.weight": {-1: (0,)}}), r"first.weight \(8x6\) has no dimension -1"),
    "a scalar": (Cuts({"norm.num_batches_tracked": {0: (0,)}}), r"\(a scalar\) has no dimension 0"),
    "an index": (Cuts({"first.weight": {0: (0, 8)}}), r"first.weight \(8x6\) has no index 8 in dimension 0"),
    "a negative index": (Cuts({"first.weight": {0: (-1, 2)}}), "has no index -1"),
    "indices out of order": (
        Cuts({"first.weight": {0: (2, 1)}}),
        "first.weight: the indices of dimension 0 are not asc",
    ),
    "an index twice": (Cuts({"first.weight": {0: (1, 1)}}), "not ascending"),
    "an index that is no integer": (Cuts({"first.weight": {0: (1.5,)}}), "not integers"),  # type: ignore[dict-item]
    "everything": (Cuts({"first.weight": {1: tuple(range(6))}}), "nothing would be left of dimension 1"),
    "an attribute": (
        Cuts({}, {"first.out_feature": 3}),
        "no attribute 'first.out_feature'; did you mean 'out_features'",
    ),
    "a module": (Cuts({}, {"frist.out_features": 3}), "no attribute 'frist.out_features'"),
    "a key": (Cuts({}, {"sizes.hidden.2": 3}), "no attribute 'sizes.hidden.2': there is no '2' among 2"),
    "a negative key": (Cuts({}, {"sizes.hidden.-1": 3}), "there is no '-1' among 2"),
    "a truth value": (Cuts({}, {"training": 0}), "training is of type bool, its new value is an integer"),
    "a truth value for a size": (Cuts({}, {"first.out_features": True}), "True is neither an integer nor"),
    "a float": (Cuts({}, {"first.out_features": 2.0}), "2.0 is neither an integer nor a list of integers"),
    "a list for a size": (Cuts({}, {"first.out_features": [2]}), "is of type int, its new value is integers"),
    "a size for a list": (Cuts({}, {"shape": 2}), "shape is of type Size, its new value is an integer"),
    "Python's own attributes": (Cuts({}, {"forward.__func__.__code__.co_flags": 1}), "no attribute"),
    "a class": (Cuts({}, {"kind.version": 1}), "no attribute 'kind.version'"),
    "a property": (Cuts({}, {"first.out_features": 3, "width": 1}), "Mistaken.width cannot be set"),
    "a bias that is there": (Cuts({}, {}, ("second.bias",)), "'second.bias' cannot be added: the layer has a bias"),
    "a bias where none can be": (Cuts({}, {}, ("embedding.bias",)), "or never has one"),
    "a weight": (Cuts({}, {}, ("first.gain",)), "only the bias of a layer with a weight can"),
    "the bias of nothing": (Cuts({}, {}, ("third.bias",)), "only the bias of a layer with a weight can"),
    "a bias twice": (Cuts({}, {}, ("first.bias", "first.bias")), "neither cut nor added again"),
    "a bias that is cut": (Cuts({"first.bias": {0: (1,)}}, {}, ("first.bias",)), "neither cut nor added again"),
}


class Mistaken(Own):
    kind = Cuts
    version = 3

    @property
    def width(self) -> int:
        return 3


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_changed(mistake: str) -> None:
    wrong, message = MISTAKES[mistake]
    together = Cuts({**OWN.removed, **wrong.removed}, {**OWN.attributes, **wrong.attributes}, wrong.added)
    torch.manual_seed(0)
    model = Mistaken()
    before, tensors = [dict(vars(module)) for module in model.modules()], everything(model)
    with pytest.raises(SparsifyError, match=message) as caught:
        apply_cuts(model, together)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("apply_cuts: ")
    assert [vars(module) for module in model.modules()] == before
    assert all(tensors[name] is tensor for name, tensor in everything(model).items())
    assert cuts_of(model) is None


def test_a_failure_on_the_way_takes_everything_back() -> None:
    class Refusing(nn.Linear):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "bias" and len(value) == 3:
                raise RuntimeError("no")
            super().__setattr__(name, value)

    model = Refusing(4, 4)
    weight = model.weight
    with pytest.raises(RuntimeError, match="no"):
        apply_cuts(model, Cuts({"weight": {0: (1,)}, "bias": {0: (1,)}}, {"out_features": 3}))
    assert model.weight is weight and model.out_features == 4 and cuts_of(model) is None


def test_a_cut_is_taken_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    before, old = dict(model.named_parameters()), repr(model)
    undo = cut(model, Cuts({"0.weight": {0: (3,)}, "1.weight": {1: (3,)}}, {"0.out_features": 3}, ("0.bias",)))
    assert len(list(model.parameters())) == 4 and repr(model) != old
    undo()
    assert dict(model.named_parameters()) == before and repr(model) == old and cuts_of(model) is None
    first = Cuts({"0.weight": {0: (3,)}})
    apply_cuts(model, first)
    cut(model, Cuts({"0.weight": {0: (0,)}}))()
    assert cuts_of(model) == first and model[0].weight.shape == (3, 4)


def test_an_attribute_of_the_class_is_the_instances_own_after_the_cut_and_not_when_taken_back() -> None:
    model = Mistaken()
    undo = cut(model, Cuts({}, {"version": 5}))
    assert (model.version, Mistaken.version) == (5, 3)
    undo()
    assert "version" not in vars(model)


def test_a_masked_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    sparsify.convert(model)
    with pytest.raises(SparsifyError, match="the model carries masks"):
        apply_cuts(model, Cuts({"0.weight": {0: (1,)}}))


def test_the_model_remembers_through_copies_pickles_masks_and_folding() -> None:
    _, cuts, images = MODELS["resnet18"]
    model = apply_cuts(MODELS["resnet18"][0](), cuts).eval()
    assert cuts_of(model) == cuts and "sparsify_cuts" not in model.state_dict()
    expected = model(images)
    sparsify.convert(model)
    masked = copy.deepcopy(model)
    assert torch.equal(masked(images), expected)
    for other in (masked, pickle.loads(pickle.dumps(model)), sparsify.fold(model)):
        assert cuts_of(other) == cuts
        assert torch.equal(other(images), expected)


@st.composite
def two_cuts(draw: st.DrawFn) -> tuple[Cuts, Cuts, Cuts]:
    """Three cuts, each relative to what the ones before leave, of a Linear(9, 9) and its bias."""
    sizes, found = {("weight", 0): 9, ("weight", 1): 9, ("bias", 0): 9}, []
    for _ in range(3):
        removed: dict[str, dict[int, tuple[int, ...]]] = {}
        for (name, dimension), size in sizes.items():
            gone = draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
            sizes[name, dimension] -= len(gone)
            if gone:
                removed.setdefault(name, {})[dimension] = tuple(sorted(gone))
        attributes = draw(st.dictionaries(st.sampled_from(["in_features", "out_features"]), st.integers(1, 9)))
        found.append(Cuts(removed, attributes))
    return found[0], found[1], found[2]


@settings(max_examples=150, deadline=None)
@given(two_cuts())
def test_composed_cuts_do_what_the_two_do_one_after_the_other(three: tuple[Cuts, Cuts, Cuts]) -> None:
    first, second, third = three
    model = nn.Linear(9, 9)
    with torch.no_grad():
        model.weight.copy_(torch.arange(81.0).view(9, 9))
    steps, at_once = copy.deepcopy(model), copy.deepcopy(model)
    for one in three:
        apply_cuts(steps, one)
    together = compose(compose(first, second), third)
    apply_cuts(at_once, together)
    assert torch.equal(steps.weight, at_once.weight) and torch.equal(steps.bias, at_once.bias)
    assert (steps.in_features, steps.out_features) == (at_once.in_features, at_once.out_features)
    assert cuts_of(steps) == together == cuts_of(at_once) == compose(first, compose(second, third))


@settings(max_examples=100, deadline=None)
@given(two_cuts())
def test_what_is_beyond_the_first_of_two_cuts_is_the_second(three: tuple[Cuts, Cuts, Cuts]) -> None:
    first, second, _ = three
    rest = beyond(first, compose(first, second))
    assert rest.removed == second.removed
    assert compose(first, rest) == compose(first, second)


def test_composition_by_hand() -> None:
    first = Cuts({"w": {0: (1, 4)}, "v": {0: (0,)}}, {"a": 1, "b.1": 2}, ("c",))
    second = Cuts({"w": {0: (0, 1, 3), 1: (5,)}, "c": {0: (2,)}}, {"b": (3, 4), "a": 7}, ("d",))
    # Of 0..6 the first leaves 0 2 3 5 6: the second takes 0, 2 and 5 of them.
    assert compose(first, second) == Cuts(
        {"w": {0: (0, 1, 2, 4, 5), 1: (5,)}, "v": {0: (0,)}}, {"b.1": 2, "b": (3, 4), "a": 7}, ("c", "d")
    )
    assert list(compose(first, second).attributes) == ["b.1", "b", "a"]


def test_a_bias_that_was_added_may_be_cut_afterwards() -> None:
    def fresh() -> nn.Module:
        return nn.Linear(3, 5, bias=False)

    model = apply_cuts(fresh(), Cuts({"weight": {0: (1,)}}, {}, ("bias",)))
    apply_cuts(model, Cuts({"weight": {0: (3,)}, "bias": {0: (3,)}}))
    again = apply_cuts(fresh(), cuts_of(model))
    assert again.bias.shape == model.bias.shape == (3,)


def test_empty_cuts_change_nothing_and_attributes_within_attributes_are_set_in_their_order() -> None:
    model: Callable[[], Own] = own
    same = apply_cuts(model(), Cuts({"first.weight": {0: ()}}))
    assert same.first.weight.shape == (8, 6) and cuts_of(same) == Cuts({})
    changed = apply_cuts(model(), replace(OWN, attributes={**OWN.attributes, "shape": (1, 9), "shape.1": 6}))
    assert changed.shape == (1, 6) and changed(tokens()).shape == (20, 11)
