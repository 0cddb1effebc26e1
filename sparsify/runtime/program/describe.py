"""What an engine does, for a person: which step runs how, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..lowering.builder import UNBOUNDED, Step
from ..lowering.conv_linear import WEIGHTED
from .plan import Plan

HOW = {
    "CONVOLVE": "sparse kernel",
    "CONVOLVE_TILES": "dense kernel",
    "DOT": "sparse kernel",
    "SPLIT": "pixels apart for a stride",
    "LARGEST": "max pooling",
    "AVERAGE": "mean pooling",
    "MEAN": "mean of each plane",
    "COMBINE": "sum, product, clamp",
    "FUNCTION_OF": "function of each pixel",
    "NORM": "norm over channels",
    "COPY": "copy of planes",
    "PLACE": "more or fewer pixels around",
    "ENLARGE": "each pixel several times",
    "PACK": "from torch's layout",
    "UNPACK": "to torch's layout",
    "PACK_CHANNELS_LAST": "from torch's layout",
    "UNPACK_CHANNELS_LAST": "to torch's layout",
}


@dataclass(frozen=True)
class Line:
    """One step: the layer or operation, how it runs, what comes out of it, and its weights."""

    name: str
    how: str
    output: str  # channels x height x width, or the shape that torch has
    entries: int = 0  # of the weight
    kept: int = 0
    floats: int = 0  # multiply-adds that are done, of all images


def lines(plan: Plan, model: nn.Module, dense: frozenset[str] = frozenset()) -> Iterator[Line]:
    """Yield the steps of a plan in order; a layer is called by the name that the model has for it."""
    nodes = plan.nodes
    owners = {
        parameter.untyped_storage().data_ptr(): name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
    }

    def called(name: str) -> str:
        held = (plan.known.get(source) for source in nodes[name].all_input_nodes)
        for value in held:
            if isinstance(value, Tensor) and value.dim() > 1 and value.untyped_storage().data_ptr() in owners:
                return owners[value.untyped_storage().data_ptr()]
        return "input" if nodes[name].op == "placeholder" else name

    for step in plan.steps:
        if isinstance(step, Step):
            yield _kernel(step, called(step.name))
        elif (value := step.node.meta.get("val")) is not None:
            name = step.node.name
            why = "" if step.node.target not in WEIGHTED else ", faster so" if name in dense else ", no kernel for it"
            shape = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else ""
            yield Line(called(name), f"torch: {getattr(step.node.target, '__name__', step.node.target)}{why}", shape)


def _kernel(step: Step, name: str) -> Line:
    planes = step.planes
    how, size = HOW[step.kind], f"{planes.channels}x{planes.height}x{planes.width}"
    if step.rows is None:
        return Line(name, how, size)
    how += " + sum" if len(step.reads) > 1 else ""
    how += " + clamp" if step.limits != UNBOUNDED else ""
    kept = len(step.rows.offsets) if step.kind != "CONVOLVE_TILES" else int((step.rows.weights != 0).sum())
    work = len(step.rows.weights) * planes.height * planes.width * planes.lanes
    return Line(name, how, size, step.rows.entries, kept, work)


def text(plan: Plan, model: nn.Module, dense: frozenset[str]) -> str:
    """Return the steps as lines of text: name, output, kept weights, how."""
    rows = list(lines(plan, model, dense))
    wide = min(36, max((len(row.name) for row in rows), default=0))
    found = []
    for row in rows:
        name = row.name if len(row.name) <= wide else "…" + row.name[1 - wide :]
        kept = f"{row.kept / row.entries:7.1%}" if row.entries else " " * 7
        found.append(f"  {name:{wide}}  {row.output:>13}  {kept}  {row.how}")
    return "\n".join(found)
