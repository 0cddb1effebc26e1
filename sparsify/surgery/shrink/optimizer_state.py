"""Cut the training state that goes with a shrunk model: checkpoints, averaged copies, the optimiser."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn

from ...arguments import takes
from ...errors import SparsifyError
from ...quantities import sizes
from ..unwrap import unwrap, wrapper_prefix
from .cuts import Cuts, beyond, checked, cuts_of
from .indices import Axes, check_axes, without

_CHECKPOINTED = "_checkpoint_wrapped_module."  # torch's wrapper, which its state dict leaves out
_INNER = ("optimizer", "_base_optimizer", "base_optimizer")  # accelerate's wrapper, timm's Lookahead


@takes(state=Mapping, cuts=Cuts)
def cut_state(state: Mapping[str, Any], cuts: Cuts) -> dict[str, Any]:
    """Return the `state_dict` of an uncut model (an averaged copy, a checkpoint), cut like the model.

    Keys may carry the prefixes of AveragedModel, ModelEmaV3, DistributedDataParallel and torch.compile, and keep them.
    Masks are cut like their weights. Tensors that are not cut are the same objects; `state` is not changed.
    Raises SparsifyError for tensors that do not fit `cuts`, if `state` has none of the cut tensors, and for cuts that
    added biases, whose values are valid only for the model that was shrunk.
    """
    cuts = checked(cuts, "cut_state")
    if cuts.added:
        raise SparsifyError(
            f"cut_state: the cut added {', '.join(cuts.added)}, whose values hold only for the model that was cut; "
            "shrink the other model itself"
        )
    prefix = wrapper_prefix(state)
    axes = _axes_by_name("cut_state", {key.removeprefix(prefix): value for key, value in state.items()}, cuts)
    if cuts.removed and not axes:
        raise SparsifyError("cut_state: the state has none of the tensors that were cut; it belongs to another model")
    result: dict[str, Any] = OrderedDict()
    made: dict[Any, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if name in axes:
            where = _memory(value)
            result[key] = made[where] if where in made else without(value, axes[name])
            made[where] = result[key]
        else:
            result[key] = value
    if hasattr(state, "_metadata"):
        result._metadata = state._metadata  # type: ignore[attr-defined]
    return result


@takes(optimizer=torch.optim.Optimizer, before=(nn.Module, Mapping), after=nn.Module, cuts=Cuts)
def cut_optimizer(
    optimizer: torch.optim.Optimizer, before: nn.Module | Mapping[str, Tensor], after: nn.Module, cuts: Cuts
) -> None:
    """Turn an optimiser of `before` into one of `after`, the cut model, in place, including its state.

    `before` is the model whose parameters the optimiser holds, with masks or plain; if `apply_cuts` cut that model in
    place, pass the `dict(model.named_parameters())` taken before. In every group the parameters of `after` replace
    their originals. State of a parameter's shape (momentum, averages of gradients and their squares) is cut like the
    parameter, numbers are kept. A bias that the cut added joins the group of the nearest bias of the model. Parameters
    of other models are left alone. Wrappers (accelerate's, Lookahead) keep their inner optimiser.
    On the kept entries the next step equals that of the masked model, provided that the optimiser works elementwise;
    one that takes the norm of a whole parameter (LAMB) would have seen the removed entries too.
    If `before` had been cut before, `cuts` may be the latest cuts or all of them (`cuts_of(after)`).
    Raises SparsifyError, with nothing changed, if the models and the optimiser do not belong together, and for state of
    another shape (the factored averages of Adafactor, preconditioners), which cannot be cut.
    """
    cuts = checked(cuts, "cut_optimizer")
    earlier = None if isinstance(before, Mapping) else cuts_of(unwrap(before))
    if earlier is not None and cuts == cuts_of(unwrap(after)):
        cuts = beyond(earlier, cuts)
    chain = list(_chain(optimizer))
    groups = list({id(group): group for one in chain for group in one.param_groups}.values())
    own = before if isinstance(before, Mapping) else dict(unwrap(before).named_parameters(remove_duplicate=False))
    made = dict(unwrap(after).named_parameters(remove_duplicate=False))
    axes = _axes_by_name("cut_optimizer", own, cuts)
    for name, parameter in own.items():
        _check_counterpart(name, parameter, made.get(name), axes.get(name, {}))
    names = {id(parameter): name for name, parameter in own.items()}
    held = [parameter for group in groups for parameter in group["params"] if id(parameter) in names]
    if not held:
        raise SparsifyError("cut_optimizer: the optimiser holds no parameter of the model that was cut")
    replaced = {id(parameter): made[names[id(parameter)]] for parameter in held}
    # Create all new state before changing anything.
    states = [_cut_states(one, names, axes) for one in chain]
    for one, state in zip(chain, states, strict=True):
        one.state.clear()
        one.state.update({replaced.get(id(parameter), parameter): found for parameter, found in state})
    for group in groups:
        group["params"][:] = [replaced.get(id(parameter), parameter) for parameter in group["params"]]
    _add_biases(groups, made, cuts)


def _check_counterpart(name: str, old: Tensor, new: Tensor | None, axes: Axes) -> None:
    wanted = [size - len(axes.get(dimension, ())) for dimension, size in enumerate(old.shape)]
    if new is None or list(new.shape) != wanted:
        found = "it is missing" if new is None else f"it is {sizes(new.shape)} there"
        raise SparsifyError(
            f"cut_optimizer: {name} should be {sizes(wanted)} in the cut model, cut from {sizes(old.shape)}, "
            f"but {found}; before and after must be the model as it was and the one that the same cuts made of it"
        )


def _cut_states(optimizer: Any, names: Mapping[int, str], axes: Mapping[str, Axes]) -> list[tuple[Any, Any]]:
    """Return (old parameter, its cut state) for every parameter in an optimiser's state."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise SparsifyError("cut_optimizer: LBFGS keeps one history of all parameters, which cannot be cut")
    found = []
    for parameter, state in optimizer.state.items():
        name = names.get(id(parameter), "")
        where = f"{type(optimizer).__name__}'s state of {name}"
        found.append((parameter, _cut(state, parameter, axes[name], where) if name in axes else state))
    return found


def _cut(value: Any, parameter: Tensor, axes: Axes, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item, parameter, axes, f"{where}, {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_cut(item, parameter, axes, where) for item in value])
    if not isinstance(value, Tensor) or value.numel() == 1:
        return value
    if value.shape != parameter.shape:
        raise SparsifyError(
            f"cut_optimizer: {where}: it is {sizes(value.shape)}, the parameter {sizes(parameter.shape)}; only state "
            "of the parameter's shape can be cut; make a new optimiser"
        )
    return without(value, axes)


def _add_biases(groups: list[dict[str, Any]], made: Mapping[str, Tensor], cuts: Cuts) -> None:
    """Add each new bias, if its layer is trained, to the group of the bias whose path shares the longest prefix."""
    home = {id(parameter): group for group in groups for parameter in group["params"]}
    biases = [name for name, value in made.items() if name.endswith("bias") and id(value) in home]
    for name in cuts.added:
        weight = name.removesuffix("bias") + "weight"
        if id(made[weight]) not in home or id(made[name]) in home:
            continue
        nearby = max(biases, key=lambda other: len(commonprefix([name.split("."), other.split(".")])), default=weight)
        group = home[id(made[nearby])]
        group["params"].append(made[name])
        if "param_names" in group:
            group["param_names"].append(name)


def _axes_by_name(where: str, tensors: Mapping[str, Any], cuts: Cuts) -> dict[str, Axes]:
    """Return {name: indices to remove}, including other names of cut tensors and the masks of cut weights."""
    known = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    own = {name: name if name in known else name.replace(_CHECKPOINTED, "") for name in cuts.removed}
    named = {_memory(known[own[name]]): axes for name, axes in cuts.removed.items() if own[name] in known}
    found: dict[str, Axes] = {
        name: named[_memory(tensor)] for name, tensor in known.items() if _memory(tensor) in named
    }
    for name, tensor in known.items():
        weight = name.removesuffix("_mask")
        if weight != name and weight in found and tensor.shape == known[weight].shape:
            found[name] = found[weight]
    for name, axes in found.items():
        check_axes(where, name, known[name], axes)
    return found


def _memory(tensor: Tensor) -> Any:
    """Return a key that is equal for two tensors that are the same view of the same memory."""
    if tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _chain(optimizer: Any) -> Iterator[Any]:
    """Yield the optimiser and, from outside in, those that it wraps."""
    yield optimizer
    for name in _INNER:
        inner = getattr(optimizer, name, None)
        if inner is not None and hasattr(inner, "param_groups"):
            yield from _chain(inner)
