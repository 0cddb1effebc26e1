"""The model that `sparsify convert` starts from, built by name with a checkpoint's weights, and its input shape."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sparsify.errors import SparsifyError

from .view.report import loaded_lines
from .view.show import say

if TYPE_CHECKING:
    from torch import nn


def build(
    checkpoint: str | None, spec: str, num_classes: int | None, pretrained: bool
) -> tuple[nn.Module, dict[str, Any], dict[str, Any] | None]:
    """Return the plain or masked model, its arguments, and its preprocessing as a dict, None if that is not known."""
    from sparsify.models import build_model
    from sparsify.start import read_start

    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    model = build_model(spec, pretrained=pretrained, **arguments)
    if checkpoint is None:
        if not pretrained:
            say(f"weights: fresh, as the model initialises them (no CHECKPOINT and no --pretrained){_hint(spec)}")
            return model, arguments, None
        from sparsify.training.data.published import published_preprocessing

        published = published_preprocessing(spec, model)
        return model, arguments, None if published is None else published.to_dict()
    start = read_start(checkpoint)
    loaded = start.into(model)
    if loaded.reinitialised and num_classes is None:
        # The head in the checkpoint is for another number of classes: the model is built to take it.
        arguments = {"num_classes": start.state[f"{loaded.prefix}{loaded.reinitialised[0]}"].shape[0]}
        model = build_model(spec, **arguments)
        loaded = start.into(model)
    say(*loaded_lines(loaded, checkpoint, model))
    return model, arguments, None if loaded.reinitialised else start.metadata.extra.get("preprocess")


def _hint(spec: str) -> str:
    """Return a hint if the folder of a transformers model holds weights that --pretrained would load, else ""."""
    from sparsify.transformers_models import PREFIX, has_weights, is_folder, parts

    name = parts(spec.removeprefix(f"{PREFIX}:"))[0]
    found = spec.startswith(f"{PREFIX}:") and is_folder(name) and has_weights(name)
    return f"; --pretrained takes those in {name}" if found else ""


def input_shape(model: nn.Module, spec: str, image_size: int | None) -> tuple[int, ...]:
    """Return the shape of an image as the model takes it, () if it takes anything but one image."""
    from sparsify.declared_inputs import declared_inputs

    declared = declared_inputs(model, 1, image_size=image_size)
    if declared is not None:
        return tuple(declared.kwargs["pixel_values"].shape[1:]) if set(declared.kwargs) == {"pixel_values"} else ()
    return image_shape(model, (3, usual_size(model, spec)), image_size)


def image_shape(model: nn.Module, own: tuple[int, int], image_size: int | None) -> tuple[int, int, int]:
    """Return the shape of an image of `image_size`, or else of its `own` channels and size, as the model takes it."""
    from sparsify.training.batches.input_size import input_for

    try:
        channels, size = input_for(model, own, image_size=image_size)
    except SparsifyError as error:
        raise SparsifyError(re.sub(r"^data\.image_size:", "--image-size:", str(error))) from None
    return channels, size, size


def usual_size(model: nn.Module, spec: str) -> int:
    """Return the image size that a model was made for; torchvision's do not declare it."""
    from sparsify.training.batches.input_size import declared_size

    return declared_size(model) or (224 if spec.startswith("torchvision:") else 32)
