"""Masks on every parameter of models as people use them: the same bits, every mask live, none passed by."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import convert, fold, get_masks, set_masks, verify
from sparsify.surgery.conversion.mask_extra import mask_also
from sparsify.surgery.mask_state.masks import masked_weights

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:timm")]

SMALL = {"img_size": 32, "embed_dim": 48, "num_heads": 4, "depth": 2}
# name -> (side of the image, options)
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "timm:resnet18": (64, {}),
    "timm:resnetv2_50x1_bit": (64, {}),  # group norm, standardised weights
    "timm:convnext_atto": (64, {"drop_path_rate": 0.1}),  # LayerNorm2d, layer scale
    "timm:mobilenetv3_small_050": (64, {}),  # BatchNormAct2d
    "timm:regnety_002": (64, {}),
    "timm:nf_regnet_b0": (64, {}),  # a gain and a bias beside a computed weight
    "timm:beit_base_patch16_224": (32, SMALL),  # q_bias and v_bias, tables of positions
    "timm:vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "timm:cait_xxs24_224": (32, {"img_size": 32, "depth": 2}),
    "timm:levit_128s": (224, {}),
    "torchvision:swin_t": (64, {}),  # qkv.bias goes into a function
    "torchvision:vit_b_32": (224, {}),  # nn.MultiheadAttention
    "torchvision:regnet_x_400mf": (64, {}),
}
SAMPLE = {"timm:resnet18", "timm:beit_base_patch16_224", "timm:mobilenetv3_small_050", "torchvision:swin_t"}


def build(name: str) -> nn.Module:
    import timm
    import torchvision

    library, _, model = name.partition(":")
    if library == "timm":
        return timm.create_model(model, num_classes=7, **CASES[name][1])
    return torchvision.models.get_model(model, weights=None, num_classes=7)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.sample] if name in SAMPLE else []) for name in CASES]
)
def test_every_parameter_of(name: str) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(name)
    x = torch.randn(2, 3, CASES[name][0], CASES[name][0])
    keys, text, parameters = list(model.state_dict()), repr(model), dict(model.named_parameters())
    convert(model)
    weights = list(masked_weights(model))
    mask_also(model, parameters)
    assert repr(model) == text and list(masked_weights(model)) == weights
    assert [key for key in model.state_dict() if key in set(keys)] == keys
    assert get_masks(model).keys() == parameters.keys()
    report = verify(model, x)
    assert report.ok and report.identical_eval and report.identical_train, (str(report), report.notes)
    assert set(report.live) == parameters.keys()
    generator = torch.Generator().manual_seed(0)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), fold(model)(x))
