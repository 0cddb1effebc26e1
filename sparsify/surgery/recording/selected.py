"""The number of entries that a forward selects (nonzero(), a bool index), and where Python code uses that number.

The number depends on the values of activations, so comparing it is a branch on values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .context import leaves
from .ops import Value
from .size_watch import TELLING, SizeWatch, known_sizes

_MASKS = (torch.bool, torch.uint8)


def selected_counts(func: Any, args: Any, inputs: list[Value], results: list[Tensor]) -> list[int]:
    """Return the sizes of an operation's results that depend on values of activations."""
    name = func._schema.name
    if torch.Tag.dynamic_output_shape not in func.tags and name != "torchvision::nms":
        return []
    if all(value.constant is not None for value in inputs):
        return []
    if name == "aten::index":
        return [int(mask.count_nonzero()) for mask in leaves(args[1], Tensor) if mask.dtype in _MASKS]
    return [result.shape[0] for result in results if result.dim()]


class CountWatch(SizeWatch):
    """Calls `asked` when a model's code compares the number of selected entries, or iterates over them.

    `counts` holds the numbers of entries that the model's operations select; it grows while the model runs.
    """

    def __init__(self, model: nn.Module, counts: list[int], asked: Callable[[], None]) -> None:
        super().__init__(model)
        self.counts, self.note_it = counts, asked
        self.selected: Any = WeakIdKeyDictionary()  # tensors made of selected entries

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = len(self.counts)
        outcome = func(*args, **(kwargs or {}))
        given = leaves((args, kwargs or {}), Tensor)
        if not (len(self.counts) > known or any(tensor in self.selected for tensor in given)):
            return outcome
        if isinstance(outcome, torch.Size):
            return torch.Size(tuple(known_sizes(size, {size}) if size in self.counts else size for size in outcome))
        if func is Tensor.unbind and isinstance(outcome, tuple) and len(outcome) in self.counts:
            self.note("unbind")  # which a loop over a tensor calls
        elif type(outcome) is int and getattr(func, "__name__", "") in TELLING and outcome in self.counts:
            if func is Tensor.__len__:
                self.note("len")  # Python returns a plain number
            return known_sizes(outcome, {outcome})
        for tensor in leaves(outcome, Tensor):
            if not any(tensor is one for one in given):  # not what was written to
                self.selected[tensor] = True
        return outcome

    def note(self, *what: Any) -> None:
        """Call `asked` for the forward that runs."""
        self.note_it()
