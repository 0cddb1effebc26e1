"""Which rule writes the steps of which operation."""

from __future__ import annotations

from typing import Any

import torch

from ..kernels.opcodes import Binary, Opcode
from . import conv_linear as weighted
from . import elementwise as entrywise
from . import epilogue as tails
from . import pooling as pooled
from . import views as looks
from .builder import Rule

aten = torch.ops.aten
RULES: dict[Any, Rule] = {
    aten.convolution.default: weighted.convolution,
    aten.addmm.default: weighted.linear,
    aten.mm.default: weighted.linear,
    aten.native_layer_norm.default: weighted.norm_of_channels,
    aten.add.Tensor: weighted.with_constants(entrywise.joined(Binary.SUM)),
    aten.sub.Tensor: weighted.with_constants(entrywise.joined(Binary.DIFFERENCE)),
    aten.mul.Tensor: weighted.with_constants(entrywise.joined(Binary.PRODUCT)),
    aten.div.Tensor: weighted.with_constants(),
    aten.rsub.Scalar: weighted.with_constants(),
    aten.permute.default: looks.permutation,
    aten.transpose.int: looks.permutation,
    aten.slice.Tensor: looks.part,
    aten.expand.default: looks.view,
    aten.split.Tensor: looks.parts,
    aten.split_with_sizes.default: looks.parts,
    aten.cat.default: looks.concatenation,
    aten.constant_pad_nd.default: looks.border,
    aten.upsample_nearest2d.default: looks.enlarged,
    aten.upsample_nearest2d.vec: looks.enlarged,
    aten.max_pool2d_with_indices.default: pooled.pooling(Opcode.MAX_POOL),
    aten.avg_pool2d.default: pooled.pooling(Opcode.AVG_POOL),
    aten._adaptive_avg_pool2d.default: pooled.adaptive,
    aten.mean.dim: pooled.mean,
    **dict.fromkeys(looks.VIEWS, looks.view),
    **dict.fromkeys(tails.NORMS, weighted.alone),
    **dict.fromkeys(entrywise.CLAMPS, entrywise.clamp),
    **entrywise.ACTIVATIONS,
}
