"""A saved model's layers: their sparsity, their cost in a forward pass, and their dead channels.

Multiply-adds and dead channels need the model; if it cannot be built, they are left out, and a note says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SparsifyError
from ..layer_summary import LayerSummary
from ..models import FROM_PYTHON
from .run_records import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..surgery.channels.groups import Channels


@dataclass(frozen=True)
class Layer(LayerSummary):
    """One masked weight with the number of its output channels, and of its dead ones.

    Values that need the model are None if it cannot be built.
    """

    channels: int | None = None
    dead: int | None = None


@dataclass(frozen=True)
class Layers:
    """A model's masked weights, in order, and totals of the whole model.

    `notes` says what is left out, and why.
    """

    layers: tuple[Layer, ...]
    parameters: int
    kept_parameters: int
    multiply_adds: int | None = None
    kept_multiply_adds: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """The number of output channels, over the layers for which it is known."""
        return sum(layer.channels or 0 for layer in self.layers)

    @property
    def dead(self) -> int:
        """The number of dead output channels, over the layers for which it is known."""
        return sum(layer.dead or 0 for layer in self.layers)


def read_layers(run: Run) -> Layers:
    """Return the layers of a run's saved model; the model is built and run once on zeros to count multiply-adds."""
    stored = tuple(Layer(row.name, tuple(row.shape), row.kept or 0) for row in run.file.masked_rows)
    removed = sum(layer.parameters - layer.kept for layer in stored)
    totals = (run.file.original_entries, run.file.entries - removed)
    try:
        model, example = _built(run)
    except SparsifyError as error:
        return Layers(stored, *totals, notes=(f"no multiply-adds and dead channels: {error}",))
    cut = run.file.original_entries - run.file.entries
    return _with_costs(stored, model, example, cut, run.shrunk.get("multiply_adds"))


def _built(run: Run) -> tuple[nn.Module, Tensor]:
    spec, shape = run.file.metadata.spec, run.file.metadata.extra.get("input_shape")
    if not spec or spec.startswith(FROM_PYTHON):
        raise SparsifyError(f"the model is {spec or 'not named'}, which only Python can build")
    if not shape:
        raise SparsifyError("the file does not give the shape of an input")
    import torch

    from ..export.save import load

    model = load(run.file.path)
    weight = next((value for value in model.parameters() if value.is_floating_point()), torch.zeros(()))
    return model.eval(), torch.zeros(1, *shape, dtype=weight.dtype)


def _with_costs(
    stored: tuple[Layer, ...], model: nn.Module, example: Any, cut: int, before: Sequence[int] | None
) -> Layers:
    """Return the layers with costs; `cut` counts parameters that a shrink removed, `before` holds the old cost."""
    from ..model_summary import summary
    from ..surgery.channels.analyse import analyse

    found, channels = summary(model, example), analyse(model, example)
    costs = {layer.name: (layer.multiply_adds, layer.kept_multiply_adds) for layer in found.layers}
    layers = []
    for layer in stored:
        size, dead = _channels(layer.name, channels)
        layers.append(Layer(layer.name, layer.shape, layer.kept, *costs.get(layer.name, (None, None)), size, dead))
    notes = tuple(f"not counted: multiply-adds of {operation}" for operation in found.uncounted)
    return Layers(
        tuple(layers),
        found.parameters + cut,
        found.kept_parameters,
        before[0] if before else found.multiply_adds,
        found.kept_multiply_adds,
        notes,
    )


def _channels(name: str, channels: Channels) -> tuple[int | None, int | None]:
    """Return the number of channels that a weight produces, and of those that cannot affect the outputs."""
    dimension = channels.produced.get(name)
    groups = channels.labels.get(name, {}).get(dimension) if dimension is not None else None
    if groups is None:
        return None, None
    inner = groups[groups >= 0]
    return len(groups), int(channels.dead[inner].sum())
