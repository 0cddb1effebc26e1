"""Building the report of a pruning from its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import nn

from ..processes.ranks import gather
from ..processes.shards import count, group_of_shards, is_sharded, local
from ..surgery.ignore_patterns import keyword_clashes
from ..surgery.mask_state.masks import MaskedWeight, layout, masked_parameters, masked_weights
from .parts import Part
from .report import CoupledLayer, LayerSparsity, PruningReport, losses
from .selection.candidates import Candidates, EntryCandidates
from .selection.granularity import rows
from .selection.k_lowest import kept_in_rows
from .selection.prunable_weights import maskable_weights
from .selection.scopes import Due, Member
from .settings.prune import Pruning
from .units.group_candidates import GroupCandidates


def pruning_report(model: nn.Module, pruning: Pruning, parts: Sequence[Part], removed_before: int = 0) -> PruningReport:
    """Return the report on the present masks of a pruning's parts."""
    reports = [_part_report(model, part.pruning, part.candidates) for part in parts]
    clashes = keyword_clashes(maskable_weights(model), pruning.ignore)
    report = reports[0] if len(reports) == 1 else _together(reports, parts)
    return replace(report, notes=(*clashes, *report.notes), removed_before=removed_before)


def _part_report(model: nn.Module, pruning: Pruning, candidates: Candidates) -> PruningReport:
    parameters, weights = masked_parameters(model), masked_weights(model)
    masks = {name: parameters[name].mask for name in candidates.names}
    members = candidates.members(masks)
    due = candidates.due(masks, Due(pruning.target, amount=pruning.amount))
    size = sum(member.size for member in members)
    report = PruningReport(
        requested=float(Fraction(due, size) if pruning.amount is not None and size else pruning.target),
        due=due,
        chosen=sum(member.size - count(member.mask) for member in members),
        choices=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=tuple(_layer(weights[name]) for name in candidates.names if name in weights),
        of=pruning.of or pruning.granularity.choices,
        share=float(candidates.removed(masks)),
        kind=pruning.granularity.choices,
    )
    if not isinstance(candidates, GroupCandidates):
        notes = candidates.notes if isinstance(candidates, EntryCandidates) else ()
        return replace(report, notes=(*notes, *_bounds_note(pruning, members)))
    coupled = [
        CoupledLayer(layer.weights, member.size, member.size - int(member.mask.count_nonzero()))
        for layer, member in zip(candidates.groups.layers, members, strict=True)
    ]
    return replace(report, coupled=tuple(coupled), notes=(*candidates.groups.notes, *_bounds_note(pruning, members)))


def _bounds_note(pruning: Pruning, members: Sequence[Member]) -> list[str]:
    """Return a line with the lowest and highest sparsity of a layer, if layers have bounds."""
    reached = sorted((1 - float(one.mask.float().mean()), one.name) for one in members if one.size)
    if not reached or (pruning.least is None and pruning.most is None):
        return []
    bounds = [f"{key} {float(v):g}" for key, v in (("least", pruning.least), ("most", pruning.most)) if v is not None]
    (low, lowest), (high, highest) = reached[0], reached[-1]
    return [f"sparsity of a layer, {' and '.join(bounds)}: from {low:.4f} ({lowest}) to {high:.4f} ({highest})"]


def _together(reports: Sequence[PruningReport], parts: Sequence[Part]) -> PruningReport:
    """Return one report on all parts, which contains theirs."""
    kinds = {report.of for report in reports}
    size = sum(report.size for report in reports)
    due, chosen, choices = (sum(getattr(one, key) for one in reports) for key in ("due", "chosen", "choices"))
    return PruningReport(
        requested=sum(report.requested * report.size for report in reports) / max(1, size),
        due=due,
        chosen=chosen,
        choices=choices,
        parameters=reports[0].parameters,
        layers=tuple(layer for report in reports for layer in report.layers),
        coupled=tuple(layer for report in reports for layer in report.coupled),
        notes=tuple(note for report in reports for note in report.notes),
        of=kinds.pop() if len(kinds) == 1 else "entries",
        share=chosen / max(1, choices),
        kind=reports[0].kind if len({report.kind for report in reports}) == 1 else "entries",
        parts=tuple((part.match, report) for part, report in zip(parts, reports, strict=True)),
    )


def _layer(weight: MaskedWeight) -> LayerSparsity:
    mask = weight.mask
    kept = kept_in_rows(rows(local(mask), layout(weight)))
    if is_sharded(mask):
        kept = torch.cat(gather(kept, group_of_shards(mask)))
    dead = tuple((kept == 0).nonzero().flatten().tolist()) if mask.numel() else ()
    return LayerSparsity(weight.name, tuple(mask.shape), mask.numel(), mask.numel() - int(kept.sum()), len(kept), dead)


def losses_of(model: nn.Module, parts: Sequence[Part]) -> list[str]:
    """Return lines on layers and units of `parts` that lost all their weights, see `losses`."""
    reports = ((part, pruning_report(model, part.pruning, (part,))) for part in parts)
    return [line for part, one in reports for line in losses(one, filters=part.pruning.granularity.name != "unit")]
