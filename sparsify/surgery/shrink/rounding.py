"""How far rounding alone moves a model's outputs: if far, a difference in outputs does not show that a cut is wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...relative_error import relative_error
from ..recording.context import all_double
from ..recording.operation_mode import OperationMode
from ..sizes.other_inputs import outputs

# Operations that sum many terms, in an order that depends on their number.
_SUMS = frozenset(
    "convolution mm addmm bmm baddbmm mv dot addmv sum mean _softmax _log_softmax logsumexp native_batch_norm "
    "native_layer_norm native_group_norm linalg_vector_norm cumsum einsum linear".split()
)
_UNITS = 4  # units in the last place by which two orders of a sum easily differ


def moved_by_rounding(wide: nn.Module, example_input: Any, unit: float) -> float:
    """Return the largest relative error of a float64 model's outputs if each sum in it is off by a few `unit`.

    Two passes, off in opposite directions, are compared with the exact one, so that each of two equal values is the
    larger one once. The error is infinite if the outputs have other shapes, and 0 if a pass raises.
    """
    try:
        with all_double():
            before = outputs(wide, example_input)
            errors = []
            for step in (_UNITS * unit, -_UNITS * unit):
                with _OffBy(step):
                    errors.append(relative_error(outputs(wide, example_input), before))
            return max(errors)
    except Exception:  # noqa: BLE001 - the model's own code; the difference is reported all the same
        return 0.0


class _OffBy(OperationMode):
    """Moves each entry of a sum up or down by the fraction `step` of itself, with reproducible signs."""

    def __init__(self, step: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._step, self._generator = step, torch.Generator().manual_seed(0)

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        outcome = func(*args, **kwargs)
        known = func._schema.name.removeprefix("aten::") in _SUMS and not func._schema.is_mutable
        return tree_map_only(Tensor, self._moved, outcome) if known else outcome

    def _moved(self, leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        signs = torch.randint(2, leaf.shape, generator=self._generator, device="cpu") * 2 - 1
        return leaf * (1 + self._step * signs.to(leaf))
