"""Units that span layers: groups of coupled channels, and the parameters that mask and score them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import SparsifyError
from ...surgery.analysis.union_find import lowest_connected
from ...surgery.channels.analyse import Channels
from ...surgery.conversion.mask_extra import mask_also
from ...surgery.mask_state.masks import layout, masked_parameters, masked_sources, masked_weights, matrix_shapes
from ..selection.prunable_weights import maskable_weights


@dataclass(frozen=True)
class Produced:
    """A parameter that produces groups: its name, the dimension of the groups, the group id of each index (or -1)."""

    name: str
    dimension: int
    labels: Tensor

    def over_units(self, tensor: Tensor) -> Tensor:
        """Return a tensor shaped like the parameter as one row per index of the dimension, [indices, entries]."""
        return tensor.movedim(self.dimension, 0).reshape(len(self.labels), -1)


@dataclass(frozen=True)
class Layer:
    """A coupled layer: weights that share groups, directly or through others, and its prunable groups, int64 ids.

    `spare`: it also has groups that are not prunable. `shapes` are those of its weights' matrices.
    """

    weights: tuple[str, ...]
    groups: Tensor
    spare: bool
    shapes: tuple[torch.Size, ...]


@dataclass(frozen=True)
class Groups:
    """The groups of a model: their number, the parameters that they mask and that score them, and their layers.

    A parameter in `scored` has labels only for the groups that it scores. `notes` says which units stay, and why.
    """

    count: int
    produced: tuple[Produced, ...]
    scored: tuple[Produced, ...]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]

    @property
    def prunable(self) -> Tensor:
        """Which of them can be pruned, bool [count]."""
        return _marked(self.count, self.scored)


def learn_groups(model: nn.Module, channels: Channels, names: Iterable[str]) -> Groups:
    """Return the groups of `model`, and put masks, in place, on all parameters that produce them, norms and biases too.

    `names` are the masked weights that may be pruned. A group stays if one of its weights may not be pruned or has no
    mask. It is scored by its weights or, if it has none, by its other parameters. Raises SparsifyError if no group is
    left.
    """
    weights, others, kept = _producers(model, channels, set(names))
    prunable = torch.ones(channels.groups + 1, dtype=torch.bool, device="cpu")
    for labels in kept.values():
        prunable[labels] = False
    # The last entry is that of the label -1.
    prunable = prunable[:-1] & _marked(channels.groups, [*weights.values(), *others.values()])
    if not prunable.any():
        reason = next(iter([*kept, *channels.barriers]), "its layers make the outputs, which stay")
        raise SparsifyError(f"Pruner: no unit of this model can be removed: {reason}")
    order = {name: index for index, name in enumerate(masked_parameters(model))}
    produced = sorted((p for n, p in {**weights, **others}.items() if n in order), key=lambda one: order[one.name])
    weighed = _marked(channels.groups, weights.values())
    scored = [_only(one, prunable & (~weighed | (one.name in weights))) for one in produced]
    unweighed = _labelled(_only(one, ~weighed) for one in others.values())
    layers = _layers(_shapes(model), channels.groups, [*weights.values(), *unweighed], prunable)
    stay = (f"{len(set(labels[labels >= 0].tolist()))} units stay: {reason}" for reason, labels in kept.items())
    written = _labelled(_only(one, prunable) for one in produced)
    return Groups(channels.groups, written, _labelled(scored), layers, (*channels.barriers, *stay))


def _producers(
    model: nn.Module, channels: Channels, wanted: set[str]
) -> tuple[dict[str, Produced], dict[str, Produced], dict[str, Tensor]]:
    """Return the weights that produce groups, the other parameters that do, and {reason: groups that must stay}.

    The other parameters get masks, in place.
    """
    maskable = {id(model.get_parameter(name)) for name in maskable_weights(model)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first = {id(weight.parameter): name for name, weight in masked_parameters(model).items()}
    sources = {computed: name for name, computed in masked_sources(model).items()}
    others: dict[str, Produced] = {}
    weights: dict[str, Produced] = {}
    kept: dict[str, Tensor] = {}
    for computed, dimension in channels.produced.items():
        labels = channels.labels[computed][dimension]
        name = sources.get(computed, computed)
        own = first.get(id(parameters.get(name)), name)
        if name not in parameters:
            kept[f"{name} is no parameter and takes no mask"] = labels
        elif id(parameters[name]) not in maskable:
            others.setdefault(own, Produced(own, dimension, labels))
        else:
            weights.setdefault(own, Produced(own, dimension, labels))
            if own not in wanted:
                kept[f"{own} is ignored" if own in first.values() else f"{own} carries no mask"] = labels
    for name, reason in _mask_extra(model, [name for name in others if name not in first.values()]).items():
        kept[reason] = others.pop(name).labels
    return weights, others, kept


def _mask_extra(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Put masks on extra parameters, in place; return those that cannot have one, with the reason."""
    if not names:
        return {}
    try:
        mask_also(model, names)
    except SparsifyError as error:
        if len(names) == 1:
            return {names[0]: str(error)}
        return {name: reason for one in names for name, reason in _mask_extra(model, [one]).items()}
    return {}


def _marked(count: int, producers: Iterable[Produced]) -> Tensor:
    """Return for each group, bool [count], whether one of these produces it."""
    marked = torch.zeros(count + 1, dtype=torch.bool, device="cpu")
    for one in producers:
        marked[one.labels] = True
    return marked[:-1]


def _only(one: Produced, groups: Tensor) -> Produced:
    """Return the same producer with the labels of these `groups` (bool [groups]) alone."""
    chosen = torch.cat([groups, groups.new_zeros(1)])[one.labels]
    return Produced(one.name, one.dimension, torch.where(chosen, one.labels, -1))


def _labelled(producers: Iterable[Produced]) -> tuple[Produced, ...]:
    """Return those that produce a group."""
    return tuple(one for one in producers if (one.labels >= 0).any())


def _shapes(model: nn.Module) -> dict[str, tuple[torch.Size, ...]]:
    """Return the shapes of the matrices of every masked weight, and the shape of every other parameter."""
    shapes = {name: (parameter.shape,) for name, parameter in model.named_parameters(remove_duplicate=False)}
    found = {name: matrix_shapes(weight.mask.shape, layout(weight)) for name, weight in masked_weights(model).items()}
    return shapes | found


def _layers(
    shapes: Mapping[str, tuple[torch.Size, ...]], count: int, producers: Sequence[Produced], prunable: Tensor
) -> tuple[Layer, ...]:
    """Return the coupled layers, in order of their first groups: two groups of one producer are in one layer."""
    produced = [(one.name, one.labels[one.labels >= 0].numpy()) for one in producers]
    produced = [(name, ids) for name, ids in produced if len(ids)]
    left = np.concatenate([np.zeros(0, dtype=np.int64), *(ids for _, ids in produced)])
    right = np.concatenate([np.zeros(0, dtype=np.int64), *(np.full_like(ids, ids[0]) for _, ids in produced)])
    roots = lowest_connected(np.arange(count), left, right)
    weights: dict[int, list[str]] = {}
    for name, ids in produced:
        weights.setdefault(roots[ids[0]], []).append(name)
    layers = []
    for first in np.unique(roots):
        groups = torch.from_numpy(np.flatnonzero(roots == first))
        able = groups[prunable[groups]]
        if len(able):
            names = tuple(weights.get(first, ()))
            own = tuple(shape for name in names for shape in shapes[name])
            layers.append(Layer(names, able, len(able) < len(groups), own))
    return tuple(layers)
