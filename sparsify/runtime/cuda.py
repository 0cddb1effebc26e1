"""On CUDA: PyTorch's own operations, those of 2:4 linear weights by its semi-structured kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..calls import Inputs, run
from ..relative_error import relative_error
from ..surgery.conversion.fold import fold
from .semi_structured import to_semi_structured

COARSE = 2e-2  # of the largest output: kernels that add up 16 bits in another order


def on_cuda(model: nn.Module) -> bool:
    """Return whether a model's tensors are there, any of them."""
    return any(tensor.is_cuda for tensor in (*model.parameters(), *model.buffers()))


def for_cuda(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, str]:
    """Return a folded copy of `model` in evaluation mode for CUDA, and which of its weights run how, in lines.

    Linear weights that are 2:4 sparse are torch's semi-structured tensors, if the outputs for `inputs` are those of the
    dense weights within 2e-2 of the largest. All others run dense: single zeros save nothing there.
    """
    dense = fold(model).eval().requires_grad_(False)
    report = to_semi_structured(model)
    how = f"on CUDA, by PyTorch; {report}"
    if not report.converted:
        return dense, f"{how}\n  all weights run dense"
    try:
        apart = relative_error(_outputs(report.model.eval(), inputs), _outputs(dense, inputs))
        fault = "" if apart <= COARSE else f"the outputs differ by {apart:.1e} of the largest"
    except Exception as error:  # noqa: BLE001 - whatever these tensors do not go through, dense ones do
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if fault:
        return dense, f"{how}\n  none of them is used, all weights run dense: {fault}"
    return report.model, f"{how}\n  all other weights run dense"


def _outputs(model: nn.Module, inputs: Inputs) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(run(model, inputs))
