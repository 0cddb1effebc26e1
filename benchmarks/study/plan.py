"""How long a study takes: its trainings by network and arithmetic, at a measured or an assumed time of an epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from sparsify.training.loop.evaluate import evaluate
from sparsify.training.loop.train_steps import train_steps
from sparsify.training.setup.plan import plan_training
from sparsify.training.setup.prepare import prepare

from .study import Run, Study


@dataclass(frozen=True)
class Part:
    """The runs of a study that take equally long: of one network in one arithmetic, pruned or dense."""

    model: str
    how: str
    runs: tuple[Run, ...]


def parts_of(study: Study) -> list[Part]:
    """Return the parts of a study in the order of their first runs."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in study.runs:
        found.setdefault((run.model, _how(run)), []).append(run)
    return [Part(model, how, tuple(runs)) for (model, how), runs in found.items()]


def plan_lines(study: Study, assumed: Mapping[str, float], steps: int) -> Iterator[str]:
    """Yield a table of the study's parts and the hours they take one after another.

    `assumed` maps models to the seconds of an epoch; those of others are measured here over `steps` steps.
    """
    yield f"{study.name}: {len(study.runs)} runs of {study.epochs} epochs"
    yield "| model | arithmetic | runs | steps of a run | seconds of an epoch | hours |"
    yield "|---|---|---|---|---|---|"
    total = 0.0
    for part in parts_of(study):
        run = part.runs[0]
        seconds = assumed[part.model] if part.model in assumed else epoch_seconds(run, steps)
        said = "assumed" if part.model in assumed else "measured"
        hours = len(part.runs) * study.epochs * seconds / 3600
        total += hours
        length = f"{plan_training(run.recipe).total_steps:,}"
        yield f"| {part.model} | {part.how} | {len(part.runs)} | {length} | {seconds:.1f} ({said}) | {hours:,.1f} |"
    yield f"Together {total:,.1f} hours, one run after another; several side by side share the device."


def epoch_seconds(run: Run, steps: int) -> float:
    """Return the seconds of one epoch and its test, by `steps` training steps after as many to warm up."""
    train = run.recipe.train.model_copy(update={"log_every": steps, "evaluate_every": run.recipe.train.epochs + 1})
    training = prepare(run.recipe.model_copy(update={"train": train}), check=False).training
    # Reading the loss for a record waits for the device.
    first, second = islice(train_steps(training), 2)
    step = (second["seconds"] - first["seconds"]) / (second["step"] - first["step"])
    started = time.perf_counter()
    device, classes = training.accelerator.device, training.data.num_classes
    test = training.data.test
    assert test is not None, "the data of a study have test images"
    evaluate(training.model, test, device=device, num_classes=classes, autocast=training.accelerator.autocast)
    return float(step * training.steps_per_epoch + time.perf_counter() - started)


def _how(run: Run) -> str:
    train = run.recipe.train
    how: list[str] = ["float32" if train.precision == "no" else train.precision]
    how += ["channels last"] * train.channels_last + ["compiled"] * train.compile
    return ", ".join([*how, "dense" if run.recipe.prune is None else "masks"])
