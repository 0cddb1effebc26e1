"""Files of models that were cut: the plan in the header, rebuilding in a fresh process, whole and damaged."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.export.save import inspect_file, load, read_state, save
from sparsify.formats.file.cuts_text import cuts_from, cuts_text, read_cuts
from sparsify.formats.file.inspection import TensorRow
from sparsify.formats.file.metadata import read_contents
from sparsify.surgery.mask_state.masks import get_masks, set_masks
from sparsify.surgery.shrink.cuts import Cuts, apply_cuts, cuts_of
from tests.formats.file.test_damage import _set, refused, refused_in_little_memory, rewritten
from tests.formats.toys import same_bits
from tests.surgery.cut_models import MODELS, OWN, RESNET, VIT, own, tokens

SPECS: dict[str, tuple[str, dict[str, Any], Cuts]] = {
    "resnet18": ("torchvision:resnet18", {"num_classes": 5}, RESNET),
    "vit": ("timm:vit_tiny_patch16_224", {"img_size": 32, "num_classes": 5, "depth": 2}, VIT),
}
FRESH = """
import sys, torch, sparsify
model = sparsify.load(sys.argv[1])
images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
with torch.no_grad():
    torch.save((model(images), len(sparsify.get_masks(model))), sys.argv[2])
"""


def sparse(model: nn.Module, keep: float = 0.4) -> nn.Module:
    sparsify.convert(model)
    generator = torch.Generator().manual_seed(3)
    masks = {name: torch.rand(mask.shape, generator=generator) < keep for name, mask in get_masks(model).items()}
    set_masks(model, masks)
    return model


def same_state(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return list(ours) == list(theirs) and all(same_bits(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vit", marks=[pytest.mark.slow, pytest.mark.sample])])
def test_a_named_model_is_cut_again_and_masked_in_a_fresh_process(tmp_path: Path, name: str) -> None:
    make, _, images = MODELS[name]
    spec, arguments, cuts = SPECS[name]
    model = sparse(apply_cuts(make(), cuts)).eval()
    save(model, tmp_path / "a", spec=spec, arguments=arguments)
    subprocess.run([sys.executable, "-c", FRESH, tmp_path / "a", tmp_path / "out"], check=True)
    outputs, masks = torch.load(tmp_path / "out", weights_only=True)
    with torch.no_grad():
        assert torch.equal(outputs, model(images))
    assert masks == len(get_masks(model)) > 0
    back = load(tmp_path / "a")
    assert cuts_of(back) == cuts
    save(back, tmp_path / "b", spec=spec, arguments=arguments)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("format", ["sparse", "dense"])
@pytest.mark.parametrize("given", ["fresh", "cut", "cut and masked", "built in that size"])
def test_a_model_of_ones_own_is_cut_if_it_is_fresh_and_loaded_if_it_is_not(
    tmp_path: Path, given: str, format: str
) -> None:
    model = sparse(apply_cuts(own(), OWN)).eval()
    save(model, tmp_path / "a", format=format)
    target: nn.Module = own(1)
    if given == "built in that size":
        target = own(1, hidden=6)
    elif given != "fresh":
        apply_cuts(target, OWN)
    if given == "cut and masked":
        sparsify.convert(target)
    if given == "built in that size":
        target.scale.copy_(model.scale)
    assert load(tmp_path / "a", target) is target and target.training
    assert torch.equal(target.eval()(tokens()), model(tokens()))
    assert target.out.weight is target.embedding.weight
    assert cuts_of(target) == cuts_of(model)
    assert bool(get_masks(target)) == (format == "sparse" or given == "cut and masked")
    again = load(tmp_path / "a", target)
    assert torch.equal(again(tokens()), model(tokens()))


def test_a_folded_load_is_plain_and_remembers(tmp_path: Path) -> None:
    model = sparse(apply_cuts(own(), OWN)).eval()
    save(model, tmp_path / "a")
    target = own(1).eval()
    assert load(tmp_path / "a", target, fold=True) is target and not get_masks(target)
    assert torch.equal(target(tokens()), model(tokens()))
    save(target, tmp_path / "b")
    assert cuts_of(load(tmp_path / "b", own(2))) == cuts_of(model)


def test_a_model_cut_twice_is_rebuilt_in_one_cut(tmp_path: Path) -> None:
    model = apply_cuts(own(), OWN)
    apply_cuts(model, Cuts({"out.weight": {0: (0, 9)}}))
    save(model, tmp_path / "a")
    assert same_state(load(tmp_path / "a", own(1)), model)


def test_an_added_bias_is_made_before_it_is_loaded(tmp_path: Path) -> None:
    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))

    model = apply_cuts(fresh(0), Cuts({"0.weight": {0: (3,)}, "1.weight": {1: (3,)}}, {}, ("0.bias",)))
    model[0].bias.data.normal_()
    save(model, tmp_path / "a")
    for target in (fresh(1), apply_cuts(fresh(1), cuts_of(model))):
        assert same_state(load(tmp_path / "a", target), model)
    only = apply_cuts(fresh(0), Cuts({}, {}, ("0.bias",)))
    save(only, tmp_path / "b")
    for target in (fresh(1), apply_cuts(fresh(1), cuts_of(only))):
        assert same_state(load(tmp_path / "b", target), only)


def test_only_attributes_may_be_cut(tmp_path: Path) -> None:
    save(apply_cuts(nn.Linear(4, 4), Cuts({}, {"out_features": 3})), tmp_path / "a")
    assert load(tmp_path / "a", nn.Linear(4, 4)).out_features == 3


def test_cuts_are_told_to_save_of_a_model_that_does_not_remember(tmp_path: Path) -> None:
    model = apply_cuts(own(), OWN)
    state, told = model.state_dict(), apply_cuts(own(1), OWN)
    told.load_state_dict(state)
    del told.__dict__["sparsify_cuts"]
    save(told, tmp_path / "a", cuts=OWN)
    assert same_state(load(tmp_path / "a", own(2)), model)
    save(model, tmp_path / "whole", cuts=Cuts({}))
    assert not read_contents(tmp_path / "whole").cuts and cuts_of(model) is not None
    with pytest.raises(SparsifyError, match="save: cuts names 'frist.weight', which the model does not have"):
        save(told, tmp_path / "b", cuts=Cuts({"frist.weight": {0: (1,)}}))
    with pytest.raises(SparsifyError, match="index 9 was cut out of 7 in the tensor 'first.weight'"):
        save(told, tmp_path / "b", cuts=Cuts({"first.weight": {0: (9,)}}))
    with pytest.raises(SparsifyError, match="a file holds up to 4,194,304 removed indices; this model has more"):
        save(told, tmp_path / "b", cuts=Cuts({"first.weight": {0: (2**40,)}}))
    assert not (tmp_path / "b").exists()


def test_a_head_that_was_replaced_is_not_in_the_plan(tmp_path: Path) -> None:
    model = apply_cuts(MODELS["resnet18"][0](), replace(RESNET, removed={**RESNET.removed, "fc.weight": {1: (0,)}}))
    model.fc = nn.Identity()
    save(model, tmp_path / "a")
    target = MODELS["resnet18"][0](1)
    target.fc = nn.Identity()
    assert same_state(load(tmp_path / "a", target), model)
    assert cuts_of(target) == RESNET


def test_a_model_that_was_not_cut_is_a_file_of_version_1_as_ever(tmp_path: Path) -> None:
    model = own()
    save(model, tmp_path / "a")
    assert read_contents(tmp_path / "a").header.metadata["version"] == "1"
    for format in ("sparse", "dense"):  # old readers refuse both
        save(apply_cuts(own(), OWN), tmp_path / "b", format=format)
        assert read_contents(tmp_path / "b").header.metadata["version"] == "2"


def test_the_table_tells_sizes_before_and_after(tmp_path: Path) -> None:
    model = sparse(apply_cuts(own(), OWN))
    save(model, tmp_path / "a")
    summary = inspect_file(tmp_path / "a")
    rows = {row.name: row for row in summary.rows}
    assert (rows["first.weight"].shape, rows["first.weight"].original) == ((6, 6), (8, 6))
    assert (rows["norm.running_var"].shape, rows["norm.running_var"].original) == ((6,), (8,))
    assert rows["second.bias"].original is None
    assert summary.original_entries - summary.entries == 2 * (6 + 4 + 6)
    assert summary.attributes["sizes.hidden.1.1"] == 6
    tied = apply_cuts(own(), Cuts({"out.weight": {0: (2,)}}))
    save(tied, tmp_path / "b")
    rows = {row.name: row for row in inspect_file(tmp_path / "b").rows}
    assert rows["embedding.weight"].original == rows["out.weight"].original == (11, 6)
    extended = apply_cuts(own(), Cuts({}, {}, ("first.bias",)))
    save(extended, tmp_path / "c")
    summary = inspect_file(tmp_path / "c")
    assert [row.name for row in summary.rows if row.added] == ["first.bias"]
    assert summary.entries - summary.original_entries == 8
    assert isinstance(summary.rows[0], TensorRow)


def test_a_model_that_cannot_be_cut_so_is_told_in_one_line_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(sparse(apply_cuts(own(), OWN)), path)

    def left_alone(target: nn.Module, message: str) -> None:
        before, names = copy.deepcopy(target.state_dict()), [dict(vars(module)) for module in target.modules()]
        with pytest.raises(SparsifyError, match=message) as caught:
            load(path, target)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
        assert [dict(vars(module)) for module in target.modules()] == names

    left_alone(own(1, hidden=7), "of another shape: first.weight is 6x6, the model's 7x6")
    fewer = own(1)
    del fewer.scale
    left_alone(fewer, "cannot be cut as the file's was: apply_cuts: the model has no parameter or buffer 'scale'")
    more = own(1)
    more.more = nn.Linear(2, 2)
    left_alone(more, "2 missing: more.weight, more.bias")
    unknown = own(1)
    unknown.shape = None  # type: ignore[assignment]
    left_alone(unknown, "shape is of type NoneType, its new value is integers")
    masked = own(1)
    sparsify.convert(masked)
    left_alone(masked, "the model carries masks; cut the plain model")
    unmaskable = own(1)
    unmaskable.first.register_buffer("weight_mask", None)
    left_alone(unmaskable, "the model carries no mask on first.weight")


def test_a_failure_after_the_cut_takes_the_cut_and_the_masks_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(sparse(apply_cuts(own(), OWN)), tmp_path / "a")
    target = own(1)
    before, kinds = dict(target.named_parameters()), [type(module) for module in target.modules()]

    def failing(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsify.formats.model.load.put", failing)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "a", target)
    assert dict(target.named_parameters()) == before and not get_masks(target)
    assert [type(module) for module in target.modules()] == kinds
    assert target(tokens()).shape == (20, 11) and cuts_of(target) is None


def test_the_file_of_a_whole_model_leaves_what_a_model_remembers(tmp_path: Path) -> None:
    model = apply_cuts(own(), OWN)
    save(model, tmp_path / "a", cuts=Cuts({}))
    target = apply_cuts(own(1), OWN)
    assert cuts_of(load(tmp_path / "a", target)) == cuts_of(model)


names = st.text(min_size=1, max_size=5)
indices = st.sets(st.integers(0, 300), min_size=1, max_size=20).map(lambda found: tuple(sorted(found)))
numbers = st.recursive(st.integers(-5, 2**40), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(names, st.dictionaries(st.integers(0, 5), indices, min_size=1, max_size=2), max_size=5),
    st.dictionaries(names, numbers, max_size=3),
    st.randoms(use_true_random=False),
)
def test_any_cuts_come_back_from_their_text_which_no_order_changes(
    removed: dict[str, dict[int, tuple[int, ...]]], attributes: dict[str, Any], random: Any
) -> None:
    cuts = Cuts(removed, attributes, tuple(name for name in ("x" * 9, "y" * 9) if name not in removed))
    text = cuts_text(cuts)
    stored = read_cuts(text)
    assert cuts_from(stored) == cuts and bool(stored)
    order = list(removed)
    random.shuffle(order)
    assert cuts_text(Cuts({name: removed[name] for name in order}, attributes, cuts.added)) == text
    assert cuts_text(cuts_from(stored)) == text
    for name, axes in removed.items():
        shape = [301 - len(axes.get(dimension, ())) for dimension in range(6)]
        assert stored.original(name, tuple(shape)) == (301,) * 6


def test_the_plan_of_a_network_is_small() -> None:
    # 48 convolutions of 512 channels, every second one removed: indices are told once for all tensors they cut.
    gone = [tuple(sorted((i * 7 + k) % 512 for i in range(256))) for k in range(48)]
    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    for k, indices in enumerate(gone):
        for name in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
            removed[f"layer{k}.{name}"] = {0: indices}
        removed.setdefault(f"layer{k + 1}.conv.weight", {})[1] = indices
    names_alone = sum(len(name) for name in removed)
    assert len(cuts_text(Cuts(removed))) < 48 * 512 / 4 + 2.2 * names_alone


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "model"
    save(sparse(apply_cuts(own(), OWN)), path)
    return path.read_bytes()


def change(edit: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        cuts = json.loads(header["__metadata__"]["cuts"])
        edit(cuts)
        header["__metadata__"]["cuts"] = json.dumps(cuts)

    return apply


def group(**entries: Any) -> Callable[[dict[str, Any]], None]:
    return change(lambda cuts: cuts["removed"].append({"indices": "01", "axes": {"zzz": [0]}} | entries))


MANY = "ff" * (2**19 + 1)
LIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "version 1": (_set("__metadata__", "version", value="1"), "its model was cut, which version 1 does not know"),
    "no JSON": (_set("__metadata__", "cuts", value="{"), "altered"),
    "deep JSON": (_set("__metadata__", "cuts", value="[" * 100_000), "altered"),
    "a list": (_set("__metadata__", "cuts", value="[]"), "its cuts are not"),
    "another key": (change(lambda cuts: cuts.update(scaled={})), "its cuts are not"),
    "no removed": (change(lambda cuts: cuts.pop("removed")), "its cuts are not"),
    "removed of another kind": (change(lambda cuts: cuts.update(removed={})), "its cuts are not"),
    "a group of another kind": (change(lambda cuts: cuts.update(removed=[[]])), "no indices and axes"),
    "a group without axes": (group(axes={}), "do not name tensors and their dimensions"),
    "a group with more": (group(more=1), "no indices and axes"),
    "indices that are a list": (group(indices=[1]), "no indices and axes"),
    "indices that are no digits": (group(indices="0g"), "altered"),
    "half a byte": (group(indices="1"), "altered"),
    "large digits": (group(indices="0A"), "hexadecimal"),
    "digits with spaces": (group(indices="01 01"), "hexadecimal"),
    "no indices": (group(indices=""), "hexadecimal"),
    "zeros at the end": (group(indices="0100"), "hexadecimal"),
    "too many indices": (group(indices=MANY), "remove more than 4,194,304 indices"),
    "too high an index": (group(indices="00" * 2**23 + "01"), "or too high ones"),
    "axes that are a list": (group(axes=[0]), "do not name"),
    "a dimension that is no list": (group(axes={"zzz": 0}), "do not name"),
    "a negative dimension": (group(axes={"zzz": [-1]}), "do not name"),
    "a dimension that is a truth value": (group(axes={"zzz": [True]}), "do not name"),
    "a dimension that no tensor has": (group(axes={"zzz": [64]}), "do not name"),
    "a dimension that this one has not": (group(axes={"norm.bias": [1]}), "nothing is left of dimension 1"),
    "a dimension of a scalar": (group(axes={"norm.num_batches_tracked": [0]}), "nothing is left of dimension 0"),
    "a dimension twice": (group(axes={"zzz": [0, 0]}), "indices twice from one dimension"),
    "a tensor's dimension in two groups": (group(axes={"first.weight": [0]}), "indices twice from one dimension"),
    "an index beyond the tensor": (group(indices="80", axes={"second.bias": [0]}), "index 7 was cut out of 7"),
    "a huge attribute": (change(lambda cuts: cuts["attributes"].update(x=10**30)), "neither an integer nor a list"),
    "text for an attribute": (change(lambda cuts: cuts["attributes"].update(x="3")), "neither an integer nor a list"),
    "a truth value": (change(lambda cuts: cuts["attributes"].update(x=[True])), "neither an integer nor a list"),
    "attributes of another kind": (change(lambda cuts: cuts.update(attributes=[])), "its cuts are not"),
    "an added tensor that is missing": (
        change(lambda cuts: cuts.update(added=["first.bias"])),
        "'first.bias', which is",
    ),
    "an added tensor that is cut": (change(lambda cuts: cuts.update(added=["first.weight"])), "one that is cut"),
    "an added tensor twice": (change(lambda cuts: cuts.update(added=["second.bias"] * 2)), "add a tensor twice"),
    "an added number": (change(lambda cuts: cuts.update(added=[[]])), "add a tensor twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_plan_is_refused_without_much_memory(whole: bytes, tmp_path: Path, lie: str) -> None:
    edit, message = LIES[lie]
    assert message in refused_in_little_memory(tmp_path / "a", rewritten(whole, edit), 2**20)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (group(), "no parameter or buffer 'zzz'"),
        (group(axes={"scale": [1]}), r"scale \(8\) has no dimension 1"),
        (change(lambda cuts: cuts["attributes"].update({"forward.__func__.__code__.co_flags": 1})), "no attribute"),
        (change(lambda cuts: cuts["attributes"].update({"training": 1})), "training is of type bool"),
        (change(lambda cuts: cuts["attributes"].update({"first.weight": 1})), "first.weight is of type Parameter"),
        (change(lambda cuts: cuts["attributes"].update({"shape": [1] * 100_000})), None),
    ],
)
def test_a_plan_that_asks_for_what_the_model_has_not_is_refused_and_the_model_left_alone(
    whole: bytes, tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str | None
) -> None:
    path, target = tmp_path / "a", own(1)
    path.write_bytes(rewritten(whole, edit))
    before = dict(target.named_parameters())
    assert set(read_state(path).state) == set(target.state_dict())
    if message is None:  # harmless: a size that is wrong shows in the forward
        assert len(load(path, target).shape) == 100_000
        return
    with pytest.raises(SparsifyError, match=message) as caught:
        load(path, target)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert dict(target.named_parameters()) == before


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_changed_byte_of_the_plan_is_noticed(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    begin = whole.index(b'"cuts":"')
    position = data.draw(st.integers(begin, whole.index(b'"', begin + 8)))
    altered = bytearray(whole)
    altered[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[position]))
    refused(tmp_path_factory.getbasetemp() / "altered", bytes(altered))
