"""Conversions of models as people use them, from timm, torchvision and torch.nn, proved by `verify`."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify import SparsifyError, convert, fold, get_masks, set_masks, trace, verify

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:timm")]
Case = tuple[nn.Module, tuple[Any, ...]]


def timm_model(name: str, size: int, dropping: str = "drop_path_rate") -> Callable[[], Case]:
    def build() -> Case:
        import timm

        return timm.create_model(name, num_classes=7, **{dropping: 0.1}), (torch.randn(2, 3, size, size),)

    return build


def torchvision_model(name: str, *shape: int, **options: Any) -> Callable[[], Case]:
    def build() -> Case:
        import torchvision

        model = torchvision.models.get_model(name, weights=None, num_classes=7, **options)
        return model, (torch.randn(2, 3, *shape),)

    return build


def detector() -> Case:
    import torchvision

    model = torchvision.models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        weights=None,
        weights_backbone=None,
        num_classes=5,
        box_score_thresh=0.0,
        box_detections_per_img=10,
    )
    targets = [{"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "labels": torch.tensor([1])}]
    return model, ([torch.rand(3, 100, 120)], targets)


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2), (torch.randn(2, 5, 16),)


# name -> (how to build it, how many weights the forward uses); the counts were taken by hand from the models' listings.
CASES: dict[str, tuple[Callable[[], Case], int]] = {
    "timm:vgg11_bn": (timm_model("vgg11_bn", 32, "drop_rate"), 11),
    "timm:resnet18": (timm_model("resnet18", 64), 21),
    "timm:vit_tiny_patch16_224": (timm_model("vit_tiny_patch16_224", 224), 50),
    "timm:convnext_atto": (timm_model("convnext_atto", 64), 41),
    "timm:swin_tiny_patch4_window7_224": (timm_model("swin_tiny_patch4_window7_224", 224), 53),
    "timm:beit_base_patch16_224": (timm_model("beit_base_patch16_224", 224), 50),
    "timm:mobilenetv3_small_050": (timm_model("mobilenetv3_small_050", 64), 54),
    "timm:efficientnet_b0": (timm_model("efficientnet_b0", 64), 82),
    "timm:nf_regnet_b0": (timm_model("nf_regnet_b0", 64), 87),
    "timm:dm_nfnet_f0": (timm_model("dm_nfnet_f0", 64), 82),
    "timm:sequencer2d_s": (timm_model("sequencer2d_s", 224), 203),
    "timm:coat_tiny": (timm_model("coat_tiny", 224), 102),
    "timm:levit_128s": (timm_model("levit_128s", 224), 52),
    "timm:swinv2_tiny_window8_256": (timm_model("swinv2_tiny_window8_256", 256), 77),
    "timm:tf_efficientnet_cc_b0_4e": (timm_model("tf_efficientnet_cc_b0_4e", 64), 90),
    "timm:vit_tiny_r_s16_p8_224": (timm_model("vit_tiny_r_s16_p8_224", 224), 51),
    "torchvision:vgg11_bn": (torchvision_model("vgg11_bn", 32, 32), 11),
    "torchvision:vit_b_32": (torchvision_model("vit_b_32", 224, 224), 50),
    "torchvision:swin_t": (torchvision_model("swin_t", 64, 64), 53),
    "torchvision:googlenet": (torchvision_model("googlenet", 96, 96, init_weights=True), 64),
    "torchvision:r3d_18": (torchvision_model("r3d_18", 4, 32, 32), 21),
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn": (detector, 73),
    "torch:TransformerEncoder": (encoder, 8),
}
SAMPLE = {
    "timm:resnet18",
    "timm:mobilenetv3_small_050",
    "timm:nf_regnet_b0",
    "timm:tf_efficientnet_cc_b0_4e",
    "torchvision:swin_t",
    "torchvision:googlenet",
    "torchvision:r3d_18",
    "torch:TransformerEncoder",
}
# Their own forward has control flow on values: trace() must say so, with the line.
UNTRACEABLE = {"torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", "torch:TransformerEncoder"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.sample] if name in SAMPLE else []) for name in CASES]
)
def test_conversion_of(name: str) -> None:
    torch.manual_seed(0)
    build, count = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, args = build()
    keys, text = list(model.state_dict()), repr(model)
    convert(model)
    assert repr(model) == text
    assert [key for key in model.state_dict() if key in set(keys)] == keys
    assert {key for key in model.state_dict() if key not in set(keys)} >= {f"{k}_mask" for k in get_masks(model)}
    report = verify(model, args)
    assert report.ok and report.identical_eval and report.identical_train, (str(report), report.notes)
    assert len(report.live) == count and len(report.live) + len(report.unused) == len(get_masks(model))
    generator = torch.Generator().manual_seed(0)
    set_masks(model, {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in get_masks(model).items()})
    model.eval()
    with torch.no_grad():
        expected = tensors(model(*args))
        assert all(torch.equal(a, b) for a, b in zip(expected, tensors(fold(model)(*args)), strict=True))
        if name in UNTRACEABLE:
            with pytest.raises(SparsifyError, match=r"\.py:\d+, in forward"):
                trace(model)
        else:
            assert all(torch.equal(a, b) for a, b in zip(expected, tensors(trace(model)(*args)), strict=True))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in tensors(item)]
