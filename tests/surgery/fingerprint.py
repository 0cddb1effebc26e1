"""What a model is, down to the objects that it holds: equal before and after what shall change nothing."""

from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> Any:
    """Return classes, attributes by identity, containers by content, tensors by value, of every module."""
    return [(path, type(module), _attributes(module)) for path, module in model.named_modules(remove_duplicate=False)]


def _attributes(module: nn.Module) -> list[Any]:
    return [(name, id(value), _content(value)) for name, value in module.__dict__.items()]


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value.dtype, value.requires_grad, value.detach().double().flatten().tolist()
    if isinstance(value, dict):
        return [(key, type(item), id(item), _content(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [(id(item), _content(item)) for item in value]
    if isinstance(value, set):
        return sorted(map(str, value))
    return None


def random_states() -> list[Any]:
    """Return the state of torch's generator."""
    return torch.get_rng_state().tolist()  # type: ignore[no-any-return]
