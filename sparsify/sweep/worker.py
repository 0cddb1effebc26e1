"""One run of a queue in its own process: python -m sparsify.sweep.worker RECIPE FOLDER THREADS

It resumes from the folder's checkpoint if there is one, ends when the queue ends, and writes a checkpoint when it is
asked to stop (SIGTERM).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from ..errors import RunStopped, SparsifyError
from ..training.folder import run_folder as folders
from ..training.loop.train_steps import Record
from ..training.recipe.read import Recipe, read_recipe
from ..training.run.train import TrainResult, train


def run_to_end(
    recipe: Recipe, folder: Path, threads: int, on_record: Callable[[Record], None] | None = None
) -> TrainResult:
    """Train, or resume the run in `folder`, and return the result; the process ends when its parent ends.

    Raises RunStopped, after a checkpoint, when the process gets SIGTERM.
    """
    _end_with_the_queue()
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    torch.set_num_threads(threads)
    resume = (folder / folders.RECIPE).exists()
    return train(recipe, out=folder, resume=resume, on_record=on_record, stop=asked.is_set)


def _end_with_the_queue() -> None:
    queue = os.getppid()

    def watch() -> None:
        while os.getppid() == queue:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(work: Callable[[Recipe, Path, int], object] = run_to_end) -> None:
    """Call `work` with the recipe, folder and threads of the command line; a mistake exits with one line and code 1."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        work(read_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except SparsifyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
