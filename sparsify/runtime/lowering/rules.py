"""The table of lowering rules: which function lowers which operation."""

from __future__ import annotations

from typing import Any

import torch

from ..kernels.opcodes import Binary, Opcode
from . import conv_linear, elementwise, epilogue, pooling, views
from .builder import Rule

aten = torch.ops.aten
RULES: dict[Any, Rule] = {
    aten.convolution.default: conv_linear.convolution,
    aten.addmm.default: conv_linear.linear,
    aten.mm.default: conv_linear.linear,
    aten.native_layer_norm.default: conv_linear.layer_norm,
    aten.add.Tensor: conv_linear.with_constants(elementwise.binary(Binary.SUM)),
    aten.sub.Tensor: conv_linear.with_constants(elementwise.binary(Binary.DIFFERENCE)),
    aten.mul.Tensor: conv_linear.with_constants(elementwise.binary(Binary.PRODUCT)),
    aten.div.Tensor: conv_linear.with_constants(),
    aten.rsub.Scalar: conv_linear.with_constants(),
    aten.permute.default: views.permutation,
    aten.transpose.int: views.permutation,
    aten.slice.Tensor: views.slicing,
    aten.expand.default: views.view,
    aten.split.Tensor: views.splitting,
    aten.split_with_sizes.default: views.splitting,
    aten.cat.default: views.concatenation,
    aten.constant_pad_nd.default: views.padding,
    aten.upsample_nearest2d.default: views.upsampling,
    aten.upsample_nearest2d.vec: views.upsampling,
    aten.max_pool2d_with_indices.default: pooling.pooling(Opcode.MAX_POOL),
    aten.avg_pool2d.default: pooling.pooling(Opcode.AVG_POOL),
    aten._adaptive_avg_pool2d.default: pooling.adaptive,
    aten.mean.dim: pooling.mean,
    **dict.fromkeys(views.VIEWS, views.view),
    **dict.fromkeys(epilogue.NORMS, conv_linear.standalone_norm),
    **dict.fromkeys(elementwise.CLAMPS, elementwise.clamp),
    **elementwise.ACTIVATIONS,
}
