"""Which Value each tensor of a recorded pass is: known by the tensor, stale once its storage was written to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from .context import leaves
from .ops import Value


class Memory:
    """One storage: the Values on it, how often it was written to, and how many were met before."""

    def __init__(self, storage: torch.UntypedStorage, number: int) -> None:
        self.number = number
        # While this is held, no other storage gets the address.
        self.held = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self.values: list[Value] = []
        self.writes = 0


class TensorValues:
    """The Values of the tensors that were met, by tensor, and what shares memory with them."""

    def __init__(self) -> None:
        self._values: Any = WeakIdKeyDictionary()  # tensor -> its Value, and the writes to its memory by then
        self._memories: dict[int, Memory] = {}

    def __len__(self) -> int:
        """How many storages were met."""
        return len(self._memories)

    def enter(self, tensor: Tensor, value: Value) -> Value:
        """Store the Value of a tensor, and return it."""
        memory = self.memory(tensor)
        memory.values.append(value)
        self._values[tensor] = value, memory.writes
        return value

    def memory(self, tensor: Tensor) -> Memory:
        """Return the Memory of a tensor's storage; a new one for a sparse tensor."""
        if tensor.layout != torch.strided:
            return Memory(torch.UntypedStorage(), 0)  # type: ignore[no-untyped-call]
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memories:
            self._memories[storage._cdata] = Memory(storage, len(self._memories))
        return self._memories[storage._cdata]

    def seen(self, tensor: Tensor) -> Value | None:
        """Return the Value of a tensor that is known and was not written to since, or None."""
        value, writes = self._values.get(tensor, (None, -1))
        return None if value is None or writes != self.memory(tensor).writes else value

    def sharing(self, tensor: Tensor) -> list[Value]:
        """Return the Values that share memory with a tensor, and the one that it had before it was written to."""
        value, _ = self._values.get(tensor, (None, -1))
        return [*self.memory(tensor).values, *([value] if value is not None else [])]

    def written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note that an operation is about to write to tensors, and copy the values of constants first."""
        for i, argument in enumerate(func._schema.arguments):
            if argument.is_write:
                given = kwargs.get(argument.name, args[i] if i < len(args) else None)
                for tensor in leaves(given, Tensor):
                    memory = self.memory(tensor)
                    memory.writes += 1
                    for value in memory.values:
                        if value.constant is not None:
                            value.constant = value.constant.clone()
