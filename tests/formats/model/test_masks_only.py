"""Masks alone: a file of them, and back onto a plain model, a converted one, and none that they do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import sparsify
from sparsify.errors import SparsifyError
from sparsify.formats.file.container import Part, container_chunks
from sparsify.formats.file.mask_file import StoredMask, inspect_masks
from sparsify.surgery.conversion.mask_extra import mask_also
from sparsify.surgery.mask_state.masks import masked_weights
from sparsify.surgery.shrink.cuts import Cuts, apply_cuts
from sparsify.weights import load_checkpoint


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(images))).mean((2, 3)))


def masked(keep: float = 0.3, also: tuple[str, ...] = (), ignore: tuple[str, ...] = ()) -> Net:
    torch.manual_seed(0)
    model = Net()
    sparsify.convert(model, ignore=ignore)
    mask_also(model, also)
    sparsify.set_masks(model, {name: torch.rand(m.shape) < keep for name, m in sparsify.get_masks(model).items()})
    return model


def assert_same(masks: dict[str, Tensor], model: nn.Module) -> None:
    expected = sparsify.get_masks(model)
    assert list(masks) == list(expected)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.02, 0.3, 1.0])
def test_masks_come_back_bit_for_bit_and_nothing_else_is_stored(tmp_path: Path, keep: float) -> None:
    model = masked(keep, also=("norm.bias", "first.bias"))
    size = sparsify.save(model, tmp_path / "m", format="masks", spec="timm:x", arguments={"num_classes": 5})
    assert size == (tmp_path / "m").stat().st_size
    assert_same(sparsify.load_masks(tmp_path / "m"), model)
    with safe_open(tmp_path / "m", framework="pt") as file:
        assert {*file.keys()} == {f"{name}.mask" for name in sparsify.get_masks(model)}
        assert sum(file.get_tensor(name).numel() for name in file.keys()) <= (432 + 7) // 8 + 2 + 2 + 10


def test_the_file_says_what_the_masks_are_of(tmp_path: Path) -> None:
    model = masked(also=("norm.bias",))
    kept = {name: int(mask.sum()) for name, mask in sparsify.get_masks(model).items()}
    sparsify.save(model, tmp_path / "m", format="masks", spec="timm:x", arguments={"num_classes": 5})
    found = inspect_masks(tmp_path / "m")
    assert found is not None and found.metadata.spec == "timm:x" and found.metadata.arguments == {"num_classes": 5}
    rows = {row.name: row for row in found.rows}
    assert rows["norm.bias"] == StoredMask("norm.bias", rows["norm.bias"].encoding, (16,), kept["norm.bias"], True)
    assert rows["first.weight"].shape == (16, 3, 3, 3) and rows["first.weight"].kept == kept["first.weight"]
    assert (found.masked_entries, found.kept) == (432 + 80, kept["first.weight"] + kept["last.weight"])
    assert found.sparsity == 1 - found.kept / 512
    sparsify.save(model, tmp_path / "s")
    assert inspect_masks(tmp_path / "s") is None


@pytest.mark.parametrize("format", ["masks", "sparse"])
def test_a_plain_model_takes_the_masks_and_keeps_its_weights(tmp_path: Path, format: str) -> None:
    model = masked(also=("norm.bias",), ignore=("last",))
    sparsify.save(model, tmp_path / "m", format=format)
    torch.manual_seed(1)
    target = Net()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    masks = sparsify.load_masks(tmp_path / "m", target)
    assert_same(masks, model)
    assert_same(masks, target)
    assert list(masked_weights(target)) == ["first.weight"]  # the bias is none that sparsities count
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())
    images = torch.randn(2, 3, 8, 8)
    plain = Net()
    plain.load_state_dict({n: v * masks[n] if n in masks else v for n, v in before.items()})
    assert torch.equal(target.eval()(images), plain.eval()(images))


def test_a_run_s_folder_and_a_model_with_masks_of_the_same_weights_do_too(tmp_path: Path) -> None:
    model, target = masked(), masked(0.9)
    sparsify.save(model, tmp_path / "model.safetensors")
    sparsify.load_masks(tmp_path, target)
    assert_same(sparsify.get_masks(model), target)


def test_a_weight_with_two_names_carries_its_mask_under_both(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
        model[2].weight = model[0].weight
        return model

    model, target = tied(), tied()
    sparsify.convert(model)
    sparsify.set_masks(model, {"0.weight": torch.eye(6, dtype=torch.bool)})
    sparsify.save(model, tmp_path / "m", format="masks")
    sparsify.load_masks(tmp_path / "m", target)
    assert torch.equal(target[0].weight_mask, torch.eye(6, dtype=torch.bool))
    assert torch.equal(target[2].weight_mask, torch.eye(6, dtype=torch.bool))


class Deeper(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(5, 5, bias=False)


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_ = nn.Conv2d(3, 16, 3)
        self.last = nn.Linear(16, 5)


def partly() -> Net:
    model = Net()
    sparsify.convert(model, ignore=["last"])
    return model


def further() -> Net:
    model = masked()
    mask_also(model, ["first.bias"])
    return model


MISFITS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "name": (Other, r"m: 1 of 2 masks has no parameter in the model: 'first.weight'; did you mean 'first_.weight'\?$"),
    "shape": (
        lambda: Net(8),
        "m: 2 of 2 masks have another shape than the parameter in the model: 'first.weight' 16x3x3x3 for 8x3x3x3; "
        "the masks are of timm:x with num_classes=5$",
    ),
    "more weights": (
        Deeper,
        "m: the masks are of a model without 'more.weight', which the given one has; the masks are of timm:x with",
    ),
    "a mask too few in the model": (partly, "m: the model carries no mask on last.weight, the file does$"),
    "a mask too many in the model": (
        further,
        "m: holds no mask for 'first.bias', masked in the model; give a plain model, or one masked alike$",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_masks_that_do_not_fit_are_one_line_and_leave_the_model_alone(tmp_path: Path, name: str) -> None:
    build, message = MISFITS[name]
    sparsify.save(masked(), tmp_path / "m", format="masks", spec="timm:x", arguments={"num_classes": 5})
    model = build()
    classes = [type(module) for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SparsifyError, match=message) as caught:
        sparsify.load_masks(tmp_path / "m", model)
    assert "\n" not in str(caught.value)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert [type(module) for module in model.modules()] == classes


def test_masks_that_a_plain_model_cannot_carry_leave_it_plain(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Embedding(4, 3))
    masks = {"0.weight": torch.ones(4, 3, dtype=torch.bool), "1.weight": torch.ones(4, 3, dtype=torch.bool)}
    write(tmp_path / "m", masks, dense=["0.bias"])
    with pytest.raises(SparsifyError, match="m: the model carries no mask on 1.weight .*, the file does"):
        sparsify.load_masks(tmp_path / "m", model)
    assert not sparsify.get_masks(model) and type(model[0]) is nn.Linear


def test_masks_of_a_model_that_was_cut_are_refused_in_one_line(tmp_path: Path) -> None:
    cuts = Cuts(
        {
            "first.weight": {0: (1, 4)},
            "first.bias": {0: (1, 4)},
            "last.weight": {1: (1, 4)},
            **{f"norm.{name}": {0: (1, 4)} for name in ("weight", "bias", "running_mean", "running_var")},
        },
        {"first.out_channels": 14, "norm.num_features": 14, "last.in_features": 14},
    )
    model = apply_cuts(Net(), cuts)
    sparsify.convert(model)
    with pytest.raises(SparsifyError, match="the model was cut smaller, so that its masks fit no fresh model"):
        sparsify.save(model, tmp_path / "m", format="masks")
    sparsify.save(model, tmp_path / "s", spec="timm:x")
    with pytest.raises(SparsifyError, match="14x3x3x3 for 16x3x3x3; the masks are of timm:x, which was cut smaller$"):
        sparsify.load_masks(tmp_path / "s", Net())
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_model_or_a_file_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SparsifyError, match="save: masks: the model carries no masks"):
        sparsify.save(Net(), tmp_path / "m", format="masks")
    sparsify.save(Net(), tmp_path / "d", format="dense")
    with pytest.raises(SparsifyError, match="d: holds no masks"):
        sparsify.load_masks(tmp_path / "d")
    with pytest.raises(SparsifyError, match="save: masks takes no dtype"):
        sparsify.save(masked(), tmp_path / "m", format="masks", dtype="float16")


def test_masks_alone_are_not_taken_for_a_model(tmp_path: Path) -> None:
    sparsify.save(masked(), tmp_path / "m.safetensors", format="masks", spec="cifar:resnet20")
    for model in (None, Net()):
        with pytest.raises(SparsifyError, match="holds masks alone, without weights: .* sparsify.load_masks"):
            sparsify.load(tmp_path / "m.safetensors", model)
    with pytest.raises(SparsifyError, match="masks alone, without weights; .* convert --masks"):
        load_checkpoint(Net(), tmp_path / "m.safetensors")


def write(path: Path, masks: dict[str, Tensor], dense: Any = (), **changed: Any) -> None:
    """Write a file of masks as docs/masks.md specifies it, every mask a bitmask, with `changed` table entries."""
    table = {
        name: {"encoding": "bitmask", "shape": [*mask.shape], "kept": int(mask.sum())} for name, mask in masks.items()
    }
    for entry in table.values():
        entry.update(changed)
    parts = []
    for name, mask in masks.items():
        stored = np.packbits(mask.reshape(-1).numpy(), bitorder="little")
        parts.append(Part(f"{name}.mask", "U8", stored.shape, stored.copy))
    text = {"format": "sparsify-masks", "version": "1", "masks": json.dumps(table), "dense": json.dumps(dense)}
    path.write_bytes(b"".join(bytes(chunk) for chunk in container_chunks(parts, text)))


def test_a_file_written_from_the_specification_is_read(tmp_path: Path) -> None:
    masks = {"first.weight": torch.rand(16, 3, 3, 3) < 0.3}
    write(tmp_path / "m", masks)
    assert torch.equal(sparsify.load_masks(tmp_path / "m")["first.weight"], masks["first.weight"])


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "encoding": ({"encoding": "morse"}, "no known encoding"),
    "another encoding": ({"encoding": ["bitmask"]}, "no known encoding"),
    "shape": ({"shape": [16, 3, 3, -3]}, "no known encoding and shape"),
    "a larger shape": ({"shape": [16, 3, 3, 4]}, "altered"),
    "a shape beyond belief": ({"shape": [2**40]}, "does not fit its shape"),
    "count": ({"kept": 17}, "altered"),
    "a count of more than there are": ({"kept": 1000}, "no number of entries"),
    "a count that is no number": ({"kept": True}, "no number of entries"),
    "dense": ({"dense": {"a": 1}}, "does not tell which parameters have no mask"),
    "also": ({"also": "yes"}, "no number of entries|neither true nor false"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_table_that_does_not_fit_its_masks_is_refused(tmp_path: Path, name: str) -> None:
    changed, message = LIES[name]
    mask = torch.zeros(16, 3, 3, 3, dtype=torch.bool)
    mask.view(-1)[:40] = True
    write(tmp_path / "m", {"first.weight": mask}, **changed)
    with pytest.raises(SparsifyError, match=message) as caught:
        sparsify.load_masks(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    sparsify.save(masked(), tmp_path / "m", format="masks")
    good = (tmp_path / "m").read_bytes()
    for place in range(8, len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "m").write_bytes(bytes(damaged))
        with pytest.raises(SparsifyError):
            sparsify.load_masks(tmp_path / "m")
