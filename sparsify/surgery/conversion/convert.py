"""convert(): put masks on a model, in place.

A plan is made without touching the model, then applied. There are three ways to apply a mask: torch.nn's conv and
linear layers call a masked operation (`direct`); any other forward runs on a copy of its module that holds effective
weights (`substituted`); if a forward computes its weight from the parameter, the computed weight is masked
(`computed`). fx traces of the forwards show which parameters are weights. If a forward cannot be traced, its conv and
linear weights are masked, and the report's notes say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...arguments import takes
from ..ignore_patterns import class_names, ignored_names, is_adapter, keyword_clashes
from ..mask_state.averages import keep_masks_in_averages
from ..mask_state.masks import Layout, alike, all_masked_parameters, names_of_masked, original_class, usual_layout
from ..mask_state.parametrized import computed_names, computes_from
from ..mask_state.sharding import refuse_sharded
from ..mask_state.torch_prune import Pruned, cannot_take_over, take_over
from ..masking.masked_classes import Masked, attach_mask, guard_loading, masked_class
from ..rollback import all_or_nothing
from ..shallow_copies import bound_attributes
from .decisions import ConversionPlan, Key, key_at
from .exclusions import leave_out_shared, leave_out_unmaskable
from .hook_reads import hooks_that_read
from .plan import plan_module, read_where_called_functionally, weight_owners
from .plan_extra import masked_extra, plan_extra
from .plan_parametrized import inside_parametrizations, leave_inside, plan_parametrized

Owner = tuple[nn.Module, str]  # a module and the name of one of its parameters


@dataclass(frozen=True)
class ConversionReport:
    """The result of `convert`: the model, and what became of each of its weights.

    `masked` maps the name of each masked weight to how its mask is applied ("direct", "substituted" or "computed"),
    `skipped` that of every other float parameter of two or more dimensions to the reason. `notes` are further remarks.
    """

    model: nn.Module
    masked: dict[str, str]
    skipped: dict[str, str]
    notes: list[str]


@takes(model=nn.Module, ignore=Iterable, only=Iterable)
def convert(model: nn.Module, ignore: Iterable[str] = (), only: Iterable[str] = ()) -> ConversionReport:
    """Put an all-ones mask on every conv, linear, attention and recurrent weight of `model`, in place.

    Return a report that says, for each weight, how its mask is applied or why it has none. A parameter that a matrix
    product uses as a weight (`x @ self.w`, einsum, addmm, bmm, bilinear) is a weight as well.

    The model computes the same bits as before; its `state_dict` gains a bool buffer `<weight>_mask` for each weight.
    `ignore` lists weights that get no mask: names of weights or modules, globs, "re:" before a regular expression,
    names of classes ("Linear"), the keywords "first" and "last" (in order of registration), and "name:last" for a
    module of that name. `only` takes the same patterns; with it, no other weight gets a mask. Converting again adds
    missing masks; the weights of adapters (LoRA) stay dense. Masks of torch.nn.utils.prune are taken over: on weights
    as their masks, on other parameters and on ignored weights as masks of `mask_also`.

    Raises SparsifyError if a pattern matches nothing, if a mask of torch.nn.utils.prune cannot be taken over, and for a
    model sharded by fully_shard. After any error the model is unchanged.
    """
    refuse_sharded(model, "convert", "convert it before it is cut")
    with all_or_nothing(model):
        ignored, wanted = ([given] if isinstance(given, str) else list(given) for given in (ignore, only))
        return _convert(model, ignored, wanted, take_over(model))


def _convert(model: nn.Module, ignore: list[str], only: list[str], pruned: list[Pruned]) -> ConversionReport:
    plan = _make_plan(model, {(id(one.module), one.name) for one in pruned})
    owners = plan.owners
    maskable = [n for n, (module, key) in owners.items() if (id(module), key) in plan.how and not is_adapter(n, module)]
    matched = partial(
        ignored_names,
        maskable,
        others=[name for name in owners if name not in maskable],
        aliases=computed_names(model),
        classes=class_names(model),
    )
    ignored = {name: f"ignored by '{pattern}'" for name, pattern in matched(ignore).items()}
    if only:
        wanted = matched(only, key=("only",))
        ignored |= {name: "not among 'only'" for name in maskable if name not in wanted and name not in ignored}
    shared_ignored = {(id(owners[name][0]), owners[name][1]): reason for name, reason in ignored.items()}
    masked: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, (module, key) in owners.items():
        where = (id(module), key)
        if where in shared_ignored:
            skipped[name] = shared_ignored[where]
        elif is_adapter(name, module):
            skipped[name] = "an adapter (LoRA), which stays dense"
        elif where in plan.how:
            masked[name] = plan.how[where]
        else:
            skipped[name] = plan.reasons.get(where, f"{type(module).__name__}: not a conv or linear weight")
    weights = [owners[name] for name in masked]
    extra = _unmasked_pruned(pruned, weights, plan)
    masks = {id(one.module._parameters[one.name]): one.mask for one in pruned}
    apply(model, weights, [(one.module, one.name) for one in extra], plan, masks)
    notes = [*plan.notes, *keyword_clashes(maskable, ignore), *hooks_that_read(model, weights)]
    return ConversionReport(model, masked, skipped, notes)


def _make_plan(model: nn.Module, extra: set[Key]) -> ConversionPlan:
    """Return the plan for the weights of `model` and its extra parameters: `extra`, and those already masked."""
    names = {id(module): name for name, module in model.named_modules()}
    plan = ConversionPlan(names, extra=extra | masked_extra(model))
    inside = inside_parametrizations(model)
    for module in model.modules():
        if id(module) in inside:
            leave_inside(module, plan)
        else:
            plan_module(module, plan)
            plan_extra(module, plan)
            plan_parametrized(module, plan)
    for module in model.modules():
        read_where_called_functionally(module, plan)
    leave_out_unmaskable(model, plan)
    for where in plan.dense:
        plan.how.pop(where, None)
    plan.owners = weight_owners(model, plan)
    leave_out_shared(plan)
    return plan


def _unmasked_pruned(pruned: list[Pruned], weights: list[Owner], plan: ConversionPlan) -> list[Pruned]:
    """Return the parameters pruned by torch.nn.utils.prune that are not among `weights`.

    Raises SparsifyError for a parameter to which no forward can apply a mask.
    """
    masked = {(id(module), name) for module, name in weights}
    extra = [one for one in pruned if (id(one.module), one.name) not in masked]
    for one in extra:
        where = (id(one.module), one.name)
        reason = plan.blocked.get(where, "") or ("" if where in plan.reached else "no forward was found to read it")
        if reason:
            raise cannot_take_over(one, reason)
    if extra:
        plan.notes.append(
            "masks of torch.nn.utils.prune on parameters that sparsities do not count: "
            + ", ".join(one.path for one in extra)
        )
    return extra


def apply(
    model: nn.Module, weights: list[Owner], extra: list[Owner], plan: ConversionPlan, given: Mapping[int, Tensor]
) -> None:
    """Put the missing masks on `weights` and `extra` parameters, in place, and give modules their masked classes.

    `given` maps ids of parameters to masks; other masks are all ones. A module outside the plan that has a masked class
    keeps it.
    """
    masks = {id(weight.parameter): weight.mask for weight in all_masked_parameters(model)} | {**given}
    guard_loading(model)
    keep_masks_in_averages()  # the next update of an average built before the conversion raises an error
    for module, name in weights:
        _attach(module, name, masks, extra=False)
        _keep_layout(module, name, plan.layouts.get((id(module), name)))
    for module, name in extra:
        _attach(module, name, masks, extra=True)
    wanted = {(id(weight.module), weight.parameter_name) for weight in all_masked_parameters(model)}
    changed = [module for module in model.modules() if _needs_class(module, wanted, plan)]
    for module in changed:
        kind = plan.kinds.get(id(module), "owner")
        cls = original_class(module)
        if kind == "substituted":
            module.__dict__["masked_reads"] = tuple(plan.reads[id(module)])
            module.__dict__["computed_eagerly"] = id(module) in plan.eager
            module.__dict__["calls_functionally"] = id(module) in plan.functional
            module.__dict__["bound_attributes"] = bound_attributes(module)
            masked = module.__dict__.get("masked_names", ())
            names = [name for name in masked if not computes_from(module, name)]
            module.__dict__["computed_weights"] = tuple(n for n in names if plan.how.get((id(module), n)) == "computed")
        # A __setattr__ of the user's may refuse it.
        object.__setattr__(module, "__class__", masked_class(cls, kind))  # type: ignore[arg-type]


def _attach(module: nn.Module, name: str, masks: dict[int, Tensor], *, extra: bool) -> None:
    """Put a mask on a parameter that has none; an extra parameter that is now a weight moves to `masked_names`."""
    attributes = module.__dict__
    if name in attributes.get("masked_also", ()) and not extra:
        attributes["masked_also"] = tuple(other for other in attributes["masked_also"] if other != name)
        attributes["masked_names"] = (*attributes.get("masked_names", ()), name)
    if name in names_of_masked(module):
        return
    parameter = module._parameters[name]
    assert parameter is not None
    mask = masks.get(id(parameter))
    if mask is None:
        mask = torch.ones_like(parameter, dtype=torch.bool, requires_grad=False)
    masks[id(parameter)] = mask
    attach_mask(module, name, mask, extra=extra)


def _keep_layout(module: nn.Module, name: str, layout: Layout | None) -> None:
    """Store the layout of a weight unless it equals the usual layout of torch.nn's modules."""
    parameter = module._parameters[name]
    assert parameter is not None
    if layout is not None and not alike(layout, usual_layout(module, parameter.dim()), parameter.shape):
        module.__dict__["masked_layouts"] = {**module.__dict__.get("masked_layouts", {}), name: layout}


def _needs_class(module: nn.Module, wanted: set[Key], plan: ConversionPlan) -> bool:
    if isinstance(module, torch.jit.ScriptModule) or (isinstance(module, Masked) and id(module) not in plan.reads):
        return False
    reads = plan.reads.get(id(module), [])
    owners = [key_at(module, path) for path in reads]
    return any(owner in wanted for owner in owners) or bool(names_of_masked(module))
