"""Removing dead channels of a model, for the commands that write one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsify.errors import SparsifyError

from .show import say

if TYPE_CHECKING:
    from torch import nn

    from sparsify.calls import Inputs
    from sparsify.surgery.channels.analyse import Dead


def example_inputs(model: nn.Module, count: int, shape: tuple[int, ...]) -> Inputs:
    """Return random inputs of a model, the same every time: those that its configuration declares, else images."""
    import torch

    from sparsify.calls import Inputs
    from sparsify.declared_inputs import declared_inputs

    declared = declared_inputs(model, count, image_size=shape[-1] if shape else None)
    if declared is not None:
        return declared
    return Inputs(torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)))


def sizes_of(inputs: Inputs) -> str:
    """Return the sizes of one example of a batch as text, with the names of keyword arguments."""
    named = {name: one for name, one in inputs.kwargs.items() if hasattr(one, "shape")}
    parts = ["x".join(map(str, one.shape[1:])) for one in inputs.args]
    return ", ".join([*parts, *(f"{name} {'x'.join(map(str, one.shape[1:]))}" for name, one in named.items())])


def check_options(command: str, shrink: bool, **given: object) -> None:
    """Raise SparsifyError if an option of --shrink was given without it."""
    for name, value in given.items():
        if value is not None and not shrink:
            raise SparsifyError(f"{command}: --{name.replace('_', '-')} belongs to --shrink")


def shrunk(model: nn.Module, input_shape: tuple[int, ...], round_to: int | None, dead: Dead) -> nn.Module:
    """Return the smaller model, with those masks that still remove something, and print what was removed."""
    from sparsify.surgery.shrink.remask import mask_again
    from sparsify.surgery.shrink.shrink import shrink

    example = example_inputs(model, 1, input_shape)
    report = shrink(model, example, round_to=round_to, dead=dead)
    first, *rest = str(report).splitlines()
    say(f"{first}; for one input of {sizes_of(example)}:", *rest)
    return mask_again(report.model, model, report.cuts)
