"""The parts of a pruning: the weights of each rule, and all other weights, with their settings and candidates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..errors import SparsifyError
from ..surgery.channels.analyse import Channels
from ..surgery.ignore_patterns import PatternError
from ..surgery.mask_state.masks import MaskedWeight, kept_of
from ..surgery.rules.table import Rule
from .build_candidates import build_candidates
from .criteria.gradients import with_first_input
from .criteria.step_sums import StepSums
from .criteria.table import CRITERIA, Context, Criterion
from .mask_update import from_present, update_masks
from .schedules import Update, update_plan
from .selection.candidates import Candidates, check_amount
from .selection.prunable_weights import matching_weights, pruned_weights
from .selection.scopes import SCOPES
from .settings.prune import Pruning
from .settings.shards import not_on_shards
from .units.group_candidates import GroupCandidates


@dataclass(frozen=True)
class Part:
    """Weights that are pruned by one criterion, granularity, scope and sparsity.

    The plans of all parts have the same number of updates, on the same steps; `match` is the rule's, () without one.
    """

    match: tuple[str, ...]
    pruning: Pruning
    plan: tuple[Update, ...]
    candidates: Candidates
    criterion: Criterion

    def needs(self, what: str) -> bool:
        """Whether the criterion is marked as one that needs "data" or an "input"."""
        if what == "data" and self.adds_over_steps:
            return any(not update.step and update.sparsity != 0 for update in self.plan)
        return bool(getattr(self.criterion, f"needs_{what}", False))

    @property
    def adds_over_steps(self) -> bool:
        """Whether the criterion is marked as one that adds over the steps of training."""
        return bool(getattr(self.criterion, "adds_over_steps", False))


def make_parts(
    model: nn.Module,
    pruning: Pruning,
    times: tuple[int, int | None],
    example_input: Any,
    channels: Channels | None,
    rules: Mapping[str, Rule] | None,
    examples: Sequence[Any],
) -> tuple[Part, ...]:
    """Return the parts of a pruning of `model`, those of rules first; `times` is (total_steps, steps_per_epoch).

    Raises SparsifyError as `build_candidates` does, for an amount larger than a group of the scope, and for a rule
    without a weight left to match.
    """
    parts = []
    for match, own, names in _settings(model, pruning):
        candidates = build_candidates(model, own, names, example_input, channels, rules, examples)
        check_amount(model, candidates, own.amount, SCOPES[own.scope])
        criterion = own.criterion.function or CRITERIA[own.criterion.name]
        parts.append(Part(match, own, tuple(update_plan(own, *times)), candidates, criterion))
    owners: dict[str, Part] = {}
    for part in parts:
        for name in part.candidates.names:
            if name in owners:
                raise SparsifyError(
                    f"pruning.rules: {name} is tied to weights of two parts, {_named(owners[name])} and "
                    f"{_named(part)}; let one rule match them"
                )
            owners[name] = part
    return tuple(parts)


def check_shards(parts: Iterable[Part]) -> None:
    """Raise SparsifyError for settings that do not work on sharded weights."""
    for part in parts:
        what = not_on_shards(part.pruning)
        if what is None and isinstance(part.candidates, GroupCandidates):
            what = "units of coupled channels (leave out example_input)"
        if what is not None:
            raise SparsifyError(f"pruning: {what}: not on a model that fully_shard has cut; prune before it is cut")


def _named(part: Part) -> str:
    return f"the rule for {', '.join(part.match)}" if part.match else "what no rule matches"


def _settings(model: nn.Module, pruning: Pruning) -> Iterator[tuple[tuple[str, ...], Pruning, list[str]]]:
    """Yield the match, the settings and the weights of each part."""
    left = pruned_weights(model, pruning.ignore, pruning.only or ())
    for index, rule in enumerate(pruning.rules or ()):
        matched = matching_weights(model, rule.match, ("rules", index, "match"))
        names = [name for name in left if name in matched]
        if not names:
            raise PatternError(
                ("rules", index, "match"),
                f"no weight is left for {', '.join(rule.match)}: other rules, 'ignore' or 'only' come first",
            )
        left = [name for name in left if name not in matched]
        if not rule.ignore:
            yield rule.match, pruning.under(rule), names
    if left:
        yield (), pruning, left


def sums_of(parts: Iterable[Part]) -> StepSums:
    """Return the sums over steps that criteria of `parts` need."""
    adding = [part for part in parts if part.adds_over_steps and any(update.step for update in part.plan)]
    return StepSums(name for part in adding for name in part.candidates.scored)


def with_data(
    parts: Iterable[Part], batches: Iterable[Any] | None, loss_fn: Any, example_input: Any
) -> tuple[Iterable[Any] | None, Any]:
    """Return the batches (as a list if they are an iterator) and the example input, from the first batch if needed.

    Raises SparsifyError if a criterion needs data or an input and there is none.
    """
    for part in parts:
        name = part.pruning.criterion.name
        if part.needs("data"):
            if batches is None or loss_fn is None:
                raise SparsifyError(f"criterion '{name}' needs data: call pruner.start(batches, loss_fn) before step()")
            batches = list(batches) if isinstance(batches, Iterator) else batches
        if part.needs("input") and example_input is None:
            if batches is None:
                raise SparsifyError(f"criterion '{name}' needs an input's shape: give Pruner an example_input")
            batches, example_input = with_first_input(batches)
    return batches, example_input


def update_parts(
    parts: Sequence[Part],
    index: int,
    weights: Mapping[str, MaskedWeight],
    context: Context,
    union: Mapping[str, Tensor],
) -> float:
    """Write the masks of update number `index` of every part, and return the sparsity due."""
    due, sizes = [], []
    for part in parts:
        own = {name: weights[name] for name in part.candidates.names}
        given = replace(context, options=part.pruning.criterion.options)
        update = part.plan[index]
        if not union.keys().isdisjoint(own) and not part.pruning.schedule.cyclical:
            update = from_present(update, part.plan[0], part.pruning.target)
        due.append(update_masks(update, part.pruning, part.criterion, part.candidates, own, given, union))
        sizes.append(sum(weight.mask.numel() for weight in own.values()))
    return due[0] if len(due) == 1 else sum(map(float.__mul__, due, map(float, sizes))) / max(1, sum(sizes))


def removed(parts: Sequence[Part], weights: Mapping[str, MaskedWeight]) -> float:
    """Return the sparsity of the present masks."""
    if len(parts) == 1:
        return float(parts[0].candidates.removed({name: weight.mask for name, weight in weights.items()}))
    kept, size = kept_of(weights.values())
    return (size - kept) / max(1, size)


def masks_to_keep(parts: Sequence[Part], weights: Mapping[str, MaskedWeight]) -> dict[str, Tensor]:
    """Return copies of the present masks of parts whose ramp starts from them: not cyclical, no lower target."""
    kept = {}
    for part in parts:
        masks = {name: weights[name].mask for name in part.candidates.names}
        more = part.pruning.amount is not None or part.pruning.target >= part.candidates.removed(masks)
        if more and not part.pruning.schedule.cyclical:
            kept.update({name: mask.clone() for name, mask in masks.items()})
    return kept


def check_present(parts: Sequence[Part], weights: Mapping[str, MaskedWeight], where: str) -> None:
    """Raise SparsifyError, prefixed by `where`, if the target of a part is below what its masks already remove."""
    for part in parts:
        present = part.candidates.removed({name: weights[name].mask for name in part.candidates.names})
        target = part.pruning.target
        if part.pruning.amount is None and present > target and not part.pruning.schedule.cyclical:
            of = f" by {_named(part)}" if part.match else ""
            raise SparsifyError(
                f"{where}: sparsity {float(target):g}{of} is below the {float(present):.4g} that the masks remove, "
                "whose values are gone; raise it, or leave out 'prune' to train under these masks"
            )


def measured_prices(parts: Sequence[Part]) -> dict[str, Tensor]:
    """Return the measured prices under "prices", for the state: two pruners measure different ones."""
    candidates = parts[0].candidates
    measured = parts[0].pruning.criterion.per == "milliseconds"
    return {"prices": candidates.prices} if measured and isinstance(candidates, GroupCandidates) else {}


def at_prices(parts: tuple[Part, ...], prices: Tensor) -> tuple[Part, ...]:
    """Return the parts with `prices` instead of measured ones."""
    candidates = parts[0].candidates
    if not isinstance(candidates, GroupCandidates):
        return parts
    return (replace(parts[0], candidates=candidates.at_prices(prices)),)
