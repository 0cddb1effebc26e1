"""RUN or FILE -> the model's file."""

from __future__ import annotations

from pathlib import Path

from sparsify.errors import SparsifyError


def saved_model(source: str) -> Path:
    """Return `source` if it is a file, the final model's file if it is a run's folder; SparsifyError otherwise."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise SparsifyError(f"{source}: no such file or run")
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if (path / "recipe.yaml").is_file():
        raise SparsifyError(f"{source}: the run is not finished; go on with: sparsify train --resume {source}")
    raise SparsifyError(f"{source}: a folder without a run in it")
