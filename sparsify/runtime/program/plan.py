"""A plan: a model traced for one input shape, lowered and assembled, with all that one thread needs to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ...calls import Inputs
from ..call_outputs import Outline
from ..codegen.jit import ready
from ..kernel_errors import KernelError, OtherSizes, blamed_on
from ..kernels.planes import ALIGNMENT
from ..lowering.aten_graph import sized_by_values, trace
from ..lowering.builder import Lowering
from ..lowering.ir import Call, Instruction
from ..lowering.rules import RULES
from ..threads.thread_pool import numbers
from .assemble import Array, Program, Segment, assemble

Unflatten = Callable[[Sequence[Tensor]], Inputs]


@dataclass(frozen=True)
class Plan:
    """A program with what its PyTorch calls need: constants, inputs, outputs and the last use of each value."""

    program: Program
    planes: int  # buffers
    inputs: tuple[fx.Node, ...]
    outputs: tuple[Any, ...]  # nodes, or values that depend on no input
    outline: Outline
    known: dict[fx.Node, Any]
    done_with: dict[int, tuple[fx.Node, ...]]  # number of a part -> values that no later one reads
    failed: Mapping[str, str]  # operations left to PyTorch because their lowering failed -> why
    sized: bool  # values give some tensors their sizes, so that images may depend on each other

    @property
    def instructions(self) -> list[Instruction | Call]:
        """All instructions in order."""
        parts = self.program.parts
        return [
            instruction
            for part in parts
            for instruction in (part.instructions if isinstance(part, Segment) else (part,))
        ]

    @property
    def nodes(self) -> dict[str, fx.Node]:
        """The graph's operations by name."""
        return {node.name: node for node in self.inputs[0].graph.nodes}


def everything(node: fx.Node) -> bool:
    """Return True: use every kernel that exists."""
    return True


def make_plan(
    model: nn.Module, inputs: Sequence[Tensor], unflatten: Unflatten, native: Callable[[fx.Node], bool] = everything
) -> Plan:
    """Return the plan of a plain model in eval mode for inputs of these shapes.

    `native` returns which operations may use a kernel. Raises TraceError or RunError if the forward cannot be traced.
    """
    return lower(*trace(model, inputs, unflatten), native)


def lower(graph: fx.GraphModule, outline: Outline, native: Callable[[fx.Node], bool]) -> Plan:
    """Return the plan of a graph."""
    failed: dict[str, str] = {}
    while True:
        lowering = Lowering(graph, RULES, lambda node: node.name not in failed and native(node))
        try:
            program = assemble(lowering.all(), lowering.planes, lowering.aliases)
            break
        except KernelError as error:
            failed[error.operation] = error.reason
    nodes = list(graph.graph.nodes)
    outputs = tuple(nodes[-1].args[0])
    return Plan(
        program=program,
        planes=len(lowering.planes),
        inputs=tuple(node for node in nodes if node.op == "placeholder"),
        outputs=outputs,
        outline=outline,
        known=lowering.constants,
        done_with=_last_uses(program, outputs),
        failed=failed,
        sized=any(node not in lowering.constants and sized_by_values(node) for node in nodes),
    )


def _last_uses(program: Program, outputs: Sequence[Any]) -> dict[int, tuple[fx.Node, ...]]:
    last: dict[fx.Node, int] = {}
    for number, part in enumerate(program.parts):
        read = part.reads if isinstance(part, Segment) else part.node.all_input_nodes
        last |= dict.fromkeys(read, number)
    kept = {node for node in outputs if isinstance(node, fx.Node)}
    found: dict[int, list[fx.Node]] = {}
    for node, number in last.items():
        if node not in kept:
            found.setdefault(number, []).append(node)
    return {number: tuple(nodes) for number, nodes in found.items()}


def memory(floats: int) -> Array:
    """Return an array of floats, aligned to a cache line."""
    raw = np.zeros(floats + ALIGNMENT, dtype=np.float32)
    skip = -(raw.ctypes.data // raw.itemsize) % ALIGNMENT
    return raw[skip : skip + floats]


Run = Callable[[Sequence[Array]], None]


def execute(plan: Plan, inputs: Sequence[Tensor], buffers: Array, run: Run) -> list[Any]:
    """Return the outputs for `inputs`; `run` executes a segment and takes the arrays of `interpreter.run`.

    Raises OtherSizes if an operation's result has another size than in the record.
    """
    values: dict[fx.Node, Any] = dict(zip(plan.inputs, inputs, strict=True))
    for number, part in enumerate(plan.program.parts):
        if isinstance(part, Segment):
            held = [contiguous(values, plan.known, node) for node in part.reads]
            for node in part.writes:
                # Explicit, since the default dtype and device may have changed.
                values[node] = torch.empty(node.meta["val"].shape, dtype=torch.float32, device="cpu")
                held.append(values[node])
            addresses = np.array([tensor.data_ptr() for tensor in held], dtype=np.int64)
            with blamed_on(part.name):
                run(arrays_of(plan.program, part, buffers, addresses))
        else:
            values[part.node] = _call(part.node, values, plan.known)
        for node in plan.done_with.get(number, ()):
            values.pop(node, None)
    return [_output(one, values, plan.known) for one in plan.outputs]


def _call(node: fx.Node, values: Mapping[fx.Node, Any], known: Mapping[fx.Node, Any]) -> Any:
    """Return the result of a PyTorch operation; exceptions get a note that names it."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: values[one] if one in values else known[one])
    try:
        found = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        error.add_note(f"in {node.name}")
        raise
    for before, after in zip(_sizes(node.meta["val"]), _sizes(found), strict=True):
        if after != before:
            was, now = ("x".join(map(str, one)) for one in (before, after))
            raise OtherSizes(f"sizes depend on values ({node.name}: {was}, then {now})")
    return found


def _sizes(result: Any) -> list[torch.Size]:
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return [one.shape for one in parts if isinstance(one, Tensor)]


def _output(one: Any, values: Mapping[fx.Node, Any], known: Mapping[fx.Node, Any]) -> Any:
    if not isinstance(one, fx.Node) or one in values:
        return values[one] if isinstance(one, fx.Node) else one
    # A copy, which the caller may change.
    return known[one].clone() if isinstance(known[one], Tensor) else known[one]


def contiguous(values: dict[fx.Node, Any], known: dict[fx.Node, Any], node: fx.Node) -> Tensor:
    """Return a value as a contiguous tensor, which replaces it in `values`."""
    tensor: Tensor = values[node] if node in values else known[node]
    if tensor.is_neg() or not tensor.is_contiguous():
        tensor = values[node] = tensor.resolve_neg().contiguous()
    return tensor


def arrays_of(program: Program, segment: Segment, buffers: Array, addresses: Array) -> tuple[Array, ...]:
    """Return the arrays of `interpreter.run`."""
    weights = (program.offsets, program.values, program.indptr, program.biases, program.scalars)
    return (segment.table, buffers, *weights, addresses)


def alone(arrays: Sequence[Array]) -> None:
    """Execute the instructions of a segment on this thread."""
    ready()(_NOBODY, np.array([*numbers(arrays), 0], dtype=np.int64), 0, 1, 0)


_NOBODY = np.zeros(1, dtype=np.int64)
