"""Single weights as candidates, with a target in bytes of the sparse file: as few are removed as needed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from torch import Tensor, nn

from ...errors import SparsifyError
from ...formats.codec.weight_encodings import ENCODINGS, choose
from ...formats.model.dtypes import bits
from ...surgery.mask_state.masks import MaskedWeight
from .candidates import EntryCandidates, Masks
from .granularity import Granularity
from .k_lowest import ScoredTensor
from .scopes import Due, Scope

_STEPS = 4096  # resolution of the search: the sparsity of the weights is a multiple of 1 / _STEPS


class ByteCandidates(EntryCandidates):
    """Entries of weights; the sparsity is a fraction of the bytes of the model's dense tensors.

    The tensors of the sparse file take at most the remaining fraction; its header comes on top. Every update tries a
    dozen selections and encodes the masks of each.
    """

    def __init__(
        self, granularity: Granularity, scope: Scope, weights: Mapping[str, MaskedWeight], model: nn.Module
    ) -> None:
        super().__init__(granularity, scope, weights)
        self.widths = {name: weight.parameter.element_size() for name, weight in weights.items()}
        tensors = {id(tensor): tensor for tensor in [*model.parameters(), *_stored_buffers(model)]}
        self.dense = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        pruned = sum(weight.mask.numel() * self.widths[name] for name, weight in weights.items())
        self.rest = self.dense - pruned

    def bytes_of(self, masks: Masks) -> int:
        """Return the bytes of the stored tensors under these masks."""
        return self.rest + sum(_encoded(name, masks[name], self.widths[name]) for name in self.names)

    def check(self, target: Fraction) -> None:
        """Raise SparsifyError if the tensors that are not pruned take more than the target leaves."""
        if self.rest > (1 - target) * self.dense:
            most = int(Fraction(1000 * (self.dense - self.rest), self.dense)) / 1000
            raise SparsifyError(
                f"pruning.sparsity: {float(target):g} of the dense {self.dense:,} bytes leave fewer than the "
                f"{self.rest:,} of what is not pruned; less than {most:g} can go"
            )

    def removed(self, masks: Masks) -> Fraction:
        return 1 - Fraction(self.bytes_of(masks), max(1, self.dense))

    def due(self, masks: Masks, due: Due) -> int:
        # As many as needed: those removed or, if they do not suffice, all.
        gone = sum(masks[name].numel() - int(masks[name].count_nonzero()) for name in self.names)
        return gone if self.removed(masks) >= due.sparsity else sum(masks[name].numel() for name in self.names)

    def select(self, tensors: Sequence[ScoredTensor], masks: Masks, allowed: Masks | None, due: Due) -> Fraction:
        """Remove as many entries as bring the file to the sparsity due, in place; return that sparsity."""
        share = due.sparsity if due.start is None else due.share(self.removed(due.start))
        # `allowed` may be the mask itself, which every try overwrites.
        kept = [replace(one, allowed=None if one.allowed is None else one.allowed.clone()) for one in tensors]
        step = bisect_left(range(_STEPS), True, key=lambda step: self._removed_at(step, kept, masks) >= share)
        self._removed_at(step, kept, masks)
        return share

    def _removed_at(self, step: int, tensors: Sequence[ScoredTensor], masks: Masks) -> Fraction:
        """Write the masks of one sparsity of the search, in place, and return the fraction that they remove."""
        super().select(tensors, masks, None, Due(Fraction(step, _STEPS)))
        return self.removed(masks)


def _stored_buffers(model: nn.Module) -> list[Tensor]:
    """Return the buffers of the dense model's `state_dict`."""
    masks = {f"{name}_mask" for name, _ in model.named_parameters(remove_duplicate=False)}
    names = model.state_dict(keep_vars=True).keys() - masks
    return [buffer for name, buffer in model.named_buffers() if name in names]


def _encoded(name: str, mask: Tensor, width: int) -> int:
    kept = bits(mask).view(np.bool_)
    chosen = choose(name, kept, tuple(mask.shape), width)
    values = int(np.count_nonzero(kept)) if ENCODINGS[chosen.encoding].values == "kept" else mask.numel()
    return values * width + (0 if chosen.stream is None else chosen.stream.size)
