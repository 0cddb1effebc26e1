"""Taking dead channels out of a model, for the commands that write one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsify.errors import SparsifyError

from .show import say

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsify.calls import Inputs
    from sparsify.surgery.channels import Dead


def random_images(count: int, shape: tuple[int, ...]) -> Tensor:
    """Return images of normal noise, the same ones every time."""
    import torch

    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def example_inputs(model: nn.Module, count: int, shape: tuple[int, ...]) -> Inputs:
    """Return random inputs of a model: those that its configuration tells of, else images of this shape."""
    from sparsify.calls import Inputs
    from sparsify.declared_inputs import declared_inputs

    declared = declared_inputs(model, count, image_size=shape[-1] if shape else None)
    return Inputs(random_images(count, shape)) if declared is None else declared


def sizes_of(inputs: Inputs) -> str:
    """Return the sizes of one input of a batch, with names where a call has some."""
    named = {name: one for name, one in inputs.kwargs.items() if hasattr(one, "shape")}
    parts = ["x".join(map(str, one.shape[1:])) for one in inputs.args]
    return ", ".join([*parts, *(f"{name} {'x'.join(map(str, one.shape[1:]))}" for name, one in named.items())])


def check_options(command: str, shrink: bool, **given: object) -> None:
    """Raise SparsifyError for an option that only says how to shrink, where nothing is to be shrunk."""
    for name, value in given.items():
        if value is not None and not shrink:
            raise SparsifyError(f"{command}: --{name.replace('_', '-')} belongs to --shrink")


def shrunk(model: nn.Module, input_shape: tuple[int, ...], round_to: int | None, dead: Dead) -> nn.Module:
    """Return the smaller model, with those masks that still remove something, and say what went."""
    from sparsify.surgery.shrink.remask import mask_again
    from sparsify.surgery.shrink.shrink import shrink

    example = example_inputs(model, 1, input_shape)
    report = shrink(model, example, round_to=round_to, dead=dead)
    first, *rest = str(report).splitlines()
    say(f"{first}; for one input of {sizes_of(example)}:", *rest)
    return mask_again(report.model, model, report.cuts)
