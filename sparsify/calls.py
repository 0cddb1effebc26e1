"""A call of a model: its arguments, read from an example, and the tensors in its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import SparsifyError

_KINDS = "a tensor, a tuple of positional arguments, a dict of keyword arguments or sparsify.Inputs(*args, **kwargs)"


class Inputs:
    """The arguments of one call of a model: `Inputs(x, mask=mask)` means `model(x, mask=mask)`.

    Use it where a tensor, a tuple (positional arguments) or a dict (keyword arguments) is not enough: for both kinds of
    arguments together, or for one argument that is itself a tuple or a dict, `Inputs(batch)`. Its two attributes cannot
    be reassigned.
    """

    __slots__ = ("args", "kwargs")
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kwargs", kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Inputs cannot be changed: {name}")

    def __reduce__(self) -> tuple[Callable[..., Inputs], tuple[Any, ...]]:
        return _restored, (self.args, self.kwargs)

    def __repr__(self) -> str:
        parts = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"Inputs({', '.join(parts)})"


def _restored(args: Iterable[Any], kwargs: Mapping[str, Any]) -> Inputs:
    return Inputs(*args, **kwargs)


# So that pytree functions reach the tensors of an example.
pytree.register_pytree_node(
    Inputs,
    lambda inputs: ([inputs.args, dict(inputs.kwargs)], None),
    lambda parts, _: _restored(*parts),
    serialized_type_name="sparsify.Inputs",
)


def inputs_of(example_input: Any, where: str, model: nn.Module | None = None) -> Inputs:
    """Return the call that an example describes: a tuple is positional arguments, a dict keyword arguments.

    Anything else, including a list, is one argument. Raises SparsifyError, one line that begins with `where` and shows
    the right call, for a dict whose keys are not strings and for arguments that `model.forward` does not take.
    """
    if isinstance(example_input, Inputs):
        inputs = example_input
    elif isinstance(example_input, tuple):
        inputs = Inputs(*example_input)
    elif isinstance(example_input, Mapping):
        for key in example_input:
            if not isinstance(key, str):
                raise SparsifyError(
                    f"{where}: a dict as example_input holds keyword arguments, and {key!r} is no argument's name; "
                    "as one argument it is sparsify.Inputs(example_input)"
                )
        inputs = Inputs(**example_input)
    else:
        inputs = Inputs(example_input)
    signature = None if model is None else _signature(model)
    if signature is not None:
        try:
            signature.bind(*inputs.args, **inputs.kwargs)
        except TypeError as error:
            raise SparsifyError(
                f"{where}: the example_input does not fit forward({_names(signature)}): {error}; "
                f"{_advice(signature, example_input)}"
            ) from error
    return inputs


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # written in C, for example: the call itself will show
        return None


def _names(signature: inspect.Signature) -> str:
    bare = [
        one.replace(annotation=one.empty, default=one.empty if one.default is one.empty else ...)
        for one in signature.parameters.values()
    ]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))[1:-1].replace("Ellipsis", "...")


def _advice(signature: inspect.Signature, example_input: Any) -> str:
    if isinstance(example_input, list) and _takes(signature, *example_input):
        return "a list is one argument: give tuple(example_input)"
    if not isinstance(example_input, Inputs) and _takes(signature, example_input):
        return "to give it as one argument, write sparsify.Inputs(example_input)"
    return f"give {_KINDS}"


def _takes(signature: inspect.Signature, *args: Any) -> bool:
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True


@contextmanager
def explained(inputs: Inputs, where: str) -> Iterator[None]:
    """Raise SparsifyError, one line that begins with `where`, for an error in the block if `inputs` hold no tensor.

    Models that take text or numbers run there; if one fails, an array of NumPy, say, was given in place of a tensor.
    """
    try:
        yield
    except Exception as error:
        given = [*inputs.args, *inputs.kwargs.values()]
        if isinstance(error, SparsifyError) or not given or tensors_in(given):
            raise
        kinds = ", ".join(dict.fromkeys(type(one).__name__ for one in given))
        raise SparsifyError(
            f"{where}: the forward fails on the example_input, which holds no tensor ({kinds}): "
            f"{' '.join(str(error).split())}; give {_KINDS}"
        ) from error


def run(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Return `model(*inputs.args, **inputs.kwargs)`."""
    return model(*inputs.args, **inputs.kwargs)


def tensors_in(outputs: Any, _within: tuple[int, ...] = ()) -> list[Tensor]:
    """Return the tensors in a model's output, from inside containers, dataclasses and plain objects."""
    leaves = []
    for leaf in pytree.tree_leaves(outputs):
        within = (*_within, id(leaf))
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        elif id(leaf) in _within:  # an object that refers to itself
            continue
        elif isinstance(leaf, Mapping):
            leaves += tensors_in(dict(leaf), within)
        elif not isinstance(leaf, (nn.Module, type)):
            leaves += tensors_in(held_attributes(leaf), within)
    return leaves


def held_attributes(value: Any) -> dict[str, Any]:
    """Return the attributes that an object holds, by name: with slots, only the fields of a dataclass are known."""
    known = [one.name for one in fields(value)] if is_dataclass(value) else []
    return {name: getattr(value, name) for name in known if hasattr(value, name)} | getattr(value, "__dict__", {})


def plain(outputs: Any) -> Any:
    """Return a model's output as dicts, lists and tuples, which an exported program can hold without the classes."""
    if outputs is None or isinstance(outputs, (Tensor, bool, int, float, str)):
        return outputs
    if isinstance(outputs, Mapping):
        return {key: plain(value) for key, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_asdict"):
        return plain(outputs._asdict())
    if isinstance(outputs, (list, tuple)):
        return (list if isinstance(outputs, list) else tuple)(map(plain, outputs))
    if is_dataclass(outputs) and not isinstance(outputs, type):
        return {one.name: plain(getattr(outputs, one.name)) for one in fields(outputs)}
    if not hasattr(outputs, "__dict__"):
        return outputs
    # An object such as a key-value cache also stores lengths, dtypes and devices, which are not outputs.
    return {key: plain(value) for key, value in vars(outputs).items() if tensors_in(value)}
