"""The lines of `print(engine)`: how each operation runs, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..codegen.executable import refusal
from ..kernels.opcodes import Opcode
from ..lowering.conv_linear import WEIGHTED
from ..lowering.ir import UNBOUNDED, Instruction
from .plan import Plan


@dataclass(frozen=True)
class Line:
    """One instruction or call: the layer or operation, how it runs, its output, and its weights."""

    name: str
    how: str
    output: str  # channels x height x width, or the shape of the torch tensor
    entries: int = 0  # of the weight
    kept: int = 0
    floats: int = 0  # multiply-adds computed, for all images


def lines(plan: Plan, model: nn.Module, dense: frozenset[str] = frozenset()) -> Iterator[Line]:
    """Yield the instructions of a plan in order; layers have their names in the model."""
    nodes = plan.nodes
    owners = {
        parameter.untyped_storage().data_ptr(): name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
    }

    def called(name: str) -> str:
        """Return the layer that owns a weight of the node `name`, "input" for an input, else `name`."""
        held = (plan.known.get(source) for source in nodes[name].all_input_nodes)
        for value in held:
            if isinstance(value, Tensor) and value.dim() > 1 and value.untyped_storage().data_ptr() in owners:
                return owners[value.untyped_storage().data_ptr()]
        return "input" if nodes[name].op == "placeholder" else name

    for one in plan.instructions:
        if isinstance(one, Instruction):
            yield _kernel(one, called(one.name))
        elif (value := one.node.meta.get("val")) is not None:
            name = one.node.name
            why = "" if one.node.target not in WEIGHTED else ", faster so" if name in dense else ", no kernel for it"
            shape = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else ""
            yield Line(
                called(name),
                f"torch: {getattr(one.node.target, '__name__', one.node.target)}{why}",
                shape,
            )


def _kernel(one: Instruction, name: str) -> Line:
    planes = one.planes
    how, size = one.opcode.description, f"{planes.channels}x{planes.height}x{planes.width}"
    if one.rows is None:
        return Line(name, how, size)
    how += " + sum" if len(one.reads) > 1 else ""
    how += " + clamp" if one.scalars != UNBOUNDED else ""
    kept = len(one.rows.offsets) if one.opcode != Opcode.CONVOLVE_TILES else int((one.rows.values != 0).sum())
    work = len(one.rows.values) * planes.height * planes.width * planes.batch
    return Line(name, how, size, one.rows.dense_size, kept, work)


def text(plan: Plan, model: nn.Module, dense: frozenset[str]) -> str:
    """Return the instructions as lines of text: name, output, kept weights, how."""
    rows = list(lines(plan, model, dense))
    wide = min(36, max((len(row.name) for row in rows), default=0))
    found = [] if refusal() is None else [f"  kernels are loops, no code is generated for them: {refusal()}"]
    for row in rows:
        name = row.name if len(row.name) <= wide else "…" + row.name[1 - wide :]
        kept = f"{row.kept / row.entries:7.1%}" if row.entries else " " * 7
        found.append(f"  {name:{wide}}  {row.output:>13}  {kept}  {row.how}")
    return "\n".join(found)
