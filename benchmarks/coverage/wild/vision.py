"""Vision models of ultralytics, segmentation-models-pytorch, torchvision, timm, MONAI and open_clip."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sparsify.calls import Inputs

from .example import Builder, Wild, images, noise, tokens

MONAI: dict[str, dict[str, Any]] = {
    "UNet": dict(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 16), strides=(2, 2), num_res_units=1),
    "DynUNet": dict(
        spatial_dims=3, in_channels=1, out_channels=2, kernel_size=[3, 3, 3], strides=[1, 2, 2],
        upsample_kernel_size=[2, 2], filters=[8, 16, 16],
    ),
    "UNETR": dict(
        in_channels=1, out_channels=2, img_size=(32, 32, 32), feature_size=8, hidden_size=32, mlp_dim=64, num_heads=4
    ),
}  # fmt: skip


def _ultralytics(name: str) -> Builder:
    def build() -> Wild:
        tasks = import_module("ultralytics.nn.tasks")
        kind = tasks.SegmentationModel if name.endswith("-seg") else tasks.DetectionModel
        return images(kind(f"{name}.yaml", nc=4, verbose=False))

    return build


def _segmentation(kind: str) -> Builder:
    def build() -> Wild:
        smp = import_module("segmentation_models_pytorch")
        model = getattr(smp, kind)("resnet18", encoder_weights=None, classes=4)
        return images(model)

    return build


def _torchvision(folder: str, name: str, size: int, other: int, **changes: Any) -> Builder:
    def build() -> Wild:
        module = import_module(f"torchvision.models.{folder}")
        model = getattr(module, name)(weights=None, **changes)
        if folder == "optical_flow":
            pair = [Inputs(noise(n, 3, s, s), noise(n, 3, s, s).flip(-1)) for n, s in ((1, size), (2, other))]
            return Wild(model, *pair)
        if folder == "detection":
            return Wild(model, Inputs([noise(3, size, size)]), Inputs([noise(3, size, size), noise(3, other, size)]))
        return images(model, size, other)

    return build


def _monai(kind: str) -> Builder:
    def build() -> Wild:
        model = getattr(import_module("monai.networks.nets"), kind)(**MONAI[kind])
        other = 32 if kind == "UNETR" else 24
        size = 32 if kind == "UNETR" else 16
        return Wild(model, Inputs(noise(1, 1, *[size] * 3)), Inputs(noise(2, 1, *[other] * 3)))

    return build


def _open_clip() -> Wild:
    model = import_module("open_clip").CLIP(
        embed_dim=24,
        vision_cfg=dict(image_size=32, layers=2, width=32, head_width=8, patch_size=8),
        text_cfg=dict(context_length=12, vocab_size=96, width=32, heads=4, layers=2),
    )
    return Wild(model, Inputs(noise(1, 3, 32, 32), tokens(1, 12)), Inputs(noise(2, 3, 32, 32), tokens(2, 12).flip(1)))


def _video() -> Wild:
    model = import_module("torchvision.models.video").mc3_18(weights=None, num_classes=4)
    return Wild(model, Inputs(noise(1, 3, 4, 32, 32)), Inputs(noise(2, 3, 6, 48, 48)))


def _naflex() -> Wild:
    model = import_module("timm").create_model(
        "naflexvit_base_patch16_gap", embed_dim=32, depth=2, num_heads=4, patch_size=8, num_classes=4
    )
    return images(model, 32, 48)


_NO_BACKBONE = dict(weights_backbone=None, num_classes=4)
VISION: dict[str, Builder] = {
    **{f"ultralytics {name}": _ultralytics(name) for name in ("yolov8n", "yolov8n-seg", "yolo11n", "yolo11n-seg")},
    **{f"smp {kind}": _segmentation(kind) for kind in ("Unet", "DeepLabV3Plus", "FPN", "MAnet", "UPerNet")},
    "torchvision fasterrcnn_mobilenet": _torchvision(
        "detection", "fasterrcnn_mobilenet_v3_large_320_fpn", 96, 128, min_size=96, max_size=160,
        box_score_thresh=0.0, **_NO_BACKBONE,
    ),
    "torchvision ssdlite": _torchvision(
        "detection", "ssdlite320_mobilenet_v3_large", 96, 128, score_thresh=0.0, **_NO_BACKBONE
    ),
    "torchvision deeplabv3_mobilenet": _torchvision(
        "segmentation", "deeplabv3_mobilenet_v3_large", 64, 96, **_NO_BACKBONE
    ),
    "torchvision lraspp": _torchvision("segmentation", "lraspp_mobilenet_v3_large", 64, 96, **_NO_BACKBONE),
    "torchvision raft_small": _torchvision("optical_flow", "raft_small", 128, 136),
    "torchvision mc3_18": _video,
    "timm NaFlexViT": _naflex,
    **{f"monai {kind}": _monai(kind) for kind in MONAI},
    "open_clip CLIP": _open_clip,
}  # fmt: skip
