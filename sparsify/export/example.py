"""The example call of an export: the dimensions that may vary, and calls with other sizes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from ..calls import Inputs, inputs_of
from ..errors import SparsifyError, unknown
from ..formats.request import ExportRequest

BATCH = "batch"


@dataclass(frozen=True)
class Example:
    """A call on the CPU in the model's types, with path and free dimensions of each leaf of its arguments, in order.

    `free` maps dimension -> name; dimensions of one name have one size. `parameters` are those of the forward, with
    *args and **kwargs expanded as the call uses them.
    """

    inputs: Inputs
    parameters: tuple[inspect.Parameter, ...]
    paths: tuple[str, ...]
    free: tuple[Mapping[int, str], ...]

    @property
    def leaves(self) -> list[Any]:
        """The leaves of the arguments: tensors and other values."""
        return pytree.tree_leaves(self.inputs)

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each free dimension, by name, in order."""
        pairs = zip(self.leaves, self.free, strict=True)
        return {name: leaf.shape[d] for leaf, free in pairs for d, name in free.items()}

    def leads(self, name: str) -> bool:
        """Return whether a name is only used for first dimensions, like a batch."""
        return all(d == 0 for free in self.free for d, other in free.items() if other == name)

    def resized(self, sizes: Mapping[str, int]) -> Inputs:
        """Return a call with other `sizes` of free dimensions: entries are repeated, floating ones also scaled."""
        leaves, structure = pytree.tree_flatten(self.inputs)
        for place, free in enumerate(self.free):
            for d, name in free.items():
                if name in sizes and leaves[place].shape[d] != sizes[name]:
                    leaves[place] = _along(leaves[place], d, sizes[name])
        inputs: Inputs = pytree.tree_unflatten(leaves, structure)
        return inputs

    def dynamic_shapes(self) -> dict[str, Any]:
        """Return the `dynamic_shapes` argument of torch.export."""
        shapes = [{d: Dim.DYNAMIC for d in free} or None for free in self.free]
        found: dict[str, Any] = pytree.tree_unflatten(shapes, pytree.tree_structure(_arguments(self)))
        return found

    def shapes(self, names: Sequence[str] = ()) -> dict[str, list[int | str]]:
        """Return the shape of each tensor with names for free sizes, by `names` or its path."""
        leaves = zip(self.paths, self.leaves, self.free, strict=True)
        tensors = [(path, x, free) for path, x, free in leaves if isinstance(x, Tensor)]
        own = names if len(names) == len(tensors) else [path for path, _, _ in tensors]
        return {
            name: [free.get(d, size) for d, size in enumerate(tensor.shape)]
            for name, (_, tensor, free) in zip(own, tensors, strict=True)
        }

    def __str__(self) -> str:
        shown = ", ".join(f"{path} [{', '.join(map(str, shape))}]" for path, shape in self.shapes().items())
        free = ", ".join(self.sizes)
        return f"takes {shown}; " + (f"free: {free}; all other sizes are fixed" if free else "all sizes are fixed")


def example_of(request: ExportRequest, model: nn.Module) -> Example:
    """Return the example of a request, sized for its `batch_size`, with its free dimensions.

    Raises SparsifyError, one line, without an example, for one that the forward of `model` does not take, and for
    `dynamic_shapes` that do not fit it.
    """
    if request.example_input is None:
        raise SparsifyError(f"save: {request.metadata.format} needs an example_input to run the model on")
    given = inputs_of(request.example_input, "save", model)
    floating = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]

    def fitting(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return tensor.to(floating[0]) if floating and tensor.is_floating_point() else tensor

    bound = inspect.signature(model.forward).bind(*given.args, **given.kwargs)
    parameters = tuple(_expanded(bound))
    named = {one.name: given.kwargs[one.name] for one in parameters if one.name in given.kwargs}
    ordered = Inputs(*given.args, **named)
    example = Example(pytree.tree_map_only(Tensor, fitting, ordered), parameters, (), ())
    keyed = pytree.tree_flatten_with_path(_arguments(example))[0]
    example = replace(example, paths=tuple(".".join(str(_step(key)) for key in path) for path, _ in keyed))
    if request.dynamic_shapes is None:
        batch = _with_batch(example)
        size = request.batch_size
        return batch if size is None else replace(batch, inputs=batch.resized({BATCH: size}), free=({},) * len(keyed))
    free = tuple(_free(request.dynamic_shapes, example, [path for path, _ in keyed]))
    example = replace(example, free=free)
    _check(example)
    if request.batch_size is None:
        return example
    if any(0 in free for free in example.free):
        raise SparsifyError("save: batch_size fixes dimension 0, and dynamic_shapes lets it vary: give one of the two")
    return replace(example, inputs=_with_batch(example).resized({BATCH: request.batch_size}))


def _arguments(example: Example) -> dict[str, Any]:
    """Return the arguments by the names of the parameters."""
    positional = [one.name for one in example.parameters[: len(example.inputs.args)]]
    return {**dict(zip(positional, example.inputs.args, strict=True)), **example.inputs.kwargs}


def _expanded(bound: inspect.BoundArguments) -> Iterator[inspect.Parameter]:
    """Yield the parameters that a call uses, with one for each of *args and of **kwargs."""
    for name, parameter in bound.signature.parameters.items():
        if name not in bound.arguments:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            for i in range(len(bound.arguments[name])):
                yield inspect.Parameter(f"{name}_{i}", parameter.POSITIONAL_OR_KEYWORD)
        elif parameter.kind is parameter.VAR_KEYWORD:
            for key in bound.arguments[name]:
                yield inspect.Parameter(key, parameter.KEYWORD_ONLY)
        else:
            yield parameter.replace(default=parameter.empty, annotation=parameter.empty)


def _step(key: Any) -> Any:
    return getattr(key, "key", getattr(key, "idx", key))


def _along(tensor: Tensor, dimension: int, size: int) -> Tensor:
    longer = tensor.index_select(dimension, torch.arange(size) % tensor.shape[dimension])
    if not longer.is_floating_point():
        return longer
    factors = 1 - torch.arange(size, dtype=longer.dtype) / (4 * size)
    return longer * factors.reshape([-1 if d == dimension else 1 for d in range(longer.dim())])


def _with_batch(example: Example) -> Example:
    """Return the example with first dimensions free; SparsifyError if they differ in size, or are empty."""
    tensors = [leaf for leaf in example.leaves if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or not all(len(tensor) == len(tensors[0]) > 0 for tensor in tensors):
        raise SparsifyError(
            "save: the example_input must be tensors of one batch size, their first dimension; "
            "where they are others, name those that vary: dynamic_shapes={'ARGUMENT': {0: 'batch'}}, {} for none"
        )
    free = ({0: BATCH} if isinstance(leaf, Tensor) and leaf.dim() else {} for leaf in example.leaves)
    return replace(example, free=tuple(free))


def _free(given: Any, example: Example, paths: Sequence[Any]) -> Iterator[dict[int, str]]:
    """Yield the free dimensions of each leaf according to `dynamic_shapes`."""
    names = list(_arguments(example))
    shapes = _by_name(given, names)
    for name in shapes:
        if name not in names:
            raise unknown("argument", str(name), names, where="save: dynamic_shapes")
    for path, text, leaf in zip(paths, example.paths, example.leaves, strict=True):
        shape: Any = shapes
        for key in path:
            step = _step(key)
            if isinstance(shape, Mapping):
                shape = shape.get(step)
            elif isinstance(shape, (list, tuple)) and isinstance(step, int) and step < len(shape):
                shape = shape[step]
            elif shape is not None:
                raise SparsifyError(f"save: dynamic_shapes: {text}: {shape!r} is not built as this argument is")
        yield dict(_named(shape, text, leaf.dim() if isinstance(leaf, Tensor) else 0))


def _by_name(given: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return `dynamic_shapes` as a dict by argument; for a single argument its dimensions suffice."""
    if isinstance(given, (list, tuple)) and len(given) == len(names):
        return dict(zip(names, given, strict=True))
    if not isinstance(given, Mapping):
        raise SparsifyError(
            f"save: dynamic_shapes: {given!r} is given, a dict is needed: {{'ARGUMENT': {{DIMENSION: 'NAME'}}}}"
        )
    if given and len(names) == 1 and all(isinstance(key, int) for key in given):
        return {names[0]: given}
    found: dict[str, Any] = {}
    for name, shape in given.items():
        if name not in names and f"{name}_0" in names and isinstance(shape, (list, tuple)):  # of *args
            found |= {f"{name}_{i}": one for i, one in enumerate(shape)}
        else:
            found[name] = shape
    return found


def _named(shape: Any, path: str, dimensions: int) -> Iterator[tuple[int, str]]:
    """Yield dimension and name for each free dimension of one tensor."""
    if shape is None:
        return
    items = dict(enumerate(shape)) if isinstance(shape, (list, tuple)) else shape
    if not isinstance(items, Mapping):
        raise SparsifyError(f"save: dynamic_shapes: {path}: {shape!r} is given, a dict {{DIMENSION: 'NAME'}} is needed")
    for dimension, name in items.items():
        if not isinstance(dimension, int) or not -dimensions <= dimension < dimensions:
            raise SparsifyError(
                f"save: dynamic_shapes: {path} has {dimensions} dimensions, and none of them is {dimension!r}"
            )
        if name is None or isinstance(name, int) or name == Dim.STATIC:
            continue
        dimension %= dimensions
        named = name if isinstance(name, str) else getattr(name, "__name__", "")
        yield dimension, named or (BATCH if dimension == 0 else f"{path}_{dimension}")


def _check(example: Example) -> None:
    """Raise SparsifyError if dimensions of one name differ in size, or are empty."""
    sizes: dict[str, tuple[int, str]] = {}
    for leaf, path, free in zip(example.leaves, example.paths, example.free, strict=True):
        for d, name in free.items():
            size, first = sizes.setdefault(name, (leaf.shape[d], path))
            if size != leaf.shape[d] or not size:
                raise SparsifyError(
                    f"save: dynamic_shapes: '{name}' is {size} in {first} and {leaf.shape[d]} in {path} of the "
                    "example_input; one name stands for one size, of 1 or more"
                )
