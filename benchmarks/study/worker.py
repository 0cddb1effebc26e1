"""One run of a study, in its own process: python -m benchmarks.study.worker RECIPE FOLDER THREADS

Started by the queue; resumes from the folder's checkpoint if there is one, and ends when the queue does.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from sparsify.formats.io.atomic import atomic_write
from sparsify.pruning.report import PruningReport
from sparsify.sweep import worker
from sparsify.training.folder import run_folder as folders
from sparsify.training.loop.train_steps import Record
from sparsify.training.recipe.read import Recipe

RESULT = "result.json"
_PROCESSOR_SECONDS = "processor_seconds.json"


def work(recipe: Recipe, folder: Path, threads: int) -> None:
    """Train, then leave the run's measures in result.json."""
    if (folder / RESULT).exists():
        return  # finished, but the queue was killed before it wrote the row
    # Float32 means float32: convolutions on a GPU would take the ten-bit mantissas of TF32.
    torch.backends.cudnn.allow_tf32 = False
    earlier = folder / _PROCESSOR_SECONDS
    spent = json.loads(earlier.read_text()) if earlier.exists() else 0.0

    def note(record: Record) -> None:
        if folder.exists():
            seconds = spent + time.process_time()
            atomic_write(earlier, json.dumps(seconds).encode())

    result = worker.run_to_end(recipe, folder, threads, note)
    measures = _measures(folder, result.report)
    measures |= {"processor_seconds": spent + time.process_time(), "device": _device(recipe.train.device, threads)}
    atomic_write(folder / RESULT, json.dumps(measures).encode())
    shutil.rmtree(folder / Path(folders.LAST).parent)  # no longer needed; masks, weights and log stay


def _measures(folder: Path, report: PruningReport | None) -> dict[str, Any]:
    """Return a run's measures for its row: at its end, at the final sparsity, and of its best epoch."""
    epochs = [json.loads(line) for line in (folder / folders.METRICS).read_text().splitlines()]
    tested = [record for record in epochs if "test_accuracy" in record]
    last, best = tested[-1], max(tested, key=lambda record: record["test_accuracy"])
    return {
        "final_accuracy": last["test_accuracy"],
        "best_accuracy": best["test_accuracy"],
        "best_epoch": best["epoch"],
        "best_sparsity": best["sparsity"],
        "train_loss": last["loss"],
        "test_loss": last["test_loss"],
        "removed": report.chosen / report.choices if report else 0.0,
        "seconds": last["seconds"],
    }


def _device(name: str, threads: int) -> str:
    if name != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    from sparsify.hardware import processor

    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


if __name__ == "__main__":
    worker.main(work)
