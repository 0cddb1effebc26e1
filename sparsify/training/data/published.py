"""Preprocessing of images for the published weights of timm and torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...preprocess import Preprocessing


def published_preprocessing(spec: str, model: nn.Module) -> Preprocessing | None:
    """Return the preprocessing that timm or torchvision declares for the published weights of `spec`, None if neither.

    torchvision's includes the names of the classes.
    """
    prefix, _, name = spec.partition(":")
    if prefix == "timm":
        return _of_timm(model)
    return _of_torchvision(name) if prefix == "torchvision" else None


def _of_timm(model: nn.Module) -> Preprocessing | None:
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config({}, model=model)
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    transform = create_transform(is_training=False, **{key: config[key] for key in keys})
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    return preprocessing_of(mode, transform, config["interpolation"], config["mean"], config["std"], ())


def _of_torchvision(name: str) -> Preprocessing | None:
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(name).DEFAULT
    does = weights.transforms()
    if not hasattr(does, "crop_size") or len(does.resize_size) != 1 or len(does.crop_size) != 1:
        return None
    [resize], [crop] = does.resize_size, does.crop_size
    mean, std, names = tuple(does.mean), tuple(does.std), tuple(weights.meta.get("categories", ()))
    return Preprocessing("RGB", resize, (crop, crop), does.interpolation.value, mean, std, 3, names)


def preprocessing_of(
    mode: str, transform: Any, interpolation: str, mean: tuple[float, ...], std: tuple[float, ...], names: Sequence[str]
) -> Preprocessing | None:
    """Return timm's transform for evaluation as `Preprocessing`, None if it is not a resize and a centre crop."""
    from torchvision.transforms import CenterCrop, Resize

    resize, crop = [*list(transform.transforms), None, None][:2]
    if not isinstance(resize, Resize) or not isinstance(crop, CenterCrop) or not isinstance(resize.size, int):
        return None
    height, width = (int(size) for size in crop.size)
    return Preprocessing(mode, resize.size, (height, width), interpolation, mean, std, len(mean), tuple(names))
