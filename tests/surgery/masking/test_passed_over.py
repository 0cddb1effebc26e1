"""Warnings where other libraries pass masks over."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import MaskWarning


def pruned(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    sparsify.convert(model, **options)
    sparsify.Pruner(model, {"sparsity": 0.5, "schedule": "one_shot"}, total_steps=1).start()
    return model


def quantise(model: nn.Module) -> nn.Module:
    """As quantize_dynamic does: every module gets a `qconfig`, then those of plain classes are replaced."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.qconfig = torch.ao.quantization.default_dynamic_qconfig  # type: ignore[assignment]
        assert vars(module)["qconfig"] is torch.ao.quantization.default_dynamic_qconfig
    return model


def test_quantisation_of_masked_layers_is_warned_of() -> None:
    model = pruned()
    assert not hasattr(model[0], "qconfig")
    with pytest.warns(MaskWarning, match=r"leaves masked layers as they are: give it sparsify.fold\(model\)"):
        quantise(model)
    quantise(sparsify.fold(model))  # warnings are errors here


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore::UserWarning:torch")
def test_quantize_dynamic_is_seen() -> None:
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no engine for integers")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        with pytest.warns(MaskWarning, match="leaves masked layers as they are"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            made = torch.ao.quantization.quantize_dynamic(pruned(), {nn.Linear}, torch.qint8)
        assert isinstance(made[0], nn.Linear)  # left as it is
    finally:
        torch.backends.quantized.engine = before


def test_weight_of_torchao_in_place_of_a_masked_one_is_warned_of() -> None:
    class Integers(torch.Tensor):
        pass

    Integers.__module__ = "torchao.quantization"
    model = pruned()
    weight = torch.Tensor._make_subclass(Integers, torch.ones(16, 8))
    with pytest.warns(MaskWarning, match="torchao quantises the dense values"):
        model[0].weight = nn.Parameter(weight, requires_grad=False)
    plain = sparsify.fold(pruned())
    plain[0].weight = nn.Parameter(weight, requires_grad=False)
    model[2].weight = nn.Parameter(torch.zeros(4, 16))  # a plain one says nothing


def test_save_pretrained_is_warned_of_once_and_other_savings_are_not(tmp_path: Path) -> None:
    class Published(nn.Sequential):
        def save_pretrained(self, path: Path) -> None:
            torch.save(self.state_dict(), path)

    model = Published(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2))
    sparsify.convert(model)
    with pytest.warns(MaskWarning, match="save_pretrained writes the dense values") as caught:
        model.save_pretrained(tmp_path / "a.pt")
    assert len(caught) == 1 and caught[0].filename == __file__
    torch.save(model.state_dict(), tmp_path / "b.pt")
    sparsify.fold(model).save_pretrained(tmp_path / "c.pt")


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.ModuleDict({"net": m})], ids=["root", "inner"])
def test_masks_that_loading_leaves_out_are_warned_of(wrap: Callable[[nn.Module], nn.Module]) -> None:
    whole, part = wrap(pruned()), wrap(pruned(ignore=["last"]))
    with pytest.warns(MaskWarning, match=r"leaves out (net\.)?2\.weight_mask: the model has no masks there"):
        part.load_state_dict(whole.state_dict(), strict=False)
    whole.load_state_dict(part.state_dict(), strict=False)  # masks that are missing stay what they are
    renamed = {f"other.{name}": value for name, value in whole.state_dict().items()}
    with pytest.raises(RuntimeError, match="Unexpected key"):  # and no warning
        part.load_state_dict(renamed)


def test_masks_under_other_names_are_warned_of() -> None:
    renamed = {f"other.{name}": value for name, value in pruned().state_dict().items()}
    with pytest.warns(MaskWarning, match=r"leaves out other\.0\.weight_mask and 1 more") as caught:
        pruned().load_state_dict(renamed, strict=False)
    assert caught[0].filename == __file__


def test_buffers_of_the_models_own_called_mask_say_nothing() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(4, 4)
            self.register_buffer("causal_mask", torch.ones(4, 4).tril() > 0)

    model = Attention()
    state = copy.deepcopy(model.state_dict())
    sparsify.convert(model)
    model.load_state_dict(state, strict=False)


def test_torch_prune_does_not_replace_the_mask_of_a_converted_weight() -> None:
    model = pruned()
    x = torch.randn(3, 8)
    before, out = {name: value.clone() for name, value in model.state_dict().items()}, model(x)
    with pytest.raises(sparsify.SparsifyError, match="Linear.weight_mask is the mask of a converted weight"):
        torch.nn.utils.prune.l1_unstructured(model[0], "weight", amount=0.5)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and len(after) == len(before)
    assert torch.equal(model(x), out) and isinstance(model[0].weight, nn.Parameter)
    torch.nn.utils.prune.l1_unstructured(model[0], "bias", amount=0.5)  # there is no mask in its way
    sparsify.convert(model)
    assert "0.bias" in sparsify.get_masks(model)
