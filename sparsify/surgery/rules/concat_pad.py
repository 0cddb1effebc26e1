"""Rules of padding, concatenation, patches (im2col), embedding tables and gated linear units."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..analysis.axis_moves import produce
from ..analysis.coupling import Coupling
from ..dataflow.liveness import Liveness, indicator
from ..recording import broadcast_forms as forms
from ..recording.broadcast_forms import varying
from ..recording.ops import LIKE, Op, Value, concat_inputs


def _couple_pad(coupling: Coupling, op: Op) -> None:
    value, pads = op.args[0], op.args[1]
    result = op.results[0]
    axes = []
    for axis in coupling.of(value):
        for i in range(len(pads) // 2):
            d = len(value.shape) - 1 - i
            if axis.shape[d] > 1 and pads[2 * i : 2 * i + 2] != [0, 0]:
                # Padding gets number 0, the number of pinned entries.
                around = [[size for size in axis.shape] for _ in range(2)]
                around[0][d], around[1][d] = max(0, pads[2 * i]), max(0, pads[2 * i + 1])
                inner = axis.narrow(
                    d, max(0, -pads[2 * i]), axis.shape[d] + min(0, pads[2 * i]) + min(0, pads[2 * i + 1])
                )
                before, after = (torch.zeros(sizes, dtype=torch.int64) for sizes in around)
                axis = torch.cat([before, inner, after], d)
        axes.append(axis)
    coupling.set(result, axes)


def _flow_pad(live: Liveness, op: Op) -> None:
    value, pads, *rest = op.args
    flags = live.of(value)
    fill = 1.0 if rest and rest[0] else 0.0
    varied = [0] * len(pads)
    for i in range(len(pads) // 2):
        d = flags.dim() - 1 - i
        if pads[2 * i : 2 * i + 2] == [0, 0]:
            continue
        if flags.shape[d] == 1 and value.shape[d] != 1 and not fill and i < 2:
            continue
        sizes = list(flags.shape)
        sizes[d] = value.shape[d]
        flags = flags.expand(sizes)
        varied[2 * i : 2 * i + 2] = pads[2 * i : 2 * i + 2]
    live.set(op.results[0], torch.nn.functional.pad(flags, varied, value=fill).clone())


def _couple_joined(coupling: Coupling, op: Op) -> None:
    values, dim, placed = _joined_operands(op)
    result = op.results[0]
    followed = {d for axes, _ in placed(coupling.of) for axis in axes for d in varying(axis)}
    if op.name == "cat":  # a state of zeros beside the input, as in ConvLSTM
        followed.add(dim)
    for value in values:  # stack shifts the dimensions after the new one by one
        coupling.claim(value, [d - (op.name == "stack" and d > dim) for d in followed])
    along: list[Tensor | None] = []
    across = []
    for axes, shape in placed(coupling.of):
        own = [axis for axis in axes if dim in varying(axis)]
        along.append(own[0] if own else None)
        across.append(([axis for axis in axes if dim not in varying(axis)], [*shape[:dim], 1, *shape[dim + 1 :]]))
    found = []
    if any(axis is not None for axis in along):
        # Entries of an operand without an axis along `dim` are pinned.
        zero = torch.zeros([1] * len(result.shape), dtype=torch.int64)
        shapes = [shape for _, shape in placed(coupling.of)]
        found.append(forms.concat([zero if axis is None else axis for axis in along], shapes, dim))
    coupling.set(result, [*found, *coupling.matched(across)])
    produce(coupling, op)  # tokens in front of a sequence


def _joined_operands(op: Op) -> tuple[list[Value], int, Callable[..., list[tuple[list[Tensor], list[int]]]]]:
    """Return the operands of cat or stack, the dimension, and a function that returns their forms as those of a cat."""
    values = concat_inputs(op)
    rank = len(op.results[0].shape)
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % rank

    def placed(forms_of: Callable[[Value], list[Tensor]]) -> list[tuple[list[Tensor], list[int]]]:
        if op.name == "cat":
            return [(forms_of(v), list(v.shape)) for v in values]
        return [([f.unsqueeze(dim) for f in forms_of(v)], [*v.shape[:dim], 1, *v.shape[dim:]]) for v in values]

    return values, dim, placed


def _flow_joined(live: Liveness, op: Op) -> None:
    _, dim, placed = _joined_operands(op)
    operands = placed(lambda value: [live.of(value)])
    if not operands:  # all are empty vectors
        live.set(op.results[0], torch.zeros([1] * len(op.results[0].shape)))
        return
    first = operands[0][0][0]
    if all(f[0].shape[dim] == 1 and bool((f[0] == first).all()) for f, _ in operands):  # tokens in front of a sequence
        live.set(op.results[0], indicator(sum((f[0] for f, _ in operands[1:]), first)))
        return
    live.set(op.results[0], forms.concat([f[0] for f, _ in operands], [shape for _, shape in operands], dim))


def _couple_patches(coupling: Coupling, op: Op) -> None:
    """Couple im2col and col2im: [B, C, H, W] to [B, C * kernel, L] and back."""
    value, result = op.inputs[0], op.results[0]
    size = math.prod(op.args[1 if op.name == "im2col" else 2])
    if len(value.shape) != (4 if op.name == "im2col" else 3):
        coupling.barrier(op, f"operation '{op.name}' without a dimension for the batch has no rule")
        return
    axes = []
    for axis in coupling.of(value):
        if varying(axis) == (0,):
            axes.append(forms.along(axis, 0, len(result.shape)))
        elif varying(axis) != (1,):
            coupling.numbers.pin(axis)
        elif op.name == "im2col":
            axes.append(axis.reshape(-1).repeat_interleave(size).reshape(1, -1, 1))
        else:
            grouped = axis.reshape(-1, size)
            coupling.numbers.union(grouped, grouped[:, :1])
            axes.append(grouped[:, :1].reshape(1, -1, 1, 1))
    coupling.set(result, axes)


def _flow_patches(live: Liveness, op: Op) -> None:
    value, result = op.inputs[0], op.results[0]
    size = math.prod(op.args[1 if op.name == "im2col" else 2])
    if len(value.shape) != (4 if op.name == "im2col" else 3):
        live.barrier(op)
        return
    flags = live.of(value).expand(-1, value.shape[1], *[-1] * (len(value.shape) - 2))
    flags = flags.flatten(2).sum(2, keepdim=True)
    if op.name == "im2col":
        live.set(result, indicator(flags.repeat_interleave(size, 1)))
    else:
        live.set(result, indicator(flags.reshape(flags.shape[0], -1, size).sum(2)[..., None, None]))


def couple_first(coupling: Coupling, op: Op) -> None:
    """Give an element-wise operation's result the axes of its first input."""
    coupling.combine(op.results[0], op.inputs[:1])


def _flow_like(live: Liveness, op: Op) -> None:
    flags = live.of(op.inputs[0])
    live.set(op.results[0], torch.full(flags.shape, 0.0 if op.name == "zeros_like" else 1.0))


def _couple_embedding(coupling: Coupling, op: Op) -> None:
    weight, result = op.args[0], op.results[0]
    coupling.pin(op.args[1])
    axes = []
    for axis in coupling.of(weight):
        if varying(axis) == (1,):
            axes.append(forms.along(axis, len(result.shape) - 1, len(result.shape)))
            coupling.produced.append(axis)
        else:
            coupling.numbers.pin(axis)
    coupling.set(result, axes)


def _flow_embedding(live: Liveness, op: Op) -> None:
    weight, result = op.args[0], op.results[0]
    flags = live.of(weight).expand(weight.shape).sum(0) * (1 + live.of(op.args[1]).sum())
    live.set(result, indicator(forms.along(flags, len(result.shape) - 1, len(result.shape))))


def _couple_bag(coupling: Coupling, op: Op) -> None:
    for value in op.inputs[2:]:  # offsets, weights of the entries of bags
        coupling.pin(value)
    _couple_embedding(coupling, op)


def _flow_bag(live: Liveness, op: Op) -> None:
    _flow_embedding(live, op)
    read = sum((live.of(value).sum() for value in op.inputs[2:]), torch.zeros(()))
    live.set(op.results[0], indicator(live.of(op.results[0]) * (1 + read)))
    for value in op.results[1:]:
        live.set(value, torch.ones([1] * len(value.shape)))


def _couple_glu(coupling: Coupling, op: Op) -> None:
    """Couple glu: the first half times the sigmoid of the second."""
    value = op.inputs[0]
    dim = (op.args[1] if len(op.args) > 1 else -1) % len(value.shape)
    half = value.shape[dim] // 2
    axes = []
    for axis in coupling.of(value):
        if axis.shape[dim] > 1:
            coupling.numbers.union(axis.narrow(dim, 0, half), axis.narrow(dim, half, half))
            axis = axis.narrow(dim, 0, half)
        axes.append(axis)
    coupling.set(op.results[0], axes)


def _flow_glu(live: Liveness, op: Op) -> None:
    value = op.inputs[0]
    dim = (op.args[1] if len(op.args) > 1 else -1) % len(value.shape)
    first = second = live.of(value)
    if first.shape[dim] > 1:
        first, second = first.chunk(2, dim)
    live.set(op.results[0], indicator(first * (second + 1)))


LAYOUT = {
    "constant_pad_nd": (_couple_pad, _flow_pad),
    **dict.fromkeys(("cat", "stack"), (_couple_joined, _flow_joined)),
    **dict.fromkeys(("im2col", "col2im"), (_couple_patches, _flow_patches)),
    **dict.fromkeys(LIKE, (couple_first, _flow_like)),
    "embedding": (_couple_embedding, _flow_embedding),
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), (_couple_bag, _flow_bag)),
    "glu": (_couple_glu, _flow_glu),
}
