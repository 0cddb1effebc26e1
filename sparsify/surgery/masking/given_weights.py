"""Folded modules that store the weight that their forward would compute, for forwards without a torch.nn equivalent."""

from __future__ import annotations

from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from .operand_mode import Operands, eagerly


class Given:
    """Mixin for the class of such a module; `given_weights` names the parameters that hold the weights."""

    given_weights: tuple[str, ...] = ()
    given_eagerly = True  # of a pickle made before modules had this attribute

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Skip the original class's hook, which would register or check this class as a new one."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: tuple[Any, ...] = super().__reduce_ex__(protocol)  # type: ignore[assignment]
        return (_new_given, (type(self).__mro__[2],), *reduced[2:])


def with_given_weights(module: nn.Module, names: list[str], *, eager: bool) -> nn.Module:
    """Make `module`, in place, use its parameters `names` instead of the weights it would compute from them.

    `eager`: run the forward eagerly under torch.compile, which hides the operations that use them from a mode. Returns
    `module`.
    """
    module.__dict__["given_weights"] = tuple(names)
    module.__dict__["given_eagerly"] = eager
    module.__class__ = given_class(type(module))  # type: ignore[arg-type]
    return module


@cache
def given_class(original: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of `original` that uses stored weights (cached)."""

    @wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() and self.given_eagerly:
            return eagerly(forward, self, *args, **kwargs)
        given = [getattr(self, name) for name in self.given_weights]  # tensors, if the module is masked again
        stored = [(weight, partial(_stored, weight)) for weight in given]
        with Operands(stored, [*self.buffers(), *(one for one in self._parameters.values() if one is not None)]):
            return original.forward(self, *args, **kwargs)

    namespace = {"forward": forward, "__module__": original.__module__}
    namespace |= {"__qualname__": original.__qualname__, "__doc__": original.__doc__}
    metaclass: Any = type(original)
    made: type[nn.Module] = metaclass(original.__name__, (Given, original), namespace)
    return made


def _new_given(original: type[nn.Module]) -> nn.Module:
    cls = given_class(original)  # type: ignore[arg-type]
    return cls.__new__(cls)


def _stored(parameter: Any, computed: Any) -> Any:
    return parameter.detach() if isinstance(computed, Tensor) and not computed.requires_grad else parameter
