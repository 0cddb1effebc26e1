"""shrink(): take dead channels out of a model, for good, and prove that nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import RunError, SparsifyError
from .channels import Channels, Study, study
from .cuts import Cuts, apply_cuts
from .fold import fold
from .sizes import Kept, changes, layer_attributes, own_attributes
from .tape import record, tensors_in

# Largest difference allowed, as a share of the largest output.
LIMIT_64 = 1e-10
LIMIT_32 = 1e-4


@dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` did.

    `model` is the smaller one, `cuts` what was taken out; `groups` and `removed` count channel groups, all and gone;
    `parameters` and `multiply_adds` are (before, after); `difference` the largest difference of outputs over the
    largest output in float64 and float32; `kept` says what was dead and stayed, and why.
    """

    model: nn.Module
    cuts: Cuts
    groups: int
    removed: int
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    difference: tuple[float, float]
    kept: tuple[str, ...]


def shrink(
    model: nn.Module, example_input: Any, *, round_to: int | None = None, verify: bool = True
) -> ShrinkReport:
    """Return a smaller model of the same class, with every channel gone that has no influence on the outputs.

    A channel is dead if it is zero whatever the input, or if nothing reads it; it goes with the channels that it is
    tied to, if they are dead as well. `example_input` is a tensor, or a tuple of arguments. Sizes are left multiples
    of `round_to` where enough dead channels are there to stay. The result is compared with the masked model on the
    example input, in float64 and float32. `model` is not changed. Raises RunError, naming the module, if no smaller
    model gives the same outputs; SparsifyError for a `round_to` below 1.
    """
    if round_to is not None and round_to < 1:
        raise SparsifyError(f"shrink: round_to={round_to}: channel counts are rounded to multiples of 1 or more")
    plain = fold(model).eval()
    found = study(record(plain, example_input), killable=False)
    expected = reference(plain, example_input)
    held = np.zeros(found.channels.groups, dtype=bool)
    reasons: list[str] = []
    while True:
        gone = _removable(found, found.channels.dead.numpy() & ~held, round_to)
        kept = Kept(found, gone)
        small, failure, where = _cut(plain, example_input, found, kept, expected if verify else None)
        if small is not None:
            break
        more = _behind(found, kept, gone, where)
        if not more.any():
            raise RunError(f"shrink: {where or type(model).__name__}: {failure}; nothing was changed")
        held |= more
        reasons.append(f"{where or type(model).__name__}: {int(more.sum())} dead groups stay: {failure}")
    small.train(model.training)
    cost = _multiply_adds(found.channels, np.zeros_like(gone)), _multiply_adds(found.channels, gone)
    return ShrinkReport(
        model=small,
        cuts=small.__dict__.get("sparsify_cuts") or Cuts({}),
        groups=found.channels.groups,
        removed=int(gone.sum()),
        parameters=(_count(plain), _count(small)),
        multiply_adds=cost,
        difference=differences(small, example_input, expected) if verify else (float("nan"), float("nan")),
        kept=tuple(reasons),
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _removable(found: Study, dead: np.ndarray[Any, Any], round_to: int | None) -> np.ndarray[Any, Any]:
    """Return which dead groups may go: something is left of every dimension, and counts are rounded up."""
    gone = dead.copy()
    sides: list[np.ndarray[Any, Any]] = [
        numbers.numpy() for dims in found.channels.labels.values() for numbers in dims.values()
    ]
    changed = True
    while changed:
        changed = False
        for numbers in sides:
            goes = gone[numbers] & (numbers >= 0)
            left = len(numbers) - int(goes.sum())
            wanted = max(1, -(-left // round_to) * round_to if round_to else left)
            if left < min(wanted, len(numbers)):
                back = list(dict.fromkeys(numbers[goes].tolist()))[: wanted - left]
                gone[back] = False
                changed = True
    return gone


def _cut(
    plain: nn.Module, example_input: Any, found: Study, kept: Kept, expected: list[list[Tensor]] | None
) -> tuple[nn.Module | None, str, str]:
    """Return the model without the channels that go, or None, what went wrong and in which module."""
    removed: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dims in found.channels.labels.items():
        for d in dims:
            indices = np.flatnonzero(~kept.along(found.tape.state[name], d))
            if len(indices):
                removed.setdefault(name, {})[d] = tuple(indices.tolist())
    attributes: dict[str, Any] = layer_attributes(plain, found, kept)
    sources = own_attributes(plain, changes(found, kept))
    failure, where = "", ""
    for choice in _choices(sources):
        chosen = {path: new for path, (_, new) in sources.items() if path in choice and path not in attributes}
        small = apply_cuts(copy.deepcopy(plain), Cuts(removed, attributes | chosen))
        problem, place = _runs(small, example_input, found, kept, expected)
        if not problem:
            return small, "", ""
        if not failure:
            failure, where = problem, place
    return None, failure, where


def _choices(sources: dict[str, tuple[int, int]]) -> Iterable[set[str]]:
    """Yield sets of attributes to change: all; then without each name in turn; then none."""
    yield set(sources)
    names = {path.rpartition(".")[2] if not path.rpartition(".")[2].isdigit() else path for path in sources}
    for name in sorted(names):
        yield {path for path in sources if path.rpartition(".")[2] != name}
    if sources:
        yield set()


def _runs(
    small: nn.Module, example_input: Any, found: Study, kept: Kept, expected: list[list[Tensor]] | None
) -> tuple[str, str]:
    """Return what is wrong with the smaller model and where: nothing if it gives the expected outputs."""
    running: list[str] = []
    handles = [
        handle
        for name, module in small.named_modules()
        for handle in (
            module.register_forward_pre_hook(lambda *_, name=name: running.append(name)),
            module.register_forward_hook(lambda *_: running.pop() and None or None),
        )
    ]
    try:
        outcome = reference(small, example_input, doubles=False) if expected is None else reference(small, example_input)
    except Exception as error:  # noqa: BLE001 - the model's own code meets sizes that it was not written for
        return f"its forward does not take the smaller sizes ({type(error).__name__}: {_line(error)})", (running or [""])[-1]
    finally:
        for handle in handles:
            handle.remove()
    if expected is None:
        return "", ""
    shapes = [[tuple(t.shape) for t in outputs] for outputs in (outcome[0], expected[0])]
    if shapes[0] != shapes[1]:
        return f"outputs have the shapes {shapes[0]} instead of {shapes[1]}", ""
    double, single = differ(outcome, expected)
    if not (double <= LIMIT_64 and single <= LIMIT_32):
        module = _first_difference(small, example_input, found, kept)
        return f"outputs differ by {double:.1e} of the largest in float64, {single:.1e} in float32", module
    return "", ""


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


def _first_difference(small: nn.Module, example_input: Any, found: Study, kept: Kept) -> str:
    """Return the module in which an operation's result first has another shape than it should."""
    again = record(small, example_input)
    for step, other in zip(found.tape.steps, again.steps, strict=False):
        if step.name != other.name:
            return step.module
        for value, new in zip(step.results, other.results, strict=False):
            if kept.shape(value) != new.shape:
                return step.module
    return ""


def _behind(found: Study, kept: Kept, gone: np.ndarray[Any, Any], module: str) -> np.ndarray[Any, Any]:
    """Return which of the groups that were to go are met by operations in a module's own forward."""
    met = np.zeros(len(gone) + 1, dtype=bool)
    for step in found.tape.steps:
        if step.module == module:
            for value in (*step.inputs, *step.results):
                for axis in found.coupling.axes.get(value, []):
                    met[found.ids[axis.numpy()].reshape(-1)] = True
    return met[:-1] & gone


def reference(model: nn.Module, example_input: Any, *, doubles: bool = True) -> list[list[Tensor]]:
    """Return the model's output tensors in eval mode, in float64 (unless not wanted) and as they are."""
    results = []
    with torch.no_grad():
        if doubles:
            double = copy.deepcopy(model).double().eval()
            results.append(tensors_in(double(*_as_double(example_input))))
        results.append(tensors_in(model.eval()(*_arguments(example_input))))
    return results


def _arguments(example_input: Any) -> tuple[Any, ...]:
    return example_input if isinstance(example_input, tuple) else (example_input,)


def _as_double(example_input: Any) -> tuple[Any, ...]:
    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(widen, _arguments(example_input))  # type: ignore[no-any-return]


def differ(outcome: list[list[Tensor]], expected: list[list[Tensor]]) -> tuple[float, ...]:
    """Return, per precision, max |difference| / max |expected| over all outputs; NaN in both places is no difference."""
    found = []
    for ours, theirs in zip(outcome, expected, strict=True):
        largest = max((float(t.abs().nan_to_num().max()) for t in theirs if t.numel()), default=0.0)
        apart = max(
            (float(torch.where(a == b, 0, (a - b).abs()).max()) for a, b in zip(ours, theirs, strict=True) if a.numel()),
            default=0.0,
        )
        found.append(apart / largest if largest else apart)
    return tuple(found)


def differences(model: nn.Module, example_input: Any, expected: list[list[Tensor]]) -> tuple[float, float]:
    """Return how far a model's outputs are from those expected, in float64 and float32."""
    double, single = differ(reference(model, example_input), expected)
    return double, single


def _multiply_adds(channels: Channels, gone: np.ndarray[Any, Any]) -> int:
    total = 0
    goes = np.append(gone, False)
    for operation in channels.operations:
        cost = float(operation.multiply_adds)
        for axis in operation.axes:
            numbers = axis.numpy()
            cost *= float((~goes[numbers]).mean()) if len(numbers) else 1.0
        total += round(cost)
    return total
