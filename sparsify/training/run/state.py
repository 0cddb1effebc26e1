"""What a checkpoint of a run holds, and how a training that was set up anew goes on from it to the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import RunWarning, SparsifyError
from ...formats.file.cuts_text import cuts_from, cuts_text, read_cuts
from ...surgery.masks import get_masks, set_masks
from ...surgery.shrink.cuts import cuts_of
from ..loop.shrink_midway import cut_as_before
from ..loop.train_steps import Tally, Training
from .checkpoint import set_model_state, set_optimizer_state, set_random_state
from .conditions import changes, conditions
from .prepare import Prepared
from .same_recipe import differences

NEEDED = ("step", "seconds", "metrics_size", "model", "optimizer", "pruner", "scaler", "random")


def state_of(prepared: Prepared, random: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides how the training goes on; `random` is the state of the random generators.

    The learning rate and the order and the variation of the data follow from the step, the recipe and its seed.
    """
    training = prepared.training
    scaler = training.accelerator.scaler
    return {
        "step": training.step,
        "seconds": training.seconds,
        "recipe": prepared.recipe.to_yaml(),
        "conditions": conditions(training.accelerator.device),
        "model": training.model.state_dict(),
        "unsaved": _unsaved(training.model),
        **_cut_state(training),
        "optimizer": training.optimizer.optimizer.state_dict(),
        "pruner": training.pruner.state_dict() if training.pruner else None,
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": random,
        "tally": {"sums": training.tally.sums, "examples": training.tally.examples},
        "record_due": training.record_due,
        "shrink_told": training.shrink_told,
    }


def restore(prepared: Prepared, state: Mapping[str, Any], folder: Path) -> None:
    """Set the training to a state from `state_of`; a RunWarning tells why its bits may not be those of one run.

    Raises SparsifyError if the state is of another recipe, which names the keys, or does not fit the model.
    """
    training = prepared.training
    if different := differences(state.get("recipe"), prepared.recipe):
        raise SparsifyError(f"{folder}: its checkpoint is of another recipe: {different}; a run goes on with its own")
    if changed := changes(state.get("conditions", {}), conditions(training.accelerator.device)):
        text = f"{folder}: goes on with {', '.join(changed)}: its bits may not be those of a run without a break"
        warnings.warn(text, RunWarning, stacklevel=2)
    if state.get("shrunk"):
        set_masks(training.model, state["masks"])
        cut_as_before(training, cuts_from(read_cuts(state["cuts"])), state["shrunk"])
    set_model_state(training.model, state["model"])
    for name, value in state.get("unsaved", {}).items():
        training.model.get_buffer(name).copy_(value)
    set_optimizer_state(training.optimizer.optimizer, state["optimizer"])
    if training.pruner is not None:
        training.pruner.load_state_dict(state["pruner"])
    if training.accelerator.scaler is not None:
        training.accelerator.scaler.load_state_dict(state["scaler"])
    training.step, training.seconds = state["step"], state["seconds"]
    training.tally = Tally(**state.get("tally", {}))
    training.record_due = state.get("record_due", False)
    training.shrink_told = state.get("shrink_told", training.shrunk is not None)
    set_random_state(state["random"])


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a state dict leaves out (persistent=False); a forward may change them all the same."""
    saved = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers() if name not in saved}


def _cut_state(training: Training) -> dict[str, Any]:
    """Return what makes the shrunk model from one that is set up anew."""
    cuts = cuts_of(training.model)
    if training.shrunk is None or training.pruner is None or cuts is None:
        return {}
    return {"shrunk": training.shrunk, "masks": get_masks(training.pruner.model), "cuts": cuts_text(cuts)}
