"""What `sparsify train --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from sparsify.training.run.plan import TrainingPlan, plan_training

from .show import count, percent, print_table, say

if TYPE_CHECKING:
    from sparsify.pruning.settings.prune import Pruning
    from sparsify.pruning.settings.sections import CriterionSettings
    from sparsify.training.recipe.read import Recipe

_EACH = {"global": "in all", "layer": "in each layer", "filter": "in each filter"}
_WORDS = {
    "update": "prune",
    "save": "prune, save the masks",
    "reset": "all weights back",
    "union": "union of saved masks",
}


def show_plan(recipe: Recipe) -> None:
    """Print the steps, the sparsity at the updates, the cycles and the learning rate."""
    planned = plan_training(recipe)
    epochs, lr = recipe.train.epochs, planned.lr
    say(f"{recipe.name}: {recipe.model.name} on {recipe.data.name}")
    whole, parts = count(planned.total_steps, "step"), count(epochs, "epoch")
    say(f"{whole}: {parts} of {planned.steps_per_epoch:,}, batches of {_batch(recipe)}")
    tenths = [lr(planned.total_steps * tenth // 10) for tenth in range(10)] + [lr(planned.total_steps - 1)]
    say(f"learning rate ({recipe.train.lr_schedule.name}) at every tenth of training:")
    say("  " + "  ".join(f"{value:.3g}" for value in tenths))
    if recipe.prune is None:
        under = f"; the masks of {recipe.model.masks} stay as they are" if recipe.model.masks else ""
        say(f"no pruning{under}")
        return
    cycles = len({update.cycle for update in planned.updates})
    prune = recipe.prune
    say(f"prune {_what(prune)}: {count(len(planned.updates), 'update')} in {count(cycles, 'cycle')}")
    for rule in prune.rules or ():
        own = "stay dense" if rule.ignore else _what(prune.under(rule))
        say(f"  {', '.join(rule.match)}: {own}")
    if prune.shrink:
        say("then take what is of no influence any more out of the model")
    print_table(_updates_table(planned, prune.amount))


def _what(prune: Pruning) -> str:
    """Return how much is removed, by what, and over which set."""
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
    if prune.of == "parameters" and kind.name == "weight":
        return "of the parameters"
    if prune.of in ("flops", "parameters"):
        return f"of the {'multiply-adds' if prune.of == 'flops' else 'parameters'}, in whole units,"
    choices = {"weight": "weights", "unit": "units", "block": f"{kind.short} blocks", "n:m": f"weights, {kind.short},"}
    return f"of the {choices[kind.name]}"


def _name(criterion: CriterionSettings) -> str:
    return criterion.name + (f" per {criterion.per}" if criterion.per else "")


def _updates_table(planned: TrainingPlan, amount: int | None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("step", "epoch", "cycle", "sparsity" if amount is None else "removed", "learning rate"):
        table.add_column(title, justify="right")
    table.add_column("what")
    for update in planned.updates:
        sparsity = "by union" if update.sparsity is None else percent(float(update.sparsity))
        if amount is not None and update.sparsity is not None:
            sparsity = f"{int(update.sparsity * amount):,}"
        lr = planned.lr(max(update.step - 1, 0))  # of the step just taken
        epoch = f"{update.step / planned.steps_per_epoch:.1f}"
        table.add_row(f"{update.step:,}", epoch, str(update.cycle), sparsity, f"{lr:.3g}", _WORDS[update.event])
    return table
