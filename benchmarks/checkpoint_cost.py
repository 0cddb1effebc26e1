"""`python -m benchmarks.checkpoint_cost`: the cost of checkpoints, as a share of training with one per minute."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import click

from sparsify.training.folder.checkpoint import random_state
from sparsify.training.folder.checkpoint_files import Checkpoints
from sparsify.training.loop.train_steps import train_steps
from sparsify.training.recipe.read import parse_recipe
from sparsify.training.run.state import state_of
from sparsify.training.setup.prepare import Prepared, prepare

from .record import environment, record, seconds


@click.command()
@click.option("--model", default="cifar:vgg19_bn", show_default=True)
@click.option("--count", default=7, show_default=True, help="Checkpoints that are written and timed.")
def main(model: str, count: int) -> None:
    """Time checkpoints of a model in the middle of its pruning and write the section of results.md."""
    prepared = _after_a_step(model)
    clock, processor = [], []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "checkpoints").mkdir()
        checkpoints = Checkpoints(folder, keep=2)
        for number in range(count):
            begun, computed = time.perf_counter(), time.process_time()
            prepared.training.step = number + 1
            checkpoints.write({**state_of(prepared, random_state()), "metrics_size": 0})
            clock.append(time.perf_counter() - begun)
            processor.append(time.process_time() - computed)
        size = (folder / "checkpoints" / "last.safetensors").stat().st_size
    by_clock, of_processor = (100 * median(values) / 60 for values in (clock, processor))
    body = [
        environment("torch", threads=1),
        "",
        f"A checkpoint of {model} with masks and momentum ({size / 1e6:.0f} MB, checksums, flushed to the disk): "
        f"{seconds(clock)} by the clock, {seconds(processor)} of the processor. Training waits for it: at one a minute "
        f"it takes {by_clock:.1f} % of the time by the clock, {of_processor:.1f} % of the processor's. The load of the "
        f"machine (processes that want a core) was {os.getloadavg()[0]:.0f} meanwhile; beyond the number of its cores "
        "the clock tells more of other work than of this.",
    ]
    record("checkpoint_cost", "\n".join(body))
    click.echo("\n".join(body))


def _after_a_step(model: str) -> Prepared:
    prune = {"sparsity": 0.9, "schedule": "linear", "every": "1it"}
    train = {"max_steps": 3, "device": "cpu", "log_every": 100}
    data = {"name": "digits", "batch_size": 2, "limit": 8}
    prepared = prepare(parse_recipe({"model": model, "data": data, "train": train, "prune": prune}), check=False)
    next(train_steps(prepared.training))
    return prepared


if __name__ == "__main__":
    main()
