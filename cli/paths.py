"""RUN, FILE, DIR or hf:OWNER/NAME -> the model's file."""

from __future__ import annotations

import os
from pathlib import Path

from sparsify.errors import SparsifyError


def saved_model(source: str) -> Path:
    """Return the path of the model's file that `source` leads to (`formats.io.locate.model_file`).

    Raises SparsifyError if there is none.
    """
    from sparsify.formats.io.locate import model_file

    path = model_file(source)
    if not os.path.isfile(path):
        raise SparsifyError(f"{source}: no such file or run")
    return path
