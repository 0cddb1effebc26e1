"""Constant channels that stay because the operation that reads them has no bias to absorb them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..analysis.coupling import Coupling
from ..recording.broadcast_forms import varying
from ..recording.ops import Op
from .constants import known_value, only_zeros_known, uniform
from .liveness import Liveness

_READERS = {"convolution": 0, "mm": 0, "addmm": 1}  # operation -> place of the activation among its arguments


def kept_constants(
    live: Liveness, coupling: Coupling, ids: np.ndarray[Any, Any], alive: np.ndarray[Any, Any]
) -> tuple[str, ...]:
    """Return a line for each layer whose input has removable channels of one nonzero value that it cannot absorb.

    `ids` are the groups of the channel numbers (-1 = never removed); `alive`, bool [groups], marks those not dead.
    """
    open_to_go = np.append(alive, False)  # the last entry is for id -1
    lines: dict[str, None] = {}
    for op in live.recording.ops:
        if op.name not in _READERS or op in live.constant_channels:
            continue
        value = op.args[_READERS[op.name]]
        if value.constant is not None or only_zeros_known(live, value):
            continue
        form = known_value(live, value)
        form = uniform(form, [d for d in range(form.dim()) if d != 1]).reshape(-1).expand(value.shape[1])
        constant = (~form.isnan() & (form != 0)).numpy()
        axes = [axis.numpy().reshape(-1) for axis in coupling.axes.get(value, []) if varying(axis) == (1,)]
        count = sum(int((constant & open_to_go[ids[numbers]]).sum()) for numbers in axes[:1])
        if count:
            lines[f"{op.module or 'the model'}: {count} constant channels stay: {_why(op)}"] = None
    return tuple(lines)


def _why(op: Op) -> str:
    if op.name == "convolution" and (op.args[6] or op.args[8] != 1):
        return "a grouped or transposed convolution has no bias that could take them in"
    if op.name == "convolution" and any(op.args[4]):
        return "its padding makes them differ at the border"
    return "it has no bias of its own, or one that something else reads"
