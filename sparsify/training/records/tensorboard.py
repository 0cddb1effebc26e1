"""What TensorBoard shows besides a run's records: the recipe as hyperparameters, sparsity by layer, mask overlap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...formats.model.masks import load_masks
from ...overlap import iou
from ...processes.shards import count
from ...surgery.mask_state.masks import get_masks, masked_weights
from ..folder.run_folder import MASKS
from ..folder.same_recipe import flat_recipe
from ..recipe.read import Recipe

if TYPE_CHECKING:
    from .log import Log

LAYER = "layer_sparsity/{}"
OVERLAP = "mask_overlap/with_the_cycle_before"
_METRICS = ("test_accuracy", "test_loss", "sparsity")
_KINDS = (bool, int, float, str)


def hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of a recipe that are set, with values that TensorBoard accepts: bools, numbers and text."""
    leaves = flat_recipe(recipe)
    plain = {key: value if isinstance(value, _KINDS) else str(value) for key, value in leaves.items()}
    return {key: plain[key] for key, value in leaves.items() if value not in (None, [], {})}


def write_recipe(events: Any, recipe: Recipe) -> None:
    """Write a recipe as text and as hyperparameters, in whose table the records' scalars are the results."""
    from torch.utils.tensorboard.summary import hparams

    events.add_text("recipe", "".join(f"    {line}\n" for line in recipe.to_yaml().splitlines()), 0)
    for summary in hparams(hyperparameters(recipe), dict.fromkeys(_METRICS, 0.0)):  # type: ignore[no-untyped-call]
        events.file_writer.add_summary(summary)


def layer_sparsity(model: nn.Module) -> Mapping[str, float]:
    """Return the fraction removed of each masked weight by TensorBoard's tag."""
    found = {}
    for name, weight in masked_weights(model).items():
        size = weight.mask.numel()
        found[LAYER.format(name)] = 1 - count(weight.mask) / size if size else 0.0
    return found


def note_overlap(log: Log, model: nn.Module, folder: Path, cycle: int, step: int) -> None:
    """Write the intersection over union of the masks at a cycle's end and those of the cycle before."""
    before = folder / MASKS.format(cycle - 1)
    if not before.exists():
        return
    masks, known = get_masks(model), load_masks(before)
    shared = {name: mask.cpu() for name, mask in masks.items() if name in known and known[name].shape == mask.shape}
    if shared:
        log.add({OVERLAP: iou(shared, {name: known[name] for name in shared})}, step)
