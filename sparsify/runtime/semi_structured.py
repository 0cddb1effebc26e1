"""Conversion of 2:4 sparse linear weights to torch's semi-structured tensors, which are faster on CUDA."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import takes
from ..surgery.conversion.fold import fold
from ..surgery.mask_state.masks import MaskedWeight, masked_weights, original_class
from ..surgery.module_walk import full_name, owner_of

_DTYPES = (torch.float16, torch.bfloat16, torch.int8)


@dataclass(frozen=True)
class SemiStructured:
    """The result of `to_semi_structured`: a plain `model`, the weights `converted`, and those `skipped` with reasons.

    The names are those of the masked weights or, in a model without masks, of the linear layers' weights.
    """

    model: nn.Module
    converted: tuple[str, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        """Return a line with the number converted, and one for each skipped weight."""
        total = len(self.converted) + len(self.skipped)
        lines = [f"semi-structured: {len(self.converted)} of {total} weights"]
        return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in self.skipped.items())])


@takes(model=nn.Module)
def to_semi_structured(model: nn.Module) -> SemiStructured:
    """Return a folded copy of `model` with 2:4 sparse linear weights as torch's semi-structured tensors.

    In a model without masks, e.g. a folded one, the zeros of linear weights are checked. 2:4 means at most two nonzero
    values among each four neighbours of a row, along the input features. torch supports float16, bfloat16 and int8 on
    CUDA, in sizes that are multiples of its blocks; other weights stay dense with zeros, and are listed with the
    reason. Move and cast the model first: `model.half().cuda()`. The copy is for inference: these weights have no
    gradients and cannot be stored in a safetensors file; save the model itself with `format="dense"`.
    """
    folded = fold(model)
    converted: list[str] = []
    skipped: dict[str, str] = {}
    for name, weight in (masked_weights(model) or _linear_weights(model)).items():
        owner, _ = owner_of(folded, name)
        reason = _reason(weight, owner)
        if not reason:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
                try:
                    tensor = torch.sparse.to_sparse_semi_structured(owner.get_parameter("weight").detach())
                except RuntimeError as error:
                    reason = f"torch does not take it: {str(error).strip().splitlines()[0]}"
        if reason:
            skipped[name] = reason
            continue
        owner.register_parameter("weight", nn.Parameter(tensor, requires_grad=False))
        converted.append(name)
    return SemiStructured(folded, tuple(converted), skipped)


def _linear_weights(model: nn.Module) -> dict[str, MaskedWeight]:
    """Return the weights of a plain model's linear layers, as if they carried masks."""
    linear = [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear]
    named = [(full_name(path, "weight"), module) for path, module in linear]
    return {name: MaskedWeight(name, module, "weight") for name, module in named}


def is_two_of_four(weight: Tensor) -> bool:
    """Return whether each four neighbours along the last dimension have at most two values other than 0."""
    if not weight.dim() or weight.shape[-1] % 4:
        return False
    return bool(((weight != 0).reshape(-1, 4).sum(1) <= 2).all())


def _reason(weight: MaskedWeight, owner: nn.Module) -> str:
    """Return why a weight cannot be converted, "" if torch may accept it."""
    kind = original_class(weight.module)
    # Another module may use a subclass's weight, as torch's attention does, and needs a plain one.
    if kind is not nn.Linear or weight.parameter_name != "weight":
        return f"{kind.__name__}: only the weights of nn.Linear are multiplied so"
    values = owner.get_parameter("weight")
    if not is_two_of_four(values):
        return "not 2:4: more than two of four neighbours along the input features are left"
    if values.dtype not in _DTYPES:
        return f"{values.dtype}: torch takes float16, bfloat16 and int8".replace("torch.", "", 1)
    return ""
