"""A pruner's state as an entry of its model's state dict, so that every checkpoint of the model holds it.

Trainers save `model.state_dict()` and offer no place for more. During training one more entry, a tensor of bytes, holds
the pruner's state; loading a state dict removes it again.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

KEY = "sparsify_pruner"
_PLAIN = "//plain"  # a name that no tensor of a pruner's state has


def to_bytes(state: Mapping[str, Any]) -> Tensor:
    """Return a flat dict of numbers, strings, bools and tensors as a tensor of bytes (uint8)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    plain = json.dumps({name: value for name, value in state.items() if name not in tensors}).encode()
    tensors[_PLAIN] = torch.frombuffer(bytearray(plain), dtype=torch.uint8)
    return torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)


def from_bytes(stored: Tensor) -> dict[str, Any]:
    """Return the dict that `to_bytes` was given, its tensors on the CPU."""
    tensors = load(stored.cpu().numpy().tobytes())
    plain: dict[str, Any] = json.loads(tensors.pop(_PLAIN).numpy().tobytes())
    return plain | tensors


class CarriedState:
    """Adds what `state` returns to the state dict of one model; `loaded` is the entry of the last one loaded.

    Copies of the model add nothing, but load state dicts with the entry. `remove` takes the hooks off.
    """

    def __init__(self, model: nn.Module) -> None:
        self.state: Callable[[], Mapping[str, Any]] | None = None
        self.loaded: dict[str, Any] | None = None
        self._handles = (
            model.register_state_dict_post_hook(_Write(self, model)),  # type: ignore[no-untyped-call]
            model.register_load_state_dict_pre_hook(_Read(self, model)),  # type: ignore[no-untyped-call]
        )

    def remove(self) -> None:
        """Take the hooks off: the model's state dict is its own again."""
        for handle in self._handles:
            handle.remove()


class _Hook:
    def __init__(self, owner: CarriedState | None = None, model: nn.Module | None = None) -> None:
        self.owner = owner
        self.model = None if model is None else weakref.ref(model)

    def of(self, module: nn.Module) -> CarriedState | None:
        return self.owner if self.model is not None and self.model() is module else None

    def __reduce__(self) -> Any:
        return type(self), ()  # of a copy of the model


class _Write(_Hook):
    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
        owner = self.of(module)
        if owner is not None and owner.state is not None:
            state_dict[prefix + KEY] = to_bytes(owner.state())


class _Read(_Hook):
    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        stored = state_dict.pop(prefix + KEY, None)
        owner = self.of(module)
        if owner is not None:
            owner.loaded = None if stored is None else from_bytes(stored)
