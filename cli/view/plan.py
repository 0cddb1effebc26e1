"""What `sparsify train --dry-run` prints."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

from sparsify.training.setup.plan import TrainingPlan, plan_training

from .report import average_lines, loaded_lines
from .show import byte_count, count, duration, percent, plain_table, print_table, say

if TYPE_CHECKING:
    from sparsify.pruning.schedules import Update
    from sparsify.pruning.settings.prune import Pruning
    from sparsify.pruning.settings.sections import CriterionSettings
    from sparsify.training.recipe.read import Recipe
    from sparsify.training.setup.rehearse import Rehearsal

_LONG = 60  # plans with more updates are shown by cycle
_EACH = {"global": "in all", "layer": "in each layer", "filter": "in each filter"}
_WORDS = {
    "update": "prune",
    "save": "prune, save the masks",
    "reset": "all weights back",
    "union": "union of saved masks",
}


def show_plan(recipe: Recipe, *, full: bool = False, check: bool = True) -> None:
    """Print the model, the steps, the learning rate, and the updates with their sparsity: long plans by cycle.

    The model is built, converted and verified as for a run, so that errors of a run show here.
    """
    planned = plan_training(recipe)
    lr = planned.lr
    say(f"{recipe.name}: {recipe.model.name} on {recipe.data.name}")
    from sparsify.training.setup.rehearse import rehearse
    from sparsify.training.setup.split import shard_lines

    rehearsal = rehearse(recipe, check=check)
    say(*rehearsal_lines(rehearsal, recipe))
    epochs = -(-planned.total_steps // planned.steps_per_epoch)
    say(*average_lines(recipe), *shard_lines(recipe.train))
    whole, parts = count(planned.total_steps, "step"), count(epochs, "epoch")
    say(f"{whole}: {parts} of {planned.steps_per_epoch:,}, batches of {_batch(recipe)}")
    tenths = [lr(planned.total_steps * tenth // 10) for tenth in range(10)] + [lr(planned.total_steps - 1)]
    say(f"learning rate ({recipe.train.lr_schedule.name}) at every tenth of training:")
    say("  " + "  ".join(f"{value:.3g}" for value in tenths))
    if recipe.prune is None:
        given = recipe.model.masks or recipe.model.checkpoint
        under = f"; masks of {given} stay as they are" if given else ""
        say(f"no pruning{under}")
    else:
        _show_pruning(recipe.prune, planned, full=full)
    if rehearsal.prepared is not None:  # last, since it may take minutes for a large model
        from sparsify.training.setup.estimate import estimate_seconds

        seconds, steps = estimate_seconds(rehearsal.prepared.training)
        say(f"about {duration(seconds)} for the run, estimated by {count(steps, 'step')}; updates of masks not counted")


def _show_pruning(prune: Pruning, planned: TrainingPlan, *, full: bool) -> None:
    cycles = len({update.cycle for update in planned.updates})
    say(f"prune {_what(prune)}: {count(len(planned.updates), 'update')} in {count(cycles, 'cycle')}")
    for rule in prune.rules or ():
        own = "stay dense" if rule.ignore else _what(prune.under(rule))
        say(f"  {', '.join(rule.match)}: {own}")
    if prune.shrink:
        say("then remove the channels that no longer influence the output")
    if full or len(planned.updates) <= _LONG:
        print_table(_updates_table(planned, prune.amount))
    else:
        print_table(_cycles_table(planned, prune.amount))
        say("every update: --full")


def rehearsal_lines(found: Rehearsal, recipe: Recipe) -> list[str]:
    """Return lines on the model's parameters and cost, the size of its file, and what was not tried."""
    work = "" if found.multiply_adds is None else f", {found.multiply_adds:,} multiply-adds for an image"
    lines = [f"{count(found.parameters, 'parameter')}{work}"]
    prepared = found.prepared
    if prepared is not None:
        lines.append(prepared.training.data.description)
        if prepared.loaded is not None:
            lines += loaded_lines(prepared.loaded, str(recipe.model.checkpoint), prepared.training.model)
            if prepared.loaded.masks and recipe.prune is not None and not recipe.prune.schedule.cyclical:
                lines.append("  the schedule below goes its way from what is removed there, in each group of the scope")
        lines += [str(prepared.verification)] if prepared.verification is not None else []
        about = (
            "" if recipe.prune is None or recipe.prune.granularity.name != "unit" else ", more than once it is shrunk"
        )
        lines.append(f"its file: about {byte_count(found.bytes_file)}{about} (dense {byte_count(found.bytes_dense)})")
    return lines + [f"not checked: {line}" for line in found.left_out]


def _what(prune: Pruning) -> str:
    """Return how much is removed, by which criterion, and over which scope."""
    what = f"{percent(float(prune.target))} {_of(prune)}"
    if prune.amount is not None:
        what = f"{prune.amount:,} {prune.granularity.choices} {_EACH[prune.scope]}"
    return f"{what} by {_name(prune.criterion)}, scope {prune.scope}"


def _batch(recipe: Recipe) -> str:
    size, accumulate = recipe.data.batch_size, recipe.train.accumulate
    return f"{accumulate} x {size}" if accumulate > 1 else str(size)


def _of(prune: Pruning) -> str:
    """Return what the sparsity is a fraction of."""
    kind = prune.granularity
    if prune.of in ("parameters", "bytes") and kind.name == "weight":
        return f"of the {prune.of}"
    if prune.of in ("flops", "parameters"):
        return f"of the {'multiply-adds' if prune.of == 'flops' else 'parameters'}, in whole units,"
    choices = {"weight": "weights", "unit": "units", "block": f"{kind.short} blocks", "n:m": f"weights, {kind.short},"}
    return f"of the {choices[kind.name]}"


def _name(criterion: CriterionSettings) -> str:
    return criterion.name + (f" per {criterion.per}" if criterion.per else "")


def _cycles_table(planned: TrainingPlan, amount: int | None) -> Table:
    """Return a row for each cycle: its steps, its number of updates, and its first and last sparsity."""
    table = _table("cycle", "steps", "updates", "sparsity" if amount is None else "removed")
    for cycle, group in groupby(planned.updates, key=lambda update: update.cycle):
        updates = list(group)
        first, last = (_due(update, amount) for update in (updates[0], updates[-1]))
        words = dict.fromkeys(_WORDS[update.event] for update in updates)
        steps = f"{updates[0].step:,} - {updates[-1].step:,}"
        table.add_row(str(cycle), steps, f"{len(updates):,}", f"{first} - {last}", "; ".join(words))
    return table


def _table(*numbers: str) -> Table:
    table = plain_table(*numbers, last="what")
    table.columns[0].justify = "right"
    return table


def _due(update: Update, amount: int | None) -> str:
    if update.sparsity is None:
        return "by union"
    return percent(float(update.sparsity)) if amount is None else f"{int(update.sparsity * amount):,}"


def _updates_table(planned: TrainingPlan, amount: int | None) -> Table:
    table = _table("step", "epoch", "cycle", "sparsity" if amount is None else "removed", "learning rate")
    for update in planned.updates:
        lr = planned.lr(max(update.step - 1, 0))  # of the step just taken
        epoch = f"{update.step / planned.steps_per_epoch:.1f}"
        table.add_row(
            f"{update.step:,}", epoch, str(update.cycle), _due(update, amount), f"{lr:.3g}", _WORDS[update.event]
        )
    return table
