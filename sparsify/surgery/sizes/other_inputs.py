"""Further inputs on which a cut model is compared: another batch, another size, the user's examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ...calls import run, tensors_in
from ...preserve import keep_modes, keep_values
from ...relative_error import relative_error
from ..recording.context import not_compiled, own_inputs
from ..recording.size_watch import Asked, SizeWatch
from ..side_effects import changed_buffers, unchanged

# Rank of the input -> sets of dimensions to resize together; all sets are tried in order.
_ALONG: dict[int, tuple[tuple[int, ...], ...]] = {2: ((1,),), 3: ((2,), (1,)), 4: ((2, 3),), 5: ((2, 3, 4),)}
_NOT_WATCHED = "not watched"  # stands for comparisons of sizes that equal those of no other call
_RATES = ("p", "drop_prob")  # attributes of dropout and drop path


@dataclass(frozen=True)
class Variant:
    """A further input with a name ("a batch of 4"), the whole model's outputs and its comparisons of sizes for it."""

    what: str
    input: Any
    expected: list[Tensor]
    asked: Asked

    def problem(self, small: nn.Module, limit: float) -> str:
        """Return the problem of a cut model's outputs for this input, or ""."""
        try:
            given = outputs(small, self.input)
        except Exception as error:  # noqa: BLE001 - the model's own code
            return f"for {self.what} its forward raises {type(error).__name__}"
        shapes, expected = ([tuple(t.shape) for t in side] for side in (given, self.expected))
        if shapes != expected:
            return f"for {self.what} outputs have the shapes {shapes} instead of {expected}"
        difference = relative_error(given, self.expected)
        return f"for {self.what} outputs differ by {difference:.1e} of the largest" if difference > limit else ""


def variants(whole: nn.Module, example_input: Any, examples: Sequence[Any]) -> tuple[Variant, ...]:
    """Return the user's `examples`, and a larger batch and another size of the example if the model takes them."""
    found = [Variant(f"example {i + 2}", given, *watched_outputs(whole, given)) for i, given in enumerate(examples)]
    for candidates in (_batches(example_input), _sizes(example_input)):
        for what, given in candidates:
            try:
                found.append(Variant(what, given, *watched_outputs(whole, given)))
            except Exception:  # noqa: BLE001 - the model does not take it
                continue
            break
    return tuple(found)


def _batches(example_input: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, input) of larger batches, the cheapest first: some forwards take only multiples of a number."""
    sizes = {leaf.shape[0] for leaf in tree_flatten(example_input)[0] if isinstance(leaf, Tensor) and leaf.dim()}
    for size in sizes if len(sizes) == 1 else ():
        for larger in dict.fromkeys((size + 1, 2 * size)):
            yield f"a batch of {larger}", _resized(example_input, 0, larger)


def _sizes(example_input: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, input) of other sizes: images larger in both directions, sequences longer; then half as large.

    For images a batch of one comes first, since the example's batch is compared anyway.
    """
    tensors = [leaf for leaf in tree_flatten(example_input)[0] if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        return
    shape = tensors[0].shape
    dimensions = _ALONG.get(len(shape), ())
    if len(shape) == 2 and tensors[0].is_floating_point():
        return  # features
    for dims, larger in ((dims, larger) for larger in (True, False) for dims in dimensions):
        for start in dict.fromkeys((1, shape[0])) if len(shape) >= 4 else (shape[0],):
            given = tree_map_only(Tensor, itemgetter(slice(start)), example_input)
            for d in dims:
                size = shape[d] + (32 if shape[d] >= 64 else shape[d]) if larger else shape[d] // 2
                given = _resized(given, d, size)
            found = next(tuple(leaf.shape) for leaf in tree_flatten(given)[0] if isinstance(leaf, Tensor))
            if min(found, default=0):
                yield f"an input of shape {found}", given


def _resized(example_input: Any, dimension: int, size: int) -> Any:
    """Return an example with its tensors resized along one dimension, by repeated and scaled entries."""

    def resize(leaf: Tensor) -> Tensor:
        """Return one leaf resized; leaves without that dimension stay."""
        if leaf.dim() <= dimension or not leaf.shape[dimension]:
            return leaf
        index = torch.arange(size, device=leaf.device) % leaf.shape[dimension]
        longer = leaf.index_select(dimension, index)
        if not leaf.is_floating_point():
            return longer
        slope = 1 + 0.1 * torch.arange(size, device=leaf.device).to(leaf.dtype) / size  # so that no two parts are equal
        return longer * slope.reshape([-1 if d == dimension else 1 for d in range(leaf.dim())])

    return tree_map_only(Tensor, resize, example_input)


def in_train_mode(expected: list[Tensor] | None, small: nn.Module, example_input: Any, limit: float) -> str:
    """Return how a cut model compares in train mode without dropout and drop path: "equal", or the difference.

    `expected` is the result of `training_outputs` for the whole model; if it is None, return "".
    """
    if expected is None:
        return ""
    try:
        given = _in_train_mode(small, example_input)
    except Exception as error:  # noqa: BLE001 - the model's own code meets sizes it was not written for
        return f"it raises {type(error).__name__}"
    if [t.shape for t in given] != [t.shape for t in expected]:
        return "its outputs have other shapes"
    difference = relative_error(given, expected)
    return "equal" if difference <= limit else f"its outputs differ by {difference:.1e} of the largest"


def training_outputs(model: nn.Module, example_input: Any) -> list[Tensor] | None:
    """Return a model's output tensors in train mode without dropout and drop path; None if it does not run."""
    try:
        return _in_train_mode(model, example_input)
    except Exception:  # noqa: BLE001 - it wants targets, or more than one example for its norms
        return None


def _in_train_mode(model: nn.Module, example_input: Any) -> list[Tensor]:
    rates: list[tuple[nn.Module, str, Any]] = []
    # Batch norm updates its running statistics without increasing their version counters.
    with keep_modes(model), keep_values(model.buffers()), torch.random.fork_rng(devices=[]):
        try:
            for module in model.modules():
                drops = "drop" in type(module).__name__.lower()
                rate = next((name for name in _RATES if isinstance(vars(module).get(name), (int, float))), "")
                module.training = not drops or bool(rate)
                if drops and rate:  # off, but in train mode, which a forward may read
                    rates.append((module, rate, vars(module)[rate]))
                    setattr(module, rate, 0.0)
            torch.manual_seed(0)
            return outputs(model, example_input)
        finally:
            for module, name, value in rates:
                setattr(module, name, value)


def outputs(model: nn.Module, example_input: Any) -> list[Tensor]:
    """Return a model's output tensors in its current mode, without gradients; the model is unchanged."""
    with not_compiled(), torch.no_grad(), unchanged(model), changed_buffers(model, []):
        return tensors_in(run(model, own_inputs(example_input)))


def watched_outputs(model: nn.Module, example_input: Any) -> tuple[list[Tensor], Asked]:
    """Return `outputs(model, example_input)` and the comparisons of sizes that the model's modules made."""
    watch = SizeWatch(model)
    try:
        with watch:
            return outputs(model, example_input), watch.asked
    except Exception:  # noqa: BLE001 - its own, or because it accepts only plain integers
        return outputs(model, example_input), {"": [(_NOT_WATCHED, object())]}
