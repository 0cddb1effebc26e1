"""sparsify eval"""

from __future__ import annotations

import click

from .paths import saved_model
from .view.show import percent, say


@click.command("eval")
@click.argument("source", metavar="RUN|FILE|hf:OWNER/NAME")
@click.option("--data", metavar="NAME", help="Data set.  [default: the one the model was trained on]")
@click.option("--data-dir", metavar="DIR", help="Folder of the data, to which they are downloaded if missing.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
def command(source: str, data: str | None, data_dir: str | None, device: str) -> None:
    """Measure top-1 accuracy and loss of a saved model on the test images of a data set."""
    from sparsify.training.recipe.lookups import check_device

    path = saved_model(source)
    check_device(device, where="--device")
    from sparsify.training.loop.evaluate import evaluate_file

    found, images = evaluate_file(path, data=data, data_dir=data_dir, device=device)
    say(f"{path}: accuracy {percent(found.accuracy)}, loss {found.loss:.4f} on {images.name} ({found.count:,} images)")
