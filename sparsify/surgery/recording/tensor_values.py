"""The Value of each tensor of a recorded pass; it is stale once the tensor's storage was written to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from .context import leaves
from .ops import Value


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor inside those of torch.func's transforms, which have no storage."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


class Memory:
    """One storage: its Values, how often it was written to, and its number in order of appearance."""

    def __init__(self, storage: torch.UntypedStorage, number: int) -> None:
        self.number = number
        # While this reference exists, no other storage can get the same address.
        self.held = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self.values: list[Value] = []
        self.writes = 0


class TensorValues:
    """The Values of the tensors seen so far, by tensor, and the storages they share."""

    def __init__(self) -> None:
        self._values: Any = WeakIdKeyDictionary()  # tensor -> (its Value, writes to its storage so far)
        self._memories: dict[int, Memory] = {}

    def __len__(self) -> int:
        """Return the number of storages seen so far."""
        return len(self._memories)

    def enter(self, tensor: Tensor, value: Value) -> Value:
        """Store `value` as the Value of a tensor and return it."""
        memory = self.memory(tensor)
        memory.values.append(value)
        self._values[tensor] = value, memory.writes
        return value

    def memory(self, tensor: Tensor) -> Memory:
        """Return the Memory of a tensor's storage; always a new one for a sparse tensor."""
        if tensor.layout != torch.strided:
            return Memory(torch.UntypedStorage(), 0)  # type: ignore[no-untyped-call]
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memories:
            self._memories[storage._cdata] = Memory(storage, len(self._memories))
        return self._memories[storage._cdata]

    def seen(self, tensor: Tensor) -> Value | None:
        """Return the Value of a tensor, None if it is unknown or was written to since."""
        tensor = plain(tensor)
        value, writes = self._values.get(tensor, (None, -1))
        return None if value is None or writes != self.memory(tensor).writes else value

    def sharing(self, tensor: Tensor) -> list[Value]:
        """Return the Values that share memory with a tensor, and the Value that it had before it was written to."""
        value, _ = self._values.get(tensor, (None, -1))
        return [*self.memory(tensor).values, *([value] if value is not None else [])]

    def written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note that an operation is about to write to tensors; first clone the constants that share their memory."""
        for i, argument in enumerate(func._schema.arguments):
            if argument.is_write:
                given = kwargs.get(argument.name, args[i] if i < len(args) else None)
                for tensor in leaves(given, Tensor):
                    memory = self.memory(tensor)
                    memory.writes += 1
                    for value in memory.values:
                        if value.constant is not None:
                            value.constant = value.constant.clone()
