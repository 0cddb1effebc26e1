"""All-or-nothing changes of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .side_effects import attributes_of, put_back


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Restore the attributes, parameters, hooks and classes of the model's modules if the block raises."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    saved = attributes_of(("", module) for module in modules)
    objects = [*modules, *(hook for module in modules for hook in module._forward_pre_hooks.values())]
    classes = [(one, type(one)) for one in objects]
    try:
        yield
    except BaseException:
        for one, cls in classes:
            if type(one) is not cls:
                object.__setattr__(one, "__class__", cls)
        put_back(saved)
        raise
