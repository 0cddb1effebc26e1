"""mask_also(): put masks on extra parameters (biases, norms, tables), so that whole units can be exactly zero."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from ...arguments import takes
from ...errors import SparsifyError, did_you_mean
from ..mask_state.masks import all_masked_weights, names_of_masked
from ..masking.masked_classes import Masked
from ..module_walk import full_name
from ..rollback import all_or_nothing
from .convert import apply
from .decisions import ConversionPlan, Key
from .plan import plan_module
from .plan_extra import at_or_below, masked_extra, may_read, plan_extra, unmaskable


class _Place(NamedTuple):
    """A parameter, the module that owns it and its name there."""

    module: nn.Module
    name: str
    parameter: Tensor

    @property
    def key(self) -> Key:
        return id(self.module), self.name


@takes(model=nn.Module, names=Iterable)
def mask_also(model: nn.Module, names: Iterable[str]) -> None:
    """Put all-ones masks on the named parameters of `model`, in place: biases, norms, tables, of any shape.

    The model computes the same bits as before; its `state_dict` gains a bool buffer `<name>_mask` for each parameter. A
    forward that reads the parameter sees `where(mask, parameter, 0)`; the gradient of a masked entry is exactly zero.
    `get_masks` and `set_masks` include these masks, sparsities and `masked_weights` do not. A parameter with several
    names gets one mask; an existing mask stays.
    Call this on the whole model, since only modules of `model` are searched for forwards that read the parameters. A
    method other than a forward (timm's `forward_features`) sees the model's own parameters without these masks.
    Raises SparsifyError, which names the parameter, if one does not exist or cannot be masked; nothing is changed then.
    """
    places = _places(model)
    wanted = _wanted([names] if isinstance(names, str) else list(names), places)
    if not wanted:
        return
    plan = _make_plan(model, {place.key for place in wanted.values()})
    _refuse_unreached(wanted, plan)
    weights = [(weight.module, weight.parameter_name) for weight in all_masked_weights(model)]
    with all_or_nothing(model):
        apply(model, weights, [(place.module, place.name) for place in wanted.values()], plan, {})


def _make_plan(model: nn.Module, new: set[Key]) -> ConversionPlan:
    """Return the plan for the modules that may read one of the `new` parameters, with the masks they already apply."""
    plan = ConversionPlan({id(module): name for name, module in model.named_modules()}, extra=new | masked_extra(model))
    for module in model.modules():
        if may_read(module, at_or_below(module, new)):
            if isinstance(module, Masked):
                plan_module(module, plan)
            plan_extra(module, plan)
    return plan


def _places(model: nn.Module) -> dict[str, _Place]:
    """Return {name: place} for all names of all parameters."""
    return {
        full_name(prefix, name): _Place(module, name, parameter)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }


def _wanted(names: list[str], places: dict[str, _Place]) -> dict[str, _Place]:
    """Return the named parameters that have no mask yet, under all their names.

    Raises SparsifyError for a parameter that does not exist or cannot carry a mask.
    """
    for name in names:
        if name not in places:
            hint = did_you_mean(name, places)
            raise SparsifyError(f"mask_also: the model has no parameter '{name}'{hint}")
    new = [place for place in map(places.__getitem__, names) if place.name not in names_of_masked(place.module)]
    parameters = {id(place.parameter) for place in new}
    wanted = {name: place for name, place in places.items() if id(place.parameter) in parameters}
    for name, place in wanted.items():
        reason = unmaskable(place.module, place.name)
        if reason:
            raise SparsifyError(f"mask_also: {name} cannot be masked: {reason}")
    return wanted


def _refuse_unreached(wanted: dict[str, _Place], plan: ConversionPlan) -> None:
    """Raise SparsifyError for a parameter that no forward reads masked or that some forward reads unmasked."""
    reached = {id(place.parameter) for place in wanted.values() if place.key in plan.reached}
    for name, place in wanted.items():
        reason = plan.blocked.get(place.key, "")
        if not reason and id(place.parameter) not in reached:
            reason = "no forward of the model was found to read it"
        if reason:
            raise SparsifyError(f"mask_also: {name} cannot be masked: {reason}")
