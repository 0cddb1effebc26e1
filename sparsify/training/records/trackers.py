"""The trackers of accelerate to which a run's records go: Weights & Biases, trackio, MLflow."""

from __future__ import annotations

from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TrackioTracker, WandBTracker

from ...errors import SparsifyError, one_line
from ..folder.same_recipe import flat_recipe
from ..recipe.read import Recipe

PROJECT = "sparsify"


def start_trackers(recipe: Recipe, run: str) -> list[GeneralTracker]:
    """Return the trackers that `recipe` names, each started with a run of this name and the recipe's values.

    Their own environment variables (WANDB_MODE, TRACKIO_DIR, MLFLOW_TRACKING_URI) say where they write.
    Raises SparsifyError if one is not installed or does not start.
    """
    made: dict[str, Any] = {
        "wandb": lambda: WandBTracker(PROJECT, name=run),
        "trackio": lambda: TrackioTracker(PROJECT, name=run),
        "mlflow": lambda: MLflowTracker(PROJECT, run_name=run),
    }
    started: list[GeneralTracker] = []
    for name in dict.fromkeys(recipe.train.trackers):
        if name == "tensorboard":
            continue  # every run writes its events
        try:
            tracker = made[name]()
            tracker.start()
            tracker.store_init_configuration(flat_recipe(recipe))
        except Exception as error:  # any exception of the package: a missing key, a server that does not answer
            for other in started:
                other.finish()
            raise SparsifyError(f"train.trackers: {name} does not start: {one_line(error)}") from error
        started.append(tracker)
    return started
