"""The table of lowering rules: which function lowers which operation."""

from __future__ import annotations

from functools import partial
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
    aten.add.Tensor: partial(conv_linear.arithmetic, Binary.SUM),
    aten.sub.Tensor: partial(conv_linear.arithmetic, Binary.DIFFERENCE),
    aten.mul.Tensor: partial(conv_linear.arithmetic, Binary.PRODUCT),
    aten.div.Tensor: partial(conv_linear.arithmetic, None),
    aten.rsub.Scalar: partial(conv_linear.arithmetic, None),
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
    aten.max_pool2d_with_indices.default: partial(pooling.pooling, Opcode.MAX_POOL),
    aten.avg_pool2d.default: partial(pooling.pooling, Opcode.AVG_POOL),
    aten._adaptive_avg_pool2d.default: pooling.adaptive,
    aten.mean.dim: pooling.mean,
    **dict.fromkeys(views.VIEWS, views.view),
    **dict.fromkeys(epilogue.NORMS, conv_linear.standalone_norm),
    **dict.fromkeys(elementwise.CLAMPS, elementwise.clamp),
    **elementwise.ACTIVATIONS,
}
