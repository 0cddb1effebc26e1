"""Scores relative to a layer or unit: LAMP, distances between filters, the scales of norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ...calls import inputs_of, run
from ...errors import SparsifyError
from ...surgery.mask_state.masks import Layout, MaskedWeight, all_masked_weights, layout, masked_weights
from ..preserve_state import preserve_state
from ..selection.granularity import rows, set_rows

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def layer_adaptive(weight: Tensor, mask: Tensor) -> Tensor:
    """Return w^2 / sum of v^2 over the weights v that are at least as large, float64, 0 where `mask` removes.

    Among equal ones the later counts as larger.
    """
    squares = torch.where(mask, weight, 0).to(torch.float64).square().flatten()
    ordered, order = squares.sort(stable=True)
    as_large = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(as_large > 0, ordered / as_large, 0)
    return scores.view(weight.shape)


def summed_distances(model: nn.Module, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for each entry the sum of Euclidean distances from its unit to the others of its matrix, float64.

    Entries that `masks` remove count as 0. A removed unit has score 0 and does not count as a neighbour.
    """
    scores = {}
    for name, weight in weights.items():
        own = layout(masked_weights(model)[name])
        units = rows(torch.where(masks[name], weight, 0).to(torch.float64), own)
        kept = rows(masks[name], own).any(1)
        sums = torch.zeros(len(units), dtype=torch.float64, device=weight.device)
        matrices = prod(weight.shape[d] for d in own.matrices)
        for ids in torch.arange(len(units), device=weight.device).chunk(max(1, matrices)):
            left = ids[kept[ids]]
            distances = torch.cdist(units[left], units[left], compute_mode="donot_use_mm_for_euclid_dist")
            sums[left] = distances.sum(1)
        scores[name] = _spread(sums, weight, own)
    return scores


def _spread(units: Tensor, weight: Tensor, own: Layout) -> Tensor:
    """Return a score per unit as one per entry, shaped like the weight."""
    scores = torch.empty(weight.shape, dtype=torch.float64, device=weight.device)
    set_rows(scores, units[:, None].expand(rows(weight, own).shape), own)
    return scores


def norm_scales(model: nn.Module, names: Iterable[str], example_input: Any) -> dict[str, Tensor]:
    """Return for each entry |scale| of its unit in the norm that takes the layer's output, float64.

    Layer and norm are those whose output and input are one tensor as the model runs on `example_input`, in eval mode;
    of several norms the largest scale counts. Raises SparsifyError for a weight without one, naming it.
    """
    modules, norms = _followed(model, example_input)
    scores = {}
    for name in names:
        weight = masked_weights(model)[name]
        own = layout(weight)
        units = len(rows(weight.mask, own))
        found = [norm.weight for module in modules[name] for norm in norms.get(id(module), [])]
        scales = [scale.detach().to(torch.float64).abs() for scale in found if len(scale) == units]
        if not scales:
            raise SparsifyError(
                f"criterion 'bn_scale': no norm with a scale takes the output of {name}, so its units have no score; "
                "leave it dense with 'ignore'"
            )
        scores[name] = _spread(torch.stack(scales).amax(0), weight.parameter, own)
    return scores


def _followed(model: nn.Module, example_input: Any) -> tuple[dict[str, list[nn.Module]], dict[int, list[Any]]]:
    """Return the modules that own each weight, and by module id the norms whose input is that module's output."""
    first: dict[int, MaskedWeight] = {}
    owners: dict[str, list[nn.Module]] = {}
    for weight in all_masked_weights(model):
        name = first.setdefault(id(weight.parameter), weight).name
        owners.setdefault(name, []).append(weight.module)
    made: list[tuple[nn.Module, Any]] = []  # outputs are kept alive, so that ids stay unique
    norms: dict[int, list[Any]] = {}

    def taken(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        for module, output in made:
            if inputs and output is inputs[0]:
                norms.setdefault(id(module), []).append(norm)

    with ExitStack() as hooks, preserve_state(model, [], training=False), torch.no_grad():
        for module in {id(one): one for several in owners.values() for one in several}.values():
            hooks.enter_context(module.register_forward_hook(lambda one, _, output: made.append((one, output))))
        for module in model.modules():
            if isinstance(module, _NORMS) and module.weight is not None:
                hooks.enter_context(module.register_forward_pre_hook(taken))
        run(model, inputs_of(example_input, "criterion 'bn_scale'", model))
    return owners, norms
