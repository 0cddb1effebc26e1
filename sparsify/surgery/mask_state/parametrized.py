"""Weights computed from parameters by torch.nn.utils.parametrize or by its older hooks (weight and spectral norm).

The mask applies to the computed weight. It is stored beside the parameter that has the weight's shape: `original` or
`original1` in the ParametrizationList, `weight_v` (weight norm) or `weight_orig` (spectral norm) in the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ... import ops
from ..side_effects import changed_buffers, in_mode
from .torch_prune import put_parameter


@dataclass(frozen=True, eq=False)
class Parametrized:
    """One parametrized weight: its name in the module's forward, and the parameters that it is computed from.

    The module `owner` owns these parameters. `source` is the one with the weight's shape, `others` are the rest. If
    `source` is "", the weight cannot be masked, and `reason` says why.
    """

    name: str
    owner: nn.Module
    source: str
    others: tuple[str, ...]
    reason: str = ""


class MaskedWeightNorm(WeightNorm):
    """The hook of torch.nn.utils.weight_norm on a converted module; it masks the weight that it computes."""

    def compute_weight(self, module: nn.Module) -> Any:
        """Return the effective weight."""
        return _masked(module, f"{self.name}_v", super().compute_weight(module))

    def remove(self, module: nn.Module) -> None:
        """Make the effective weight the module's parameter; its mask goes."""
        super().remove(module)
        _forget(module, f"{self.name}_v")


class MaskedSpectralNorm(SpectralNorm):
    """The hook of torch.nn.utils.spectral_norm on a converted module; it masks the weight that it computes."""

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        """Return the effective weight."""
        return _masked(module, f"{self.name}_orig", super().compute_weight(module, do_power_iteration))

    def remove(self, module: nn.Module) -> None:
        """Make the effective weight the module's parameter; its mask goes."""
        super().remove(module)
        _forget(module, f"{self.name}_orig")


_MASKED_HOOKS: dict[type, type] = {WeightNorm: MaskedWeightNorm, SpectralNorm: MaskedSpectralNorm}


def _masked(module: nn.Module, source: str, computed: Tensor) -> Tensor:
    if source not in module.__dict__.get("masked_names", ()):
        return computed
    mask: Tensor = module._buffers[f"{source}_mask"]  # type: ignore[assignment]
    return ops.mask_in_its_layout(computed, mask)


def _forget(module: nn.Module, source: str) -> None:
    module._buffers.pop(f"{source}_mask", None)
    names = module.__dict__.get("masked_names", ())
    module.__dict__["masked_names"] = tuple(name for name in names if name != source)


def masked_parametrization(original: type[nn.Module]) -> Callable[[Any], Tensor]:
    """Return the forward of a ParametrizationList that returns the effective weight."""

    def forward(self: Any) -> Tensor:
        computed = original.forward(self)
        for source in self.masked_names:
            computed = _masked(self, source, computed)
        return computed  # type: ignore[no-any-return]

    return forward


def mask_in_hooks(module: nn.Module) -> None:
    """Change the class of the hooks that compute a masked weight, in place, so that they apply the mask."""
    names = module.__dict__.get("masked_names", ())
    for hook in module._forward_pre_hooks.values():
        if type(hook) in _MASKED_HOOKS and _source_of(hook) in names:
            hook.__class__ = _MASKED_HOOKS[type(hook)]


def unmask_in_hooks(module: nn.Module) -> None:
    """Undo `mask_in_hooks`."""
    for hook in module._forward_pre_hooks.values():
        for plain, masked in _MASKED_HOOKS.items():
            if type(hook) is masked:
                hook.__class__ = plain


def _source_of(hook: Any) -> str:
    return f"{hook.name}_v" if isinstance(hook, WeightNorm) else f"{hook.name}_orig"


def _lists(module: nn.Module) -> dict[str, ParametrizationList]:
    held = None if isinstance(module, torch.jit.ScriptModule) else module._modules.get("parametrizations")
    lists = held.items() if isinstance(held, nn.ModuleDict) else ()
    return {name: one for name, one in lists if isinstance(one, ParametrizationList)}


def _hooks(module: nn.Module) -> list[Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return []
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))]


def parametrized_weights(module: nn.Module) -> list[Parametrized]:
    """Return the parametrized weights that a module's forward reads."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    found = []
    for hook in _hooks(module):
        source = _source_of(hook)
        others = (f"{hook.name}_g",) if isinstance(hook, WeightNorm) else ()
        found.append(Parametrized(hook.name, module, source, others))
    return found + [_of_list(name, one) for name, one in _lists(module).items()]


def _of_list(name: str, one: ParametrizationList) -> Parametrized:
    names = tuple(key for key, parameter in one._parameters.items() if parameter is not None)
    try:
        shape = computed_weight(one, "").shape
    except Exception as error:  # noqa: BLE001 - a parametrization of the user's may fail with anything
        return Parametrized(name, one, "", names, f"its parametrization fails: {type(error).__name__}")
    alike = [key for key in names if one._parameters[key].shape == shape]  # type: ignore[union-attr]
    if not alike:
        return Parametrized(name, one, "", names, "parametrized by parameters none of which has its shape")
    return Parametrized(name, one, alike[-1], tuple(key for key in names if key != alike[-1]))


def computes_from(module: nn.Module, source: str) -> bool:
    """Return whether a parametrization or an older norm hook computes a weight from the module's `source`."""
    if isinstance(module, ParametrizationList):
        return source in module._parameters
    return any(source == _source_of(hook) for hook in _hooks(module))


def formed_since(module: nn.Module, name: str) -> bool:
    """Return whether the module's masked parameter `name` was parametrized after the conversion."""
    if name in module._parameters or name not in module.__dict__.get("masked_names", ()):
        return False
    return name in _lists(module) or any(hook.name == name for hook in _hooks(module))


@torch.no_grad()
def computed_weight(owner: nn.Module, source: str) -> Tensor:
    """Return the current weight computed from the owner's parameter `source`, in eval mode, unmasked and detached."""
    if isinstance(owner, ParametrizationList):
        cls: Any = getattr(type(owner), "original_class", type(owner))
        with in_mode(owner, False), changed_buffers(owner, []), torch.random.fork_rng(devices=[]):
            computed: Tensor = cls.forward(owner)
        return computed.detach()
    hook = next(hook for hook in _hooks(owner) if _source_of(hook) == source)
    if isinstance(hook, WeightNorm):
        return WeightNorm.compute_weight(hook, owner).detach()  # type: ignore[no-any-return]
    return SpectralNorm.compute_weight(hook, owner, do_power_iteration=False).detach()


def source_parameters(module: nn.Module) -> frozenset[str]:
    """Return the names of a module's own parameters from which a weight is computed."""
    if isinstance(module, ParametrizationList):
        return frozenset(module._parameters)
    return frozenset(
        name
        for hook in _hooks(module)
        for name in (f"{hook.name}_g", f"{hook.name}_v", f"{hook.name}_orig")
        if name in module._parameters
    )


def computed_names(model: nn.Module) -> dict[str, str]:
    """Return {parameter name: name in the forward of the weight that is computed from it}."""
    found: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for hook in _hooks(module):
            names = source_parameters(module) & {f"{hook.name}_g", _source_of(hook)}
            found |= {f"{prefix}{name}": f"{prefix}{hook.name}" for name in names}
        for name, one in _lists(module).items():
            found |= {f"{prefix}parametrizations.{name}.{key}": f"{prefix}{name}" for key in one._parameters}
    return found


def without_parametrizations(module: nn.Module) -> nn.Module:
    """Return a shallow copy of a module that holds its parametrized weights as plain parameters."""
    cls: Any = getattr(type(module), "original_class", type(module))
    weights = {one.name: computed_weight(one.owner, one.source) for one in parametrized_weights(module) if one.source}
    plain: Any = parametrize.type_before_parametrizations(module) if cls is type(module) and _lists(module) else cls
    copied: nn.Module = object.__new__(plain)
    copied.__dict__.update({name: value for name, value in module.__dict__.items() if name not in weights})
    copied.__dict__["_parameters"] = {**module._parameters, **{n: nn.Parameter(w) for n, w in weights.items()}}
    copied.__dict__["_modules"] = {n: child for n, child in module._modules.items() if n != "parametrizations"}
    return copied


def make_plain(module: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Replace the parametrized weight `name` of an unmasked module by the parameter `weight`, in place."""
    if name in _lists(module):
        held: Any = module._modules["parametrizations"]
        del held[name]
        # The class is shared with other copies of the module, whose properties stay.
        object.__setattr__(module, "__class__", type(module).__bases__[0])
        if not len(held):
            del module._modules["parametrizations"]
        read_computed(module)
    else:
        hook = next(hook for hook in _hooks(module) if hook.name == name)
        remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(module, name)
        module._parameters.pop(name, None)
    put_parameter(module, name, weight)


def read_computed(module: nn.Module) -> None:
    """Let a module whose class does not know of its parametrizations read what they compute."""
    if any(not hasattr(type(module), name) for name in _lists(module)):
        parametrize._inject_new_class(module)
        for name in _lists(module):
            parametrize._inject_property(module, name)


def graph_free(model: nn.Module) -> dict[int, Tensor]:
    """Return a deepcopy memo with copies of the non-leaf tensors that modules hold, which deepcopy refuses to copy."""
    held = [value for module in model.modules() for value in module.__dict__.values()]
    held += [item for value in held if isinstance(value, list) for item in value]
    tensors = [value for value in held if isinstance(value, Tensor) and value.grad_fn is not None]
    return {id(tensor): tensor.detach().clone() for tensor in tensors}
