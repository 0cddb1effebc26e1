"""Export of the folded model as a .pt2 file of torch.export, which PyTorch runs without the model's class."""

from __future__ import annotations

import io
import json

import torch
from torch import Tensor

from ..calls import Inputs, run, tensors_in
from ..errors import SparsifyError
from ..formats.io.atomic import atomic_write
from ..formats.request import ExportRequest, ExportResult, about_text
from .program import check_outputs, export_folded, quiet, reason_of


def write_pt2(request: ExportRequest) -> ExportResult:
    """Write the folded model in eval mode, in its own types; `torch.export.load(path).module()` runs it.

    The metadata are extra files of the archive: `sparsify.spec` and so on, and `sparsify.inputs`, the input shapes as
    JSON with names for free sizes. The archive is loaded and run before it is written to `path`: RunError unless its
    outputs equal the masked model's.
    """
    exported = export_folded(request)
    program = exported.program
    # The example is not needed to load, and may be private.
    program.example_inputs = None
    buffer = io.BytesIO()
    with quiet():
        try:
            about = {**about_text(request.metadata), "sparsify.inputs": json.dumps(exported.example.shapes())}
            torch.export.save(program, buffer, extra_files=about)
        except Exception as error:  # noqa: BLE001 - a program may hold what a file cannot
            raise SparsifyError(f"save: pt2 cannot hold this model: {reason_of(error)}") from error
        buffer.seek(0)
        module = torch.export.load(buffer).module()

    def call(inputs: Inputs) -> list[Tensor]:
        with torch.no_grad(), quiet():
            return tensors_in(run(module, inputs))

    checked = check_outputs("pt2", call, exported.cases, exported.hint)
    size = atomic_write(request.path, buffer.getbuffer())
    return ExportResult(size, (f"{exported.example}; checked: {checked}",))
