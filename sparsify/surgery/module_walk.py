"""The modules of a model with their paths, many times faster than nn.Module's nested generators; qualified names."""

from __future__ import annotations

from torch import nn


def named_modules(model: nn.Module, *, remove_duplicate: bool = True) -> list[tuple[str, nn.Module]]:
    """Return the (path, module) pairs of `nn.Module.named_modules`, in its order; shared modules once by default."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def visit(path: str, module: nn.Module) -> None:
        """Append `module` and everything below it, parents first."""
        if type(module).named_modules is not nn.Module.named_modules:
            named = module.named_modules(prefix=path, remove_duplicate=remove_duplicate)
            found.extend((name, one) for name, one in named if id(one) not in seen)
            seen.update(id(one) for _, one in found if remove_duplicate)
            return
        if remove_duplicate:
            if id(module) in seen:
                return
            seen.add(id(module))
        found.append((path, module))
        for name, below in module._modules.items():
            if below is not None:
                visit(full_name(path, name), below)

    visit("", model)
    return found


def full_name(path: str, name: str) -> str:
    """Return the name in the model of `name` in the module at `path`; the model's own path is ""."""
    return f"{path}.{name}" if path else name


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that owns the parameter, buffer or submodule `name` of a model, and its name in that module."""
    path, _, own = name.rpartition(".")
    return model.get_submodule(path), own


def parameter_names(module: nn.Module) -> list[str]:
    """Return the names of the parameters that a module itself holds; of scripted modules too."""
    return [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]
