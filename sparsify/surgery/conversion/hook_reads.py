"""Hooks that read a masked weight by its name: they see the stored, unmasked values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from ..tracing.bytecode_scan import names_read

_KINDS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}


def hooks_that_read(model: nn.Module, weights: list[tuple[nn.Module, str]]) -> list[str]:
    """Return a note for each hook whose code reads the name of a masked weight of its module or a submodule."""
    notes = []
    for path, module in model.named_modules():
        hooks = list(_hooks(module))
        if not hooks:
            continue
        below = {id(child) for child in module.modules()}
        names = {name for owner, name in weights if id(owner) in below}
        for kind, hook in hooks:
            notes += [_note(path, kind, hook, name) for name in sorted(names & names_read(hook))]
    return notes


def _hooks(module: nn.Module) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield (kind, function) of a module's hooks, except torch's own, such as that of the old weight_norm."""
    for attribute, kind in _KINDS.items():
        for hook in getattr(module, attribute, {}).values():
            function = _function(hook)
            if not str(getattr(function, "__module__", "")).startswith("torch."):
                yield kind, function


def _function(hook: Any) -> Any:
    while isinstance(hook, partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    return function if hasattr(function, "__code__") else type(function).__call__


def _note(path: str, kind: str, hook: Callable[..., Any], name: str) -> str:
    where = f"{path}: its" if path else "the model's"
    return (
        f"{where} {kind} {hook.__qualname__.rpartition('<locals>.')[2]} reads {name}: "
        f"it gets the stored values; where(module.{name}_mask, module.{name}, 0) is what the forward uses"
    )
