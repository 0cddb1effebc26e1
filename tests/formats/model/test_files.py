"""Saving and loading models: what the file names, which weights are masked after loading, what is refused."""

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.export.save import load, read_state, save
from sparsify.surgery.mask_state.masks import get_masks, masked_weights, set_masks
from tests.formats.toys import Holder, holder, network
from tests.random_masks import randomly_masked


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))


def masked(seed: int = 0, keep: float = 0.3, ignore: tuple[str, ...] = ()) -> nn.Sequential:
    model = plain(seed)
    sparsify.convert(model, ignore=ignore)
    torch.manual_seed(seed + 100)
    set_masks(model, {name: torch.rand(mask.shape) < keep for name, mask in get_masks(model).items()})
    tensor_of(model, "1.running_mean").normal_()
    return model.eval()


def tensor_of(model: nn.Module, name: str) -> Tensor:
    tensor: Tensor = model.state_dict(keep_vars=True)[name]
    return tensor


def outputs(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        output: Tensor = model(torch.randn(2, 3, 8, 8, generator=generator))
    return output


def assert_same_masks(left: nn.Module, right: nn.Module) -> None:
    masks, others = get_masks(left), get_masks(right)
    assert list(masks) == list(others)
    assert all(torch.equal(masks[name], others[name]) for name in masks)


def test_a_plain_model_is_converted_and_gives_the_same_bits(tmp_path: Path) -> None:
    model, target = masked(), plain(1).eval()
    save(model, tmp_path / "a")
    assert load(tmp_path / "a", target) is target
    assert torch.equal(outputs(target), outputs(model))
    assert_same_masks(target, model)
    for name, weight in masked_weights(target).items():
        assert not weight.parameter[~weight.mask].any(), name


def test_only_the_weights_masked_in_the_file_are_masked_after_loading(tmp_path: Path) -> None:
    save(masked(ignore=("last",)), tmp_path / "a")
    assert list(get_masks(load(tmp_path / "a", plain(1)))) == ["0.weight"]


def test_a_converted_model_keeps_its_masks_and_those_the_file_lacks_are_all_ones(tmp_path: Path) -> None:
    model, target = masked(ignore=("first",)), masked(1)
    save(model, tmp_path / "a")
    load(tmp_path / "a", target)
    assert list(get_masks(target)) == ["0.weight", "4.weight"]
    assert get_masks(target)["0.weight"].all()
    assert torch.equal(get_masks(target)["4.weight"], get_masks(model)["4.weight"])
    assert torch.equal(outputs(target), outputs(model))


def test_a_mask_that_the_model_cannot_carry_is_an_error(tmp_path: Path) -> None:
    save(masked(), tmp_path / "a")
    with pytest.raises(SparsifyError, match="the model carries no mask on 4.weight, the file does"):
        load(tmp_path / "a", masked(1, ignore=("last",)))


@pytest.mark.parametrize("converted", [False, True])
def test_folded_loading_gives_a_plain_model_with_the_same_bits(tmp_path: Path, converted: bool) -> None:
    model, target = masked(), masked(1) if converted else plain(1).eval()
    save(model, tmp_path / "a")
    folded = load(tmp_path / "a", target, fold=True)
    assert list(folded.state_dict()) == list(plain().state_dict())
    assert torch.equal(outputs(folded), outputs(model))
    assert not get_masks(folded)
    assert (folded is target) != converted


@pytest.mark.parametrize("convert_first", [False, True])
def test_a_plain_or_fully_kept_model_round_trips(tmp_path: Path, convert_first: bool) -> None:
    model, target = plain().eval(), plain(1).eval()
    if convert_first:
        sparsify.convert(model)
    save(model, tmp_path / "a")
    load(tmp_path / "a", target)
    assert torch.equal(outputs(target), outputs(model))
    assert_same_masks(target, model)
    assert torch.equal(load_file(tmp_path / "a")["4.weight"], tensor_of(model, "4.weight"))


def test_a_loaded_model_saves_to_the_same_bytes(tmp_path: Path) -> None:
    save(masked(), tmp_path / "a", recipe="x: 1\n")
    save(load(tmp_path / "a", plain(1)), tmp_path / "b", recipe="x: 1\n")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_names_that_do_not_fit_are_listed_in_one_line_and_nothing_changes(tmp_path: Path) -> None:
    save(masked(), tmp_path / "a")
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Identity(), nn.Identity(), nn.Linear(4, 1))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(SparsifyError) as caught:
        load(tmp_path / "a", other)
    assert str(caught.value) == (
        f"{tmp_path / 'a'}: its tensors do not fit the model (2 missing: 3.weight, 3.bias; 7 unexpected: "
        "1.weight, 1.bias, 1.running_mean, 1.running_var, 1.num_batches_tracked, 4.weight and 1 more)"
    )
    assert list(other.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    save(masked(), tmp_path / "a")
    other = plain(1)
    other[4] = nn.Linear(6 * 36, 7)
    with pytest.raises(SparsifyError) as caught:
        load(tmp_path / "a", other)
    expected = "2 of another shape: 4.weight is 5x216, the model's 7x216, 4.bias is 5, the model's 7"
    assert str(caught.value) == f"{tmp_path / 'a'}: its tensors do not fit the model ({expected})"
    assert not get_masks(other)


def test_metadata_come_back_as_they_were_given(tmp_path: Path) -> None:
    class Recipe:
        def to_yaml(self) -> str:
            return "train: {seed: 3}  # \u00e9\n"

    save(
        network(),
        tmp_path / "a",
        spec="timm:resnet18",
        arguments={"num_classes": 10, "in_chans": 1, "pretrained": True, "checkpoint": "x.pt"},
        recipe=Recipe(),
        seeds={"train": 3},
        metrics={"accuracy": torch.tensor(0.5), "loss": np.float32(0.25)},
        extra={"note": ["a", None]},
    )
    metadata = read_state(tmp_path / "a").metadata
    assert metadata.spec == "timm:resnet18"
    assert metadata.arguments == {"num_classes": 10, "in_chans": 1}
    assert metadata.recipe == "train: {seed: 3}  # \u00e9\n"
    assert metadata.seeds == {"train": 3}
    assert metadata.metrics == {"accuracy": 0.5, "loss": 0.25}
    assert metadata.extra == {"note": ["a", None]}
    assert metadata.writer == sparsify.__version__
    with safe_open(tmp_path / "a", "np") as file:
        assert file.metadata()["format"] == "sparsify"
        assert json.loads(file.metadata()["masked"])["0.weight"] == {"encoding": "delta", "shape": [8, 4, 3, 3]}


@pytest.mark.parametrize("metrics", [{"loss": float("nan")}, {"model": object()}, {"many": torch.zeros(2)}])
def test_metrics_that_are_not_plain_json_are_refused_and_nothing_is_written(tmp_path: Path, metrics: Any) -> None:
    with pytest.raises(SparsifyError, match="metrics must be plain JSON"):
        save(network(), tmp_path / "a", metrics=metrics)
    assert not list(tmp_path.iterdir())


def test_a_file_that_names_no_model_asks_for_one(tmp_path: Path) -> None:
    save(network(), tmp_path / "a")
    with pytest.raises(SparsifyError, match="does not name its model; pass the model to load it into"):
        load(tmp_path / "a")


def test_a_named_model_is_rebuilt_in_evaluation_mode_with_masks(tmp_path: Path) -> None:
    model = randomly_masked(sparsify.build_model("cifar:resnet20", num_classes=7), 0.1, ignore=("last",)).eval()
    save(model, tmp_path / "a", spec="cifar:resnet20", arguments={"num_classes": 7})
    back = load(tmp_path / "a")
    assert not back.training
    assert_same_masks(back, model)
    assert torch.equal(outputs(back), outputs(model))
    assert torch.equal(outputs(load(tmp_path / "a", fold=True)), outputs(model))


def test_a_named_model_comes_back_in_the_types_of_the_file(tmp_path: Path) -> None:
    model = sparsify.build_model("cifar:resnet20", num_classes=7)
    sparsify.convert(model)
    model.to(torch.bfloat16)
    save(model, tmp_path / "a", spec="cifar:resnet20", arguments={"num_classes": 7})
    back = load(tmp_path / "a")
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}
    save(model.float(), tmp_path / "cast", spec="cifar:resnet20", arguments={"num_classes": 7}, dtype="bfloat16")
    assert {parameter.dtype for parameter in load(tmp_path / "cast").parameters()} == {torch.float32}


def test_a_file_cannot_ask_for_downloads_or_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsify.export.save.NOT_ARGUMENTS", ())
    save(network(), tmp_path / "a", spec="timm:resnet18", arguments={"checkpoint_path": "/tmp/evil.pt"})
    monkeypatch.undo()
    with pytest.raises(SparsifyError, match="may not contain checkpoint_path"):
        load(tmp_path / "a")


def test_a_cast_may_be_named_by_torch(tmp_path: Path) -> None:
    save(masked(), tmp_path / "a", dtype=torch.float16)
    assert read_state(tmp_path / "a")[2].cast == "float16"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_cast_rounds_floating_values_and_is_recorded(tmp_path: Path, dtype: str) -> None:
    model = masked()
    size = save(model, tmp_path / "a", dtype=dtype)
    state, masks, metadata = read_state(tmp_path / "a")
    wanted = getattr(torch, dtype)
    assert metadata.cast == dtype
    assert torch.equal(state["0.weight"], (tensor_of(model, "0.weight") * masks["0.weight"]).to(wanted))
    assert state["1.running_mean"].dtype == wanted
    assert state["1.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(masks["0.weight"], get_masks(model)["0.weight"])
    assert dtype == "float32" or size < save(model, tmp_path / "b")
    target = load(tmp_path / "a", plain(1))
    assert tensor_of(target, "0.weight").dtype == torch.float32
    assert torch.equal(tensor_of(target, "0.weight"), state["0.weight"].float())


def test_a_cast_that_overflows_names_the_tensor_and_leaves_nothing(tmp_path: Path) -> None:
    model = plain()
    tensor_of(model, "1.running_var").fill_(1e6)
    with pytest.raises(SparsifyError, match="1.running_var has values too large for float16"):
        save(model, tmp_path / "a", dtype="float16")
    assert not list(tmp_path.iterdir())
    tensor_of(model, "1.running_var").fill_(float("inf"))
    save(model, tmp_path / "a", dtype="float16")


def test_unknown_formats_and_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="unknown format 'spars'; did you mean 'sparse'"):
        save(network(), tmp_path / "a", format="spars")
    with pytest.raises(SparsifyError, match="unknown dtype 'bfloat'; did you mean 'bfloat16'"):
        save(network(), tmp_path / "a", dtype="bfloat")


def test_the_dense_file_loads_strictly_into_the_plain_model(tmp_path: Path) -> None:
    model = masked()
    save(model, tmp_path / "a", format="dense", spec="timm:x")
    tensors = load_file(tmp_path / "a")
    target = plain(1).eval()
    assert target.load_state_dict(tensors, strict=True)
    assert torch.equal(outputs(target), outputs(model))
    removed = tensors["0.weight"][~get_masks(model)["0.weight"]]
    assert not removed.view(torch.int32).any()
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["format"] == "pt"
    again = load(tmp_path / "a", plain(2).eval())
    assert not get_masks(again)
    assert torch.equal(outputs(again), outputs(model))
    assert read_state(tmp_path / "a").metadata.spec == "timm:x"


def test_the_dense_file_has_a_shared_tensor_under_each_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    sparsify.convert(model)
    set_masks(model, {"0.weight": torch.eye(4, dtype=torch.bool)})
    save(model, tmp_path / "a", format="dense")
    tensors = load_file(tmp_path / "a")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert torch.equal(tensors["0.weight"], tensor_of(model, "0.weight") * torch.eye(4))


def test_a_foreign_safetensors_file_is_a_plain_state_dict(tmp_path: Path) -> None:
    source, target = plain().eval(), plain(1).eval()
    save_file(source.state_dict(), tmp_path / "a", metadata={"format": "pt"})
    assert load(tmp_path / "a", target) is target
    assert torch.equal(outputs(target), outputs(source))
    assert read_state(tmp_path / "a").metadata.format == "plain"
    converted = masked(1)
    load(tmp_path / "a", converted)
    assert all(bool(mask.all()) for mask in get_masks(converted).values())
    with pytest.raises(SparsifyError, match="does not name its model"):
        load(tmp_path / "a")


def test_wrapped_models_are_saved_and_loaded_without_their_prefix(tmp_path: Path) -> None:
    model = masked()
    wrapped = nn.DataParallel(model)
    save(wrapped, tmp_path / "a")
    assert "0.weight" in read_state(tmp_path / "a").state
    target = plain(1).eval()
    compiled = cast(nn.Module, torch.compile(target))
    assert load(tmp_path / "a", compiled) is compiled
    assert torch.equal(outputs(target), outputs(model))


class Odd(nn.Module):
    def get_extra_state(self) -> object:
        return {"a": 1}

    def set_extra_state(self, state: object) -> None:
        pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.LazyLinear(3), "weight has no values yet"),
        (nn.Linear(2, 2, device="meta"), "weight has no values yet"),
        (Holder(torch.zeros(2, dtype=torch.complex128), torch.ones(2, dtype=torch.bool)), "complex128"),
        (nn.Sequential(Odd()), "0._extra_state is not a tensor but dict"),
    ],
)
def test_a_state_that_no_file_can_hold_is_named(tmp_path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(SparsifyError, match=message):
        save(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [nn.LazyLinear(5), nn.Linear(4, 5, device="meta")])
def test_a_model_without_values_is_not_loaded_in_silence(tmp_path: Path, model: nn.Module) -> None:
    save(nn.Linear(4, 5), tmp_path / "a")
    with pytest.raises(SparsifyError, match="the model's weight has no values yet"):
        load(tmp_path / "a", model)


def test_two_tensors_of_one_name_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    def add(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
        state[prefix + "weight.mask"] = torch.zeros(1)

    model = holder((8, 8))
    model.register_state_dict_post_hook(add)  # type: ignore[no-untyped-call]
    with pytest.raises(SparsifyError, match="two tensors of the model would be stored under one name"):
        save(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_saving_changes_nothing_in_the_model(tmp_path: Path) -> None:
    model = nn.Sequential(network(), holder((3, 3)))
    before = copy.deepcopy(model.state_dict())
    for format in ("sparse", "dense"):
        save(model[1], tmp_path / "a", format=format, dtype="float16")
    save(model, tmp_path / "a")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


ZOO = {
    "timm:resnet18": 64,
    "timm:coat_tiny": 224,
    "timm:nf_regnet_b0": 64,
    "timm:vit_tiny_patch16_224": 224,
    "timm:levit_128s": 224,
    "torchvision:vit_b_32": 224,
    "timm:sequencer2d_s": 224,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.sample) if n == "timm:resnet18" else n for n in ZOO]
)
def test_a_model_of_the_zoo_is_rebuilt_from_its_file_alone(tmp_path: Path, name: str) -> None:
    size = ZOO[name]
    torch.manual_seed(0)
    model = randomly_masked(sparsify.build_model(name), 0.2).eval()
    save(model, tmp_path / "a", spec=name)
    images = torch.randn(2, 3, size, size)
    back = load(tmp_path / "a")
    assert_same_masks(back, model)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(back(images), expected)
        save(model, tmp_path / "dense", format="dense")
        folded = load(tmp_path / "a", fold=True)
        assert not get_masks(folded)
        assert torch.equal(folded(images), expected)
        if name != "timm:nf_regnet_b0":  # its raw weights cannot hold the zeros
            target = sparsify.build_model(name).eval()
            target.load_state_dict(load_file(tmp_path / "dense"), strict=True)
            assert torch.equal(target(images), expected)


@pytest.mark.parametrize("spec", ["timm:hf-hub:someone/something", "timm:local-dir:/somewhere"])
def test_a_file_does_not_choose_what_is_fetched(tmp_path: Path, spec: str) -> None:
    save(network(), tmp_path / "model.safetensors", spec=spec)
    with pytest.raises(SparsifyError, match="is no name of a zoo's model"):
        load(tmp_path / "model.safetensors")
