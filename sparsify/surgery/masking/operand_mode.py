"""A mode that replaces the weights that a forward computes from its parameters, at the operations that use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy
from torch.overrides import TorchFunctionMode

from ... import ops
from ..discovery.linear_ops import PRODUCTS, name_of
from ..discovery.node_kinds import CASTS, REARRANGING, is_rearranging

Replace = Callable[[Any], Any]


def _functions(names: Iterable[str]) -> tuple[Any, ...]:
    """Return torch's functions, methods and operators of these names; torch.compile needs the objects themselves."""
    homes = (torch, torch.functional, torch.linalg, F, Tensor)
    spelled = [form for name in names for form in (name, f"__{name}__", f"__r{name}__", f"_{name}")]
    found = [getattr(home, name) for home in homes for name in spelled if callable(getattr(home, name, None))]
    return (*found, *(getattr(Tensor, name).__get__ for name in names if name in ("T", "mT", "H", "mH")))


_CONV_AND_LINEAR = tuple(ops.MASKED)
_PRODUCTS = _functions(PRODUCTS)
_ARRANGING = _functions(sorted(REARRANGING))


class Operands(TorchFunctionMode):
    """While active, weights computed from the given parameters are replaced in conv, linear and matrix products.

    `replacements` are pairs of a parameter and a function that maps the weight computed from it, which has the
    parameter's shape, to its replacement. The mode follows tensors computed only from parameters and `others`; if a
    weight is rearranged before its use (transposed, cast), the mode replaces the weight and repeats the rearrangement.
    In conv and linear, an operand of unknown origin (after a custom autograd function) is recognised by its shape.
    `replaced` holds the indices of the replacements made so far.
    """

    def __init__(self, replacements: Sequence[tuple[Any, Replace]], others: Sequence[Tensor]) -> None:
        super().__init__()
        self.replacements = replacements
        self.replaced: set[int] = set()
        # Tensors that depend on no input, with the indices of the parameters that each is computed from.
        self.known: list[tuple[Any, tuple[int, ...]]] = [(p, (i,)) for i, (p, _) in enumerate(replacements)]
        self.known += [(other, ()) for other in others]
        # Rearrangements: the result, its base, and a function that rearranges another base in the same way.
        self.arranged: list[tuple[Any, Any, Replace]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONV_AND_LINEAR:
            if len(args) > 1:
                args = (args[0], self._replaced(args[1], by_shape=True), *args[2:])
            else:
                kwargs = {**kwargs, "weight": self._replaced(kwargs["weight"], by_shape=True)}
            return func(*args, **kwargs)
        origins = [self._origin(tensor) for tensor in _tensors((*args, *kwargs.values()))]
        if func in _PRODUCTS and None in origins:
            args = tuple(self._each_replaced(value) for value in args)
            return func(*args, **{key: self._each_replaced(value) for key, value in kwargs.items()})
        result = func(*args, **kwargs)
        arranging = func in _ARRANGING
        if args and result is args[0] and not arranging:  # written in place: no longer a rearranged parameter
            self.arranged = [one for one in self.arranged if one[0] is not result]
        # A weight may be cast or reshaped by an input's dtype or sizes, so for rearrangements only the base counts.
        if None not in origins or (arranging and origins[0]):
            sources = tuple(dict.fromkeys(i for origin in origins for i in origin or ()))
            self.known += [(tensor, sources) for tensor in _tensors((result,))]
            if arranging and args and isinstance(args[0], (Tensor, Proxy)):
                self._keep_arranged(func, args, kwargs, result)
        return result

    def _each_replaced(self, value: Any) -> Any:
        return [self._replaced(item) for item in value] if isinstance(value, (tuple, list)) else self._replaced(value)

    def _keep_arranged(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        def again(base: Any) -> Any:
            return func(base, *args[1:], **kwargs)

        if isinstance(result, (tuple, list)):
            parts = [(part, args[0], lambda base, i=i: again(base)[i]) for i, part in enumerate(result)]
            self.arranged += parts
        else:
            self.arranged.append((result, args[0], again))

    def _origin(self, tensor: Any) -> tuple[int, ...] | None:
        """Return the indices of the parameters that a tensor is computed from; None if it may depend on an input."""
        for known, sources in self.known:
            if known is tensor:
                return sources
        is_parameter = isinstance(tensor, nn.Parameter) or (isinstance(tensor, Proxy) and tensor.node.op == "get_attr")
        return () if is_parameter else None

    def _replaced(self, operand: Any, by_shape: bool = False) -> Any:
        """Return the replacement of `operand`, or itself; `by_shape`: recognise one of unknown origin by its shape."""
        if not isinstance(operand, (Tensor, Proxy)):
            return operand
        origin = self._origin(operand)
        if origin is None and not by_shape:
            return operand
        for base, how in self._bases(operand):
            sources = range(len(self.replacements)) if origin is None else origin
            found = [i for i in sources if _same_shape(self.replacements[i][0], base)]
            if found and (origin is not None or len(found) == 1):
                self.replaced.add(found[0])
                replaced = self.replacements[found[0]][1](base)
                for step in how:
                    replaced = step(replaced)
                return replaced
        return operand

    def _bases(self, operand: Any) -> list[tuple[Any, list[Replace]]]:
        """Return the bases of a rearranged operand, the first one first, with the steps from each to the operand."""
        found: list[tuple[Any, list[Replace]]] = [(operand, [])]
        for result, base, again in reversed(self.arranged):
            if result is found[0][0]:
                found.insert(0, (base, [again, *found[0][1]]))
        return found


@torch.compiler.disable  # type: ignore[untyped-decorator]
def eagerly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function outside of torch.compile, under which a mode does not see every operation."""
    return function(*args, **kwargs)


def _same_shape(parameter: Any, operand: Any) -> bool:
    if isinstance(operand, Proxy) or isinstance(parameter, Proxy):
        # In a trace shapes are unknown, so the origin decides; modes do not see operators there either.
        turned = isinstance(operand, Proxy) and is_rearranging(operand.node) and name_of(operand.node) not in CASTS
        return not turned
    if torch._C._get_tracing_state():  # torch.jit would warn of a comparison of sizes
        return bool(parameter.is_same_size(operand))
    return bool(parameter.shape == operand.shape)


def _tensors(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (Tensor, Proxy)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
