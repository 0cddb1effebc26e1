"""Other inputs on which a cut model is compared: another batch, another size, a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ...calls import run, tensors_in
from ...relative_error import relative_error
from ..recording.context import own_inputs
from ..recording.size_watch import Asked, SizeWatch
from ..side_effects import changed_buffers, unchanged

# Rank of the input -> sets of dimensions that are resized together; of sequences each is tried.
_ALONG: dict[int, tuple[tuple[int, ...], ...]] = {2: ((1,),), 3: ((2,), (1,)), 4: ((2, 3),), 5: ((2, 3, 4),)}
_RATES = ("p", "drop_prob")  # attributes of dropout and drop path


@dataclass(frozen=True)
class Variant:
    """Another input, the whole model's outputs and comparisons of sizes for it, and a name ("a batch of 4")."""

    what: str
    input: Any
    expected: list[Tensor]
    asked: Asked

    def problem(self, small: nn.Module, limit: float) -> str:
        """Return the problem of a cut model's outputs for this input, or nothing."""
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
    """Return a user's `examples`, and a second batch and size of the example if the model takes them."""
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
    """Yield larger batches, the cheapest first: some forwards take only multiples of a number."""
    sizes = {leaf.shape[0] for leaf in tree_flatten(example_input)[0] if isinstance(leaf, Tensor) and leaf.dim()}
    for size in sizes if len(sizes) == 1 else ():
        for larger in dict.fromkeys((size + 1, 2 * size)):
            yield f"a batch of {larger}", _resized(example_input, 0, larger)


def _sizes(example_input: Any) -> Iterator[tuple[str, Any]]:
    """Yield inputs of another size: images larger in both directions, sequences longer; then half as large.

    Of images one is enough, if the forward takes a batch of one: the example's batch is compared anyway.
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
            given = _first(example_input, start)
            for d in dims:
                size = shape[d] + (32 if shape[d] >= 64 else shape[d]) if larger else shape[d] // 2
                given = _resized(given, d, size)
            found = next(tuple(leaf.shape) for leaf in tree_flatten(given)[0] if isinstance(leaf, Tensor))
            if min(found, default=0):
                yield f"an input of shape {found}", given


def _first(example_input: Any, count: int) -> Any:
    """Return an example with the first entries of its tensors."""
    return tree_map(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) else leaf, example_input)


def _resized(example_input: Any, dimension: int, size: int) -> Any:
    """Return an example with tensors of another length along one dimension: their entries repeated and scaled."""

    def resize(leaf: Any) -> Any:
        """Return one leaf resized; leaves without that dimension stay."""
        if not isinstance(leaf, Tensor) or leaf.dim() <= dimension or not leaf.shape[dimension]:
            return leaf
        index = torch.arange(size, device=leaf.device) % leaf.shape[dimension]
        longer = leaf.index_select(dimension, index)
        if not leaf.is_floating_point():
            return longer
        slope = 1 + 0.1 * torch.arange(size, device=leaf.device).to(leaf.dtype) / size  # so that no two parts are equal
        return longer * slope.reshape([-1 if d == dimension else 1 for d in range(leaf.dim())])

    return tree_map(resize, example_input)


def in_train_mode(expected: list[Tensor] | None, small: nn.Module, example_input: Any, limit: float) -> str:
    """Return how a cut model compares in train mode, dropout and drop path off: "equal", or the difference.

    `expected` is `training_outputs` of the whole model; if that is None, "" is returned.
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
    """Return the tensors in the output of a model in train mode, dropout and drop path off; None if it does not run."""
    try:
        return _in_train_mode(model, example_input)
    except Exception:  # noqa: BLE001 - it wants targets, or more than one example for its norms
        return None


def _in_train_mode(model: nn.Module, example_input: Any) -> list[Tensor]:
    modes = {module: module.training for module in model.modules()}
    rates: list[tuple[nn.Module, str, Any]] = []
    # Batch norm writes to its running statistics without a new version of these.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for module in modes:
            drops = "drop" in type(module).__name__.lower()
            rate = next((name for name in _RATES if isinstance(vars(module).get(name), (int, float))), "")
            module.training = not drops or bool(rate)
            if drops and rate:  # off, but in train mode: a forward may ask for that
                rates.append((module, rate, vars(module)[rate]))
                setattr(module, rate, 0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return outputs(model, example_input)
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)
        for module, mode in modes.items():
            module.training = mode
        for module, name, value in rates:
            setattr(module, name, value)


def outputs(model: nn.Module, example_input: Any) -> list[Tensor]:
    """Return the tensors in the output of a model in the mode that it is in."""
    with torch.no_grad(), unchanged(model), changed_buffers(model, []):
        return tensors_in(run(model, own_inputs(example_input)))


def watched_outputs(model: nn.Module, example_input: Any) -> tuple[list[Tensor], Asked]:
    """Return `outputs`, and the comparisons of sizes that the model's modules made."""
    watch = SizeWatch(model)
    try:
        with watch:
            return outputs(model, example_input), watch.asked
    except Exception:  # noqa: BLE001 - its own, or because it takes no numbers but plain ones
        return outputs(model, example_input), {"": [("not to be told", object())]}
