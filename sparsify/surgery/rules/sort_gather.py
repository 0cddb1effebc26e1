"""Rules of operations that combine entries along some dimensions only: sorting, gathering, scattering, indexing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..analysis.coupling import Coupling
from ..dataflow.liveness import Liveness, indicator
from ..recording.broadcast_forms import varying
from ..recording.ops import Op, Value

# Results of these may be nonzero where the input is zero; for the others only a second result, of indices, may be.
_NUMBERS = ("argmax", "argmin", "logcumsumexp")
_FILLING = ("scatter", "index_fill")
_ONE_DIMENSION = (
    "sort topk argmax argmin kthvalue mode median cummax cummin logcumsumexp gather linalg_cross index_select _fft_r2c "
    "_fft_c2c _fft_c2r scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ index_fill index_fill_ "
    "index_add index_add_ index_copy index_copy_ tril triu tril_ triu_ rot90"
).split()


def _dims(op: Op) -> list[int]:
    """Return the dimensions along which the operation combines entries of its first tensor."""
    rank = len(op.args[0].shape)
    if op.name.rstrip("_") in ("tril", "triu"):
        return [rank - 2, rank - 1]
    given = op.argument("dims" if op.name == "rot90" else "dim")
    if given is None:
        return list(range(rank))
    return [d % max(1, rank) for d in ([given] if isinstance(given, int) else given)]


def _couple_along(coupling: Coupling, op: Op) -> None:
    value, result = op.args[0], op.results[0]
    rank, dims = len(value.shape), _dims(op)
    tensors = [v for v in op.inputs if len(v.shape) == rank]
    for v in op.inputs:
        if len(v.shape) != rank:
            coupling.pin(v)
    followed = {d for v in tensors for axis in coupling.of(v) for d in varying(axis)} - set(dims)
    placed = []
    for v in tensors:
        coupling.claim(v, followed)
        coupling.pin(v, [d for d in followed if v.shape[d] != value.shape[d]])
        placed.append((coupling.depend(v, dims), [1 if d in dims else size for d, size in enumerate(v.shape)]))
    left = coupling.matched(placed)
    if len(result.shape) < rank:
        left = [axis.squeeze(dims) for axis in left]
    for one in op.results:
        coupling.set(one, left)


def _flow_along(live: Liveness, op: Op) -> None:
    value, result = op.args[0], op.results[0]
    rank, dims = len(value.shape), _dims(op)
    total, read = torch.zeros([1] * rank), torch.ones(())
    for v, is_index in _operands(op):
        flags = live.of(v)
        if is_index:  # it only selects entries
            read = read + flags.sum()
        elif len(v.shape) == rank and all(v.shape[d] == value.shape[d] for d in range(rank) if d not in dims):
            total = total + (flags.sum(dims, keepdim=True) if dims else flags)
        else:
            total = total + flags.sum()
    name = op.name.removesuffix("_")
    number = name in _FILLING and op.argument("value")
    total = total * read + float(name in _NUMBERS or (bool(number) and not isinstance(number, Value)))
    if len(result.shape) < rank:
        total = total.squeeze(dims)
    for i, one in enumerate(op.results):
        live.set(one, indicator(total + float(i > 0)))


def _operands(op: Op) -> Iterator[tuple[Value, bool]]:
    """Yield the tensors among an operation's arguments, and whether each is an index."""
    for argument in op.overload._schema.arguments:
        given = op.argument(argument.name)
        if isinstance(given, Value):
            yield given, argument.name == "index"


class _Indexed(NamedTuple):
    """The dimensions of x that x[index] consumes, the positions of the others in the result, and the result's rank."""

    dims: list[int]
    places: dict[int, int]
    rank: int


def _indexed(op: Op, *, masks: bool) -> _Indexed:
    """Return what an index consumes; `masks`: treat tensors that depend on the input as masks of their rank."""
    value, given = op.args[0], op.args[1]
    dims: list[int] = []
    ranks = [0]
    d = 0
    for index in given:
        several = index is not None and (masks if index.constant is None else index.constant.dtype == torch.bool)
        taken = len(index.shape) if several else 1
        if index is not None:
            dims += range(d, d + taken)
            ranks.append(1 if several else len(index.shape))
        d += taken
    others = [d for d in range(len(value.shape)) if d not in dims]
    together = not dims or dims == list(range(dims[0], dims[-1] + 1))
    before = dims[0] if dims and together else 0
    return _Indexed(
        dims, {d: i + (max(ranks) if i >= before else 0) for i, d in enumerate(others)}, max(ranks) + len(others)
    )


def _taken(op: Op) -> _Indexed | None:
    """Return what the index of x[index] consumes, inferred from the result's rank; None if neither reading fits."""
    readings = (_indexed(op, masks=masks) for masks in (False, True))
    return next((found for found in readings if found.rank == len(op.results[0].shape)), None)


def _put(op: Op) -> _Indexed | None:
    """Return what the index of x[index] = values consumes; None if a tensor in it may be a mask or an index."""
    shape = op.args[0].shape
    several = [v for v in op.args[1] if v is not None and v.constant is None and len(v.shape) > 1]
    unclear = any(v.shape == shape[d : d + len(v.shape)] for v in several for d in range(len(shape)))
    return None if unclear else _indexed(op, masks=False)


def _couple_index(coupling: Coupling, op: Op) -> None:
    """Couple x[:, index] with an index that depends on the input: the other dimensions keep their axes."""
    value, result = op.args[0], op.results[0]
    found = _taken(op)
    if found is None:
        coupling.barrier(op, f"operation '{op.name}' moves entries as the input says")
        return
    for other in op.inputs[1:]:
        coupling.pin(other)
    coupling.set(result, [_placed(axis, found.places, found.rank) for axis in coupling.depend(value, found.dims)])


def _flow_index(live: Liveness, op: Op) -> None:
    value, result = op.args[0], op.results[0]
    flags, found = live.of(value), _taken(op)
    read = sum((live.of(other).sum() for other in op.inputs[1:]), torch.zeros(())) + 1
    if found is None:
        live.set(result, indicator(flags.sum() * read).expand([1] * len(result.shape)).clone())
    else:
        live.set(result, indicator(_placed(flags, found.places, found.rank) * read))


def _placed(flags: Tensor, places: dict[int, int], rank: int) -> Tensor:
    """Return a form with its dimensions moved to `places` and summed over the rest."""
    rest = [d for d in range(flags.dim()) if d not in places]
    flags = flags.sum(rest, keepdim=True) if rest else flags
    sizes = [1] * rank
    for d, place in places.items():
        sizes[place] = flags.shape[d]
    return flags.permute([*sorted(places, key=lambda d: places[d]), *rest]).reshape(sizes)


def _back(op: Op, found: _Indexed) -> dict[int, int]:
    """Return {dimension of the values: dimension of x} for the dimensions that the index does not consume."""
    shift = found.rank - len(op.args[2].shape)
    return {place - shift: d for d, place in found.places.items() if place >= shift}


def _couple_put(coupling: Coupling, op: Op) -> None:
    """Couple x[:, index] = values: join the dimensions that are not indexed with those of the values."""
    value, _, values, *_ = op.args
    found = _put(op)
    if found is None:
        coupling.barrier(op, f"operation '{op.name}' moves entries as the input says")
        return
    for other in op.inputs[1:]:
        if other is not values:
            coupling.pin(other)
    back, rank = _back(op, found), len(value.shape)
    left = coupling.depend(value, found.dims)
    followed = {d for axis in left for d in varying(axis)}
    coupling.claim(values, [place for place, d in back.items() if d in followed])
    given = []
    for axis in coupling.of(values):
        if set(varying(axis)) <= set(back):
            given.append(_placed(axis, back, rank))
        else:
            coupling.numbers.pin(axis)
    shape = [1] * rank
    for place, d in back.items():
        shape[d] = values.shape[place]
    own = [1 if d in found.dims else size for d, size in enumerate(value.shape)]
    coupling.set(op.results[0], coupling.matched([(left, own), (given, shape)]))


def _flow_put(live: Liveness, op: Op) -> None:
    value, _, values, *_ = op.args
    found = _put(op)
    if found is None:
        live.barrier(op)
        return
    read = sum((live.of(other).sum() for other in op.inputs[1:] if other is not values), torch.zeros(())) + 1
    put = _placed(live.of(values), _back(op, found), len(value.shape))
    live.set(op.results[0], indicator(live.of(value) + put * read))


def _couple_complex(coupling: Coupling, op: Op) -> None:
    """Couple view_as_complex and view_as_real: pairs along the last dimension become one number, or the reverse."""
    value, result = op.args[0], op.results[0]
    if op.name == "view_as_real":
        coupling.set(result, [axis.unsqueeze(-1) for axis in coupling.of(value)])
    else:
        coupling.set(result, [axis.squeeze(-1) for axis in coupling.depend(value, [len(value.shape) - 1])])


def _flow_complex(live: Liveness, op: Op) -> None:
    flags = live.of(op.args[0])
    live.set(op.results[0], indicator(flags.unsqueeze(-1) if op.name == "view_as_real" else flags.sum(-1)))


ALONG = {
    **dict.fromkeys(_ONE_DIMENSION, (_couple_along, _flow_along)),
    "index": (_couple_index, _flow_index),
    **dict.fromkeys(("index_put", "index_put_"), (_couple_put, _flow_put)),
    **dict.fromkeys(("view_as_complex", "view_as_real"), (_couple_complex, _flow_complex)),
}
