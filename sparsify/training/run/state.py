"""The state in a run's checkpoint, and restoring a newly built training from it, to the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import RunWarning, SparsifyError
from ...formats.file.cuts_text import cuts_from, cuts_text, read_cuts
from ...processes.shards import whole_tree
from ...surgery.mask_state.masks import get_masks, set_masks
from ...surgery.mask_state.sharding import reshard
from ...surgery.shrink.cuts import cuts_of
from ..folder.checkpoint import set_model_state, set_optimizer_state, set_random_state
from ..folder.conditions import changes, conditions
from ..folder.same_recipe import differences
from ..loop.average import copy_unsaved
from ..loop.shrink_midway import cut_as_before
from ..loop.tally import Tally
from ..loop.train_steps import Training
from ..setup.prepare import Prepared, seed_own

NEEDED = ("step", "seconds", "metrics_size", "model", "optimizer", "pruner", "scaler", "random")


def state_of(prepared: Prepared, random: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that determines the rest of the training; `random` is the state of the random generators.

    Several processes call it at once; the first one's result is the state, in whole tensors. The learning rate and
    the order and augmentation of the data follow from the step, the recipe and its seed.
    """
    training = prepared.training
    scaler = training.accelerator.scaler
    for model in (training.model, training.result):
        reshard(model)
    state = {
        "step": training.step,
        "seconds": training.seconds,
        "recipe": prepared.recipe.to_yaml(),
        "conditions": conditions(training.accelerator.device, training.processes),
        "model": training.model.state_dict(),
        "unsaved": _unsaved(training.model),
        **({} if training.average is None else {"average": training.average.module.state_dict()}),
        **_cut_state(training),
        "optimizer": training.optimizer.optimizer.state_dict(),
        "pruner": training.pruner.state_dict() if training.pruner else None,
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": random,
        **_of_each(training, random),
        "record_due": training.record_due,
        "shrink_told": training.shrink_told,
    }
    return whole_tree(state, keep=training.ranks.first) if training.sharded else state


def restore(prepared: Prepared, state: Mapping[str, Any], folder: Path) -> None:
    """Set the training to a state from `state_of`; a RunWarning names changed conditions that may change the bits.

    Raises SparsifyError, which names the keys, if the state is of another recipe, and if it does not fit the model.
    """
    training = prepared.training
    if different := differences(state.get("recipe"), prepared.recipe):
        raise SparsifyError(f"{folder}: its checkpoint is of another recipe: {different}; a run resumes with its own")
    here = conditions(training.accelerator.device, training.processes)
    if (changed := changes(state.get("conditions", {}), here)) and training.ranks.first:
        text = f"{folder}: resumes with {', '.join(changed)}: its bits may differ from those of an uninterrupted run"
        warnings.warn(text, RunWarning, stacklevel=2)
    if state.get("shrunk"):
        set_masks(training.model, state["masks"])
        cut_as_before(training, cuts_from(read_cuts(state["cuts"])), state["shrunk"])
    set_model_state(training.model, state["model"])
    for name, value in state.get("unsaved", {}).items():
        training.model.get_buffer(name).copy_(value)
    if training.average is not None:
        set_model_state(training.average.module, state["average"])
        copy_unsaved(training.average.module, training.model)
    set_optimizer_state(training.optimizer.optimizer, state["optimizer"])
    if training.pruner is not None:
        training.pruner.load_state_dict(state["pruner"])
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state["scaler"])
    training.step, training.seconds = state["step"], state["seconds"]
    training.record_due = state.get("record_due", False)
    training.shrink_told = state.get("shrink_told", training.shrunk is not None)
    _take_own(training, state)


def _of_each(training: Training, random: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sums of all processes together and, of several, each one's own sums and random state."""
    ranks, tally = training.ranks, training.tally
    if ranks.size == 1:
        return {"tally": {"sums": tally.sums, "examples": tally.examples}}
    sums = None if tally.sums is None else tally.sums.cpu()
    own = {"random": random, "tally": {"sums": sums, "examples": tally.examples}}
    of_all = tally.of_all(ranks)
    whole = {"sums": of_all.sums if of_all.examples else None, "examples": of_all.examples}
    return {"tally": whole, "processes": ranks.gather(own)}


def _take_own(training: Training, state: Mapping[str, Any]) -> None:
    """Restore a process's own sums and random state; if the number of processes changed, the first gets all sums."""
    ranks = training.ranks
    each = state.get("processes", [])
    if len(each) == ranks.size > 1:
        own = each[ranks.rank]
        training.tally = Tally(**own["tally"])
        set_random_state(own["random"])
        return
    training.tally = Tally(**state.get("tally", {})) if ranks.first else Tally()
    set_random_state(state["random"])
    if not ranks.first:
        seed_own(training)


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a state dict leaves out (persistent=False); a forward may change them too."""
    saved = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers() if name not in saved}


def _cut_state(training: Training) -> dict[str, Any]:
    """Return what turns a newly built model into the shrunk one."""
    cuts = cuts_of(training.model)
    if training.shrunk is None or training.pruner is None or cuts is None:
        return {}
    return {"shrunk": training.shrunk, "masks": get_masks(training.pruner.model), "cuts": cuts_text(cuts)}
