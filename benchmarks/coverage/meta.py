"""Checks of the conversion of a model that is too large to run: those that need no values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsify.calls import tensors_in

from .checks import Row, apply_conversion, in_one_line
from .models import Try, arguments, create, tries


def check_on_meta(model: str, reason: str) -> Row:
    """Convert a model on the meta device and say which masks its outputs depend on; `verdict` is "fails" or "part"."""
    row: Row = {"bits": f"meta: {reason}", "notes": []}
    network, made = first_that_runs_on_meta(model)
    row["input"] = str(made)
    report = apply_conversion(network, row)
    if report is None:
        return row
    masks = {id(network.get_buffer(f"{name}_mask")): id(network.get_parameter(name)) for name in report.masked}
    names = {id(network.get_parameter(name)): name for name in report.masked}
    live, used = set[int](), set[int]()
    for mode in ("eval", "train"):
        try:
            outputs = tensors_in(network.train(mode == "train")(*arguments(model, made.shape, "meta")))
        except Exception as error:  # noqa: BLE001 - control flow on values cannot be run without values
            row["notes"].append(f"{mode} mode does not run on meta: {in_one_line(error)}")
            continue
        found = held_by_graph(outputs)
        live |= {masks[one] for one in found if one in masks}
        used |= {one for one in found if one in names}
    dead = sorted(names[one] for one in used - live)
    row |= {"live": len(live), "unused": len(names.keys() - used - live), "eval": None, "train": None}
    row["problems"] += [f"{name}: its mask has no effect" for name in dead[:5]]
    row["verdict"] = "fails" if row["problems"] else "part"
    return row


def first_that_runs_on_meta(model: str) -> tuple[nn.Module, Try]:
    """Return a model on the meta device, built in the first way in which it runs, else in the last."""
    ways = list(tries(model))
    for made in ways:
        try:
            network = create(model, made.options, "meta")
            with torch.no_grad():
                network.eval()(*arguments(model, made.shape, "meta"))
        except Exception:  # noqa: BLE001 - a size that a model does not take ends in errors of any kind
            continue
        return network, made
    return create(model, ways[-1].options, "meta"), ways[-1]


def held_by_graph(outputs: list[Tensor]) -> set[int]:
    """Return the ids of the masks and parameters that a backward graph holds: tensors on meta have no addresses."""
    found, seen = set[int](), set[Any]()
    waiting: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name().startswith("_MaskOperand"):
            found.add(id(node.saved_tensors[0]))
        elif node.name() == "WhereBackward0":
            found.add(id(node._saved_condition))
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions if following is not None)
    return found
