"""Models on CUDA: PyTorch runs them, linear layers with 2:4 weights by its semi-structured kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..calls import Inputs, run
from ..relative_error import relative_error
from ..surgery.conversion.fold import fold
from .kernel_errors import one_line
from .semi_structured import to_semi_structured

COARSE = 2e-2  # of the largest output: kernels sum 16-bit numbers in another order


def on_cuda(model: nn.Module) -> bool:
    """Return whether any of a model's tensors is on CUDA."""
    return any(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers()))


def for_cuda(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, str]:
    """Return a folded copy of `model` in eval mode for CUDA, and lines on how its weights run.

    Linear weights that are 2:4 sparse become torch's semi-structured tensors, if the outputs for `inputs` agree with
    those of the dense weights within 2e-2 of the largest. All others run dense: unstructured zeros save nothing there.
    """
    dense = fold(model).eval().requires_grad_(False)
    report = to_semi_structured(model)
    how = f"on CUDA, by PyTorch; {report}"
    if not report.converted:
        return dense, f"{how}\n  all weights run dense"
    try:
        apart = relative_error(_outputs(report.model.eval(), inputs), _outputs(dense, inputs))
        fault = "" if apart <= COARSE else f"the outputs differ by {apart:.1e} of the largest"
    except Exception as error:  # noqa: BLE001 - operations without support for these tensors; dense ones work
        fault = one_line(error)
    if fault:
        return dense, f"{how}\n  none of them is used, all weights run dense: {fault}"
    return report.model, f"{how}\n  all other weights run dense"


def _outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(run(model, inputs))
