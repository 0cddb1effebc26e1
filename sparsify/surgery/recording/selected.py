"""How many entries a forward selects, as nonzero() and a mask do, and where Python code asks for that number.

The number depends on what activations hold, so that to compare it is a branch on values.
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
    """Calls `asked` where the code of a model compares how many entries were selected, or goes through them one by one.

    `counts` grows while the model runs in the block: the numbers of entries that its operations select.
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
        """Tell that the forward that runs asks for such a number."""
        self.note_it()
