"""Files that the first writers of versions 1 and 2 wrote load bit for bit; samples/ is never written again."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsify import get_masks
from sparsify.export.save import inspect_file, load, read_state
from sparsify.surgery.shrink.cuts import cuts_of
from tests.formats.file.samples import CUTS, FOLDER, Version1, Version2, version2
from tests.formats.toys import UNSIGNED, Holder, Standardised, same_bits

SAMPLES = {"1": Version1, "2": version2}


def expected(model: nn.Module) -> dict[str, Tensor]:
    """Return the effective weights and all other tensors: +0.0 where a mask removes, unless every raw value matters."""
    tensors = {name: value.clone() for name, value in model.state_dict().items() if not name.endswith("_mask")}
    raw = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Standardised)}
    for name in tensors.keys() - raw:
        mask = model.state_dict().get(f"{name}_mask")
        if mask is not None:
            tensors[name].view(UNSIGNED[tensors[name].element_size()])[~mask] = 0
    return tensors


@pytest.mark.parametrize("version", SAMPLES)
def test_every_tensor_and_mask_comes_back_bit_for_bit(version: str) -> None:
    model = SAMPLES[version]()
    state, masks, _ = read_state(FOLDER / f"version{version}.safetensors")
    wanted = expected(model)
    assert set(state) == set(wanted)
    assert all(same_bits(state[name], tensor) for name, tensor in wanted.items())
    own = {name.removesuffix("_mask"): v for name, v in model.state_dict().items() if name.endswith("_mask")}
    assert set(masks) == own.keys() - {"again.weight"}
    assert all(torch.equal(masks[name], own[name]) for name in masks)


def test_the_first_version_loads_into_its_model_with_its_metadata() -> None:
    path = FOLDER / "version1.safetensors"
    model = Version1()
    for module in model.modules():
        if isinstance(module, Holder):
            module.weight.data.zero_()
            module.weight_mask.fill_(True)
    load(path, model)
    assert all(same_bits(tensor, model.state_dict()[name]) for name, tensor in expected(Version1()).items())
    metadata = read_state(path).metadata
    assert (metadata.recipe, metadata.seeds, metadata.metrics) == ("a: 1\n", {"train": 3}, {"accuracy": 0.5})
    rows = {row.name: (row.encoding, row.kept) for row in inspect_file(path).rows}
    assert rows["conv.weight"] == ("bitmask", 44) and rows["full.weight"] == ("whole", 16)
    assert rows["raw.weight"] == ("raw", 8) and rows["again.weight"] == ("alias of conv.weight", 44)


def test_the_second_version_cuts_and_masks_a_fresh_model() -> None:
    model = load(FOLDER / "version2.safetensors", Version2())
    assert cuts_of(model) == CUTS
    assert all(same_bits(model.state_dict()[name], tensor) for name, tensor in expected(version2()).items())
    assert get_masks(model).keys() == get_masks(version2()).keys()


def test_the_samples_are_what_the_first_writers_wrote() -> None:
    for version, size in (("1", 3106), ("2", 1122)):
        content = Path(FOLDER / f"version{version}.safetensors").read_bytes()
        assert len(content) == size and f'"version":"{version}"'.encode() in content
