"""The models of timm and torchvision, built without their costly initialisation, with inputs that they take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SIZES = (64, 96, 112, 128, 160, 192, 224, 256)
_SKIPPED = set(
    """uniform_ normal_ erfinv_ trunc_normal_ kaiming_uniform_ kaiming_normal_ xavier_uniform_
    xavier_normal_ orthogonal_""".split()
)
_PRIME = 1_000_003
_VIDEO = 2_000_000  # entries
_LARGE = 1 << 16  # entries: smaller tensors are initialised as their library does it


@dataclass(frozen=True)
class Try:
    """One way to build a model and to call it: arguments of its constructor and the shape of an image or video."""

    options: dict[str, Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return "x".join(map(str, self.shape)) + (f" ({given})" if given else "")


class _NoRandomFill(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _SKIPPED:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, Tensor) and tensor.numel() >= _LARGE:
                return tensor
        return func(*args, **(kwargs or {}))


def all_models() -> list[str]:
    """Return every model of timm and every torchvision model that is not quantized, as "zoo:name"."""
    ours = [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]
    return [f"timm:{name}" for name in timm.list_models()] + [f"torchvision:{name}" for name in ours]


def family(model: str) -> str:
    """Return the module of its library that defines a model: "timm.resnet", "torchvision.detection.ssd"."""
    zoo, _, name = model.partition(":")
    if zoo == "timm":
        return f"timm.{timm.model_entrypoint(name).__module__.rpartition('.')[2]}"
    module: str = torchvision.models.get_model_builder(name).__module__
    return "torchvision." + module.removeprefix("torchvision.models.")


def create(model: str, options: dict[str, Any], device: str = "cpu") -> nn.Module:
    """Return a model as its library builds it, its large tensors not yet filled (see `fill`)."""
    if device == "meta":
        try:
            with torch.device("meta"):
                return create(model, options)
        except NotImplementedError:  # torchvision's regnets read values of tensors that they make
            return create(model, options).to("meta")
    zoo, _, name = model.partition(":")
    with _NoRandomFill():
        if zoo == "timm":
            made: nn.Module = timm.create_model(name, **options)
            return made
        defaults: dict[str, Any] = {"weights": None}
        if family(model).split(".")[1] in ("detection", "segmentation"):
            defaults["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            defaults["init_weights"] = False
        made = torchvision.models.get_model(name, **defaults, **options)
        return made


def fill(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter and every batch norm's statistics values under which no branch of the model is idle.

    Weights are uniform within 1/sqrt(fan in). Scales and biases, which start at 0 and 1 and would hide a wrong
    branch, move by up to 0.1, statistics of batch norms likewise.
    """
    # Random numbers are most of the cost of a large model: a few are drawn and repeated, out of step with every shape.
    drawn = torch.empty(_PRIME).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
    at = 0

    def noise(tensor: Tensor, bound: float) -> Tensor:
        nonlocal at
        first, at = at, (at + tensor.numel()) % _PRIME
        repeated = drawn.repeat((first + tensor.numel()) // _PRIME + 1)
        return repeated[first : first + tensor.numel()].mul_(bound).view(tensor.shape).to(tensor.dtype)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(noise(parameter, 1 / math.sqrt(max(1, parameter[0].numel()))))
            elif parameter.is_floating_point():
                parameter.mul_(1 + noise(parameter, 0.1)).add_(noise(parameter, 0.1))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.mul_(1 + noise(buffer, 0.1))
            if name.endswith("running_mean"):
                buffer.add_(noise(buffer, 0.1))


def tries(model: str) -> Iterator[Try]:
    """Yield ways to build and call a model, the cheapest first; the library's own input size comes last."""
    zoo, _, name = model.partition(":")
    yield from _timm_tries(model) if zoo == "timm" else _torchvision_tries(model, name)


def _timm_tries(model: str) -> Iterator[Try]:
    options: dict[str, Any] = {}
    for drop in ("drop_path_rate", "drop_rate"):
        try:
            create(model, {**options, drop: 0.1}, "meta")
            options[drop] = 0.1
        except (TypeError, AssertionError):  # the constructor does not know it, or wants it to be zero
            continue
    config = getattr(create(model, options, "meta"), "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    for size in SIZES:
        if size < min(height, width):
            fixed = {"img_size": size} if config.get("fixed_input_size") else {}
            yield Try({**options, **fixed}, (channels, size, size))
    yield Try(options, (channels, height, width))


def _torchvision_tries(model: str, name: str) -> Iterator[Try]:
    part = family(model).removeprefix("torchvision.")
    if part.startswith("detection"):
        yield Try(_detection_options(part, name), (3, 100, 120))
    elif part.startswith("video"):
        for frames, size in ((4, 64), (8, 64), (16, 64), (16, 224)):
            yield Try({}, (3, frames, size, size))
    elif part.startswith("optical_flow"):
        yield Try({}, (3, 128, 128))
    else:
        key = {"vision_transformer": "image_size", "maxvit": "input_size"}.get(part)
        for size in SIZES[:-1]:
            yield Try({key: (size, size) if key == "input_size" else size} if key else {}, (3, size, size))
        yield Try({}, (3, 224, 224))
        yield Try({}, (3, 299, 299))


def _detection_options(part: str, name: str) -> dict[str, Any]:
    # With random weights no box would reach the usual threshold, and nothing would be compared.
    if part.endswith(("faster_rcnn", "mask_rcnn", "keypoint_rcnn")):
        fewer = {"rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 50, "box_batch_size_per_image": 32}
        found = {"box_score_thresh": 0.0, "box_detections_per_img": 10, **fewer}
    else:
        found = {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 50}
    return found if part.endswith(("ssd", "ssdlite")) else {**found, "min_size": 128, "max_size": 192}


def arguments(model: str, shape: tuple[int, ...], device: str = "cpu") -> tuple[Any, ...]:
    """Return positional arguments for a model's forward, in both modes: a batch of two, or of one large video."""
    part = family(model)
    generator = torch.Generator().manual_seed(1)

    def images(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    if part.startswith("torchvision.optical_flow"):
        return images(2, *shape), images(2, *shape), 2
    if part.startswith("torchvision.detection"):
        channels, height, width = shape
        pair = images(channels, height, width).sigmoid(), images(channels, height + 20, width).sigmoid()
        return list(pair), [_target(part, image) for image in pair]
    return (images(2 if math.prod(shape) < _VIDEO else 1, *shape),)


def _target(part: str, image: Tensor) -> dict[str, Tensor]:
    _, height, width = image.shape
    target = {
        "boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0], [30.0, 20.0, 90.0, 80.0]], device=image.device),
        "labels": torch.tensor([1, 1], device=image.device),
    }
    if part.endswith("mask_rcnn"):
        masks = torch.zeros(2, height, width, dtype=torch.uint8, device=image.device)
        masks[0, 10:60, 10:60] = 1
        masks[1, 20:80, 30:90] = 1
        target["masks"] = masks
    if part.endswith("keypoint_rcnn"):
        points = torch.linspace(32, 58, 17, device=image.device)
        target["keypoints"] = torch.stack([points, points, torch.ones_like(points)], -1).repeat(2, 1, 1)
    return target
