"""Calling a criterion, and checking its scores for the selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import SparsifyError
from ...processes.ranks import Group, average_over, together
from ...processes.shards import group_of_shards, is_sharded, local, part_of
from ...surgery.mask_state.masks import MaskedWeight, effective_weight
from ..preserve_state import preserve_state_and_gradients
from ..selection.k_lowest import ScoredTensor
from .table import CRITERIA, Absolute, Context, Criterion


def score_tensors(
    criterion: Criterion, weights: Mapping[str, MaskedWeight], context: Context, allowed: Mapping[str, Tensor] | None
) -> list[ScoredTensor]:
    """Return the scores of each weight with its mask, in order; `allowed` maps names to the entries that may be kept.

    Raises SparsifyError if the criterion leaves a weight out or scores it in another shape.
    """
    values = {name: effective_weight(weight) for name, weight in weights.items()}
    name_of_criterion = getattr(criterion, "__name__", type(criterion).__name__)
    if criterion in CRITERIA.values():
        answer: Any = criterion(values, context)
    else:
        with together(context.group):
            with preserve_state_and_gradients(context.model, [weight.parameter for weight in weights.values()]):
                answer = criterion(values, context)
            if not isinstance(answer, Mapping):
                kind = _kind(answer)
                raise SparsifyError(f"criterion '{name_of_criterion}' must return scores by weight name, not {kind}")
    with together(context.group):
        tensors = _checked(answer, name_of_criterion, weights, allowed)
    if getattr(criterion, "needs_data", False) and criterion not in CRITERIA.values() and context.group is not None:
        tensors = [_averaged(scored, context.group) for scored in tensors]
    return tensors


def _averaged(scored: ScoredTensor, group: Group) -> ScoredTensor:
    """Return the mean of the scores of all processes, each of which used its own data."""
    scores = scored.scores.abs() if scored.absolute else scored.scores.clone()
    scores = scores.contiguous()
    average_over([scores], group)
    return replace(scored, scores=scores, absolute=False)


def _checked(
    answer: Mapping[str, Any],
    criterion: str,
    weights: Mapping[str, MaskedWeight],
    allowed: Mapping[str, Tensor] | None,
) -> list[ScoredTensor]:
    tensors = []
    for name, weight in weights.items():
        given = answer.get(name)
        scores = given.values if isinstance(given, Absolute) else given
        if not isinstance(scores, Tensor) or scores.shape != weight.mask.shape:
            raise SparsifyError(
                f"criterion '{criterion}' must score '{name}' with a tensor of shape "
                f"{tuple(weight.mask.shape)}, not {_kind(scores)}"
            )
        if scores.layout is not torch.strided or scores.is_complex() or scores.is_meta:
            odd = scores.dtype if scores.layout is torch.strided else scores.layout
            kind = "meta" if scores.is_meta else str(odd).removeprefix("torch.")
            raise SparsifyError(f"criterion '{criterion}' must score '{name}' with real numbers, not a {kind} tensor")
        scores = scores.detach() if scores.is_floating_point() else scores.to(torch.float64)
        if is_sharded(weight.mask) and not is_sharded(scores):
            scores = part_of(weight.mask, scores)
        mask, entries = local(weight.mask), None if allowed is None else local(allowed[name])
        absolute, group = isinstance(given, Absolute), group_of_shards(weight.mask)
        tensors.append(ScoredTensor(name, local(scores).to(mask.device), mask, absolute, entries, group))
    return tensors


def _kind(value: Any) -> str:
    return f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
