"""Other inputs than the example that a cut model has to be right for: another batch, another size, a user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ..recording.recorder import own_inputs, tensors_in
from ..side_effects import changed_buffers, unchanged

# Dimensions that are made longer together, by the rank of the input: of sequences one after the other is tried.
_ALONG: dict[int, tuple[tuple[int, ...], ...]] = {2: ((1,),), 3: ((2,), (1,)), 4: ((2, 3),), 5: ((2, 3, 4),)}
NOT_A_VALUE = 1e30  # what stands for minus infinity is no measure of the other outputs


@dataclass(frozen=True)
class Variant:
    """Another input, what the whole model gives for it, and words for it ("a batch of 4")."""

    what: str
    input: Any
    expected: list[Tensor]

    def problem(self, small: nn.Module, limit: float) -> str:
        """Return what is wrong with a cut model's outputs for this input; nothing if they are right."""
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
    """Return a second batch and a second size of the example, where the model takes them, and a user's `examples`."""
    found = [Variant(f"example {i + 2}", given, outputs(whole, given)) for i, given in enumerate(examples)]
    for candidates in (_batches(example_input), _sizes(example_input)):
        for what, given in candidates:
            try:
                expected = outputs(whole, given)
            except Exception:  # noqa: BLE001 - the model does not take it
                continue
            found.append(Variant(what, given, expected))
            break
    return tuple(found)


def _batches(example_input: Any) -> Iterator[tuple[str, Any]]:
    """Yield larger batches, the one that costs least first: some forwards take only multiples of a number."""
    sizes = {leaf.shape[0] for leaf in tree_flatten(example_input)[0] if isinstance(leaf, Tensor) and leaf.dim()}
    for size in sizes if len(sizes) == 1 else ():
        for larger in dict.fromkeys((size + 1, 2 * size)):
            yield f"a batch of {larger}", _resized(example_input, 0, larger)


def _sizes(example_input: Any) -> Iterator[tuple[str, Any]]:
    """Yield inputs of another size: images larger in both directions, sequences longer.

    Of images one is enough, if the forward takes a batch of one: the example's batch is compared anyway.
    """
    tensors = [leaf for leaf in tree_flatten(example_input)[0] if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        return
    shape = tensors[0].shape
    dimensions = _ALONG.get(len(shape), ())
    if len(shape) == 2 and tensors[0].is_floating_point():
        return  # features
    for dims in dimensions:
        for start in dict.fromkeys((1, shape[0])) if len(shape) >= 4 else (shape[0],):
            given = _first(example_input, start)
            for d in dims:
                given = _resized(given, d, shape[d] + (32 if shape[d] >= 64 else shape[d]))
            larger = next(tuple(leaf.shape) for leaf in tree_flatten(given)[0] if isinstance(leaf, Tensor))
            yield f"an input of shape {larger}", given


def _first(example_input: Any, count: int) -> Any:
    """Return an example with the first entries of its tensors."""
    return tree_map(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) else leaf, example_input)


def _resized(example_input: Any, dimension: int, size: int) -> Any:
    """Return an example with tensors of another length along one dimension: their entries, again and again, rolled."""

    def resize(leaf: Any) -> Any:
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
    """Return how a model compares in train mode, dropout and drop path off: "equal", or what is not so.

    `expected` is what `training_outputs` returned of the whole model; nothing is said if that does not run so.
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
    # Batch norm writes to its running statistics without a new version of these.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for module in modes:
            module.training = "drop" not in type(module).__name__.lower()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return outputs(model, example_input)
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)
        for module, mode in modes.items():
            module.training = mode


def outputs(model: nn.Module, example_input: Any) -> list[Tensor]:
    """Return the tensors in the output of a model in the mode that it is in."""
    with torch.no_grad(), unchanged(model), changed_buffers(model, []):
        return tensors_in(model(*own_inputs(example_input)))


def relative_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return max |difference| / max |theirs| of the tensor where that is largest.

    Entries that are not numbers in both are equal.
    """
    return max((_relative_error(a, b) for a, b in zip(ours, theirs, strict=True) if a.numel()), default=0.0)


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (ours, theirs))
    size = b.abs()
    largest = float(torch.where(size < NOT_A_VALUE, size, 0).max())
    same = (a == b) | ((a != a) & (b != b))
    difference = float(torch.where(same, 0, (a - b).abs()).nan_to_num(nan=float("inf")).max())
    return difference / largest if largest else difference
