"""convert(): put masks on a model, in place.

First everything is found out and decided without touching the model; then it is applied. A weight is masked where it is
used: by torch.nn's own forward (`direct`), by fused kernels of torch.nn (`lent`), by a forward of the module's own,
rewritten by fx (`rewritten`, or `computed` where the forward computes the weight it uses from the parameter). Where a
graph would lose something that such a forward does, it is lent as well; where it cannot be traced at all, this is done
for conv and linear weights only, and the report's notes say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .adopt import pruned_parameters, take_over
from .forwards import attach_mask, masked_class
from .masks import all_masked_weights, original_class
from .names import ignored_names
from .plan import Key, Plan, own_weights, plan_module, settle_shared, weight_owners
from .rewrite import Rewritten, prepare


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did.

    `masked` maps weight names to how the mask enters ("direct", "rewritten", "computed" or "lent"), `skipped` every
    other float parameter of two or more dimensions to the reason; `notes` says what a person should know besides.
    """

    model: nn.Module
    masked: dict[str, str]
    skipped: dict[str, str]
    notes: list[str]


def convert(model: nn.Module, ignore: Iterable[str] = ()) -> ConversionReport:
    """Put an all-ones mask on every conv, linear, attention and recurrent weight of `model`, in place.

    The model computes the same bits as before; its `state_dict` gains a bool buffer `<weight>_mask` for each weight.
    `ignore` lists weights that get no mask: names of weights or modules, globs, "first" and "last" (in order of
    registration). Masks set by torch.nn.utils.prune are taken over. Converting again adds the masks that are missing.
    Raises SparsifyError if an ignore pattern matches nothing; then nothing was changed.
    """
    plan = Plan({id(module): name for name, module in model.named_modules()})
    for module in model.modules():
        plan_module(module, plan)
    for where in plan.dense:
        plan.how.pop(where, None)
    owners = weight_owners(model)
    settle_shared(owners, plan)
    maskable = [name for name, (module, key) in owners.items() if (id(module), key) in plan.how]
    ignored = ignored_names(maskable, ignore, others=[name for name in owners if name not in maskable])
    shared_ignored = {(id(owners[name][0]), owners[name][1]): pattern for name, pattern in ignored.items()}
    masked: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, (module, key) in owners.items():
        where = (id(module), key)
        if where in shared_ignored:
            skipped[name] = f"ignored by '{shared_ignored[where]}'"
        elif where in plan.how:
            masked[name] = plan.how[where]
        else:
            skipped[name] = plan.reasons.get(where, f"{type(module).__name__}: not a conv or linear weight")
    _apply(model, [owners[name] for name in masked], plan)
    return ConversionReport(model, masked, skipped, plan.notes)


def _apply(model: nn.Module, weights: list[tuple[nn.Module, str]], plan: Plan) -> None:
    masks = {id(weight.parameter): weight.mask for weight in all_masked_weights(model)}
    wanted = {(id(module), name) for module, name in weights}
    for module, name in weights:
        if name in module.__dict__.get("masked_names", ()):
            continue
        taken = take_over(module, name) if name in pruned_parameters(module) else None
        parameter = module._parameters[name]
        assert parameter is not None
        mask = masks.get(id(parameter))
        if mask is None:
            mask = taken if taken is not None else torch.ones_like(parameter, dtype=torch.bool, requires_grad=False)
        masks[id(parameter)] = mask
        attach_mask(module, name, mask)
    changed = [module for module in model.modules() if _needs_class(module, wanted, plan)]
    for module in changed:
        kind = plan.kinds.get(id(module), "owner")
        cls = original_class(module)
        if kind in ("lent", "rewritten"):
            module.__dict__["masked_reads"] = tuple(plan.reads[id(module)])
        if kind == "rewritten":
            module.__dict__["masked_forwards"] = Rewritten()
            computed = (name for name in own_weights(module) if plan.how.get((id(module), name)) == "computed")
            module.__dict__["computed_weights"] = tuple(computed)
        module.__class__ = masked_class(cls, kind)  # type: ignore[arg-type]
    for module in changed:
        if plan.kinds.get(id(module)) == "rewritten":
            prepare(module, plan.graphs[id(module)])


def _needs_class(module: nn.Module, wanted: set[Key], plan: Plan) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return False
    reads = plan.reads.get(id(module), [])
    owners = [(id(module.get_submodule(path.rpartition(".")[0])), path.rpartition(".")[2]) for path in reads]
    return any(owner in wanted for owner in owners) or bool(module.__dict__.get("masked_names"))
