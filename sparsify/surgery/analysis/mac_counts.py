"""Multiply-adds of recorded operations, and the operations that cannot be counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from ..recording.context import leaves
from ..recording.ops import Op, Value, pointwise


def _product(op: Op) -> int:
    return prod(op.results[0].shape) * _factors(op)[0].shape[-1]


def _factors(op: Op) -> list[Value]:
    """Return the two factors of a product; an added tensor comes before them."""
    return op.inputs[1:3] if _plain(op).startswith(("add", "badd", "_addmm")) else op.inputs[:2]


def _batches_summed(op: Op) -> int:
    first, second = _factors(op)
    return prod(first.shape) * second.shape[-1]


def _convolution(op: Op) -> int:
    value, weight, *_ = op.inputs
    transposed = op.args[6]
    return prod((value if transposed else op.results[0]).shape) * prod(weight.shape[1:])


def _deformable(op: Op) -> int:
    return prod(op.results[0].shape) * prod(op.inputs[1].shape[1:])


def _over_time(op: Op) -> int:
    value, kernel = op.inputs[:2]
    return prod(op.results[0].shape) * kernel.shape[0] * value.shape[-1]


def _attention(op: Op) -> int:
    """Return the cost of queries times keys and of attention times values, each [..., tokens, size]."""
    query, key, value = op.inputs[:3]
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _recurrent(op: Op) -> int:
    """Return the cost of using every matrix entry once per position of the sequence."""
    value, *others = op.inputs
    if _plain(op) == "mkldnn_rnn_layer":
        others = op.inputs[1:3]
    elif _plain(op) in ("_cudnn_rnn", "miopen_rnn"):
        others = leaves(op.args[1], Value)
    else:  # torch's functions for whole sequences: input, states, weights
        others = leaves(op.args[2], Value)
    return prod(value.shape[:-1]) * sum(prod(one.shape) for one in others if len(one.shape) == 2)


def _bilinear(op: Op) -> int:
    """Return the number of entries of three tensors broadcast together, each unsqueezed where it lacks a dimension."""
    shapes = []
    for value, lacking in zip(op.args[:3], op.args[3:6], strict=True):
        shape = list(value.shape)
        for d in sorted(lacking):
            shape.insert(d, 1)
        shapes.append(shape)
    return prod(max(sizes) for sizes in zip(*shapes, strict=True))


def _each(names: str, count: Callable[[Op], int]) -> dict[str, Callable[[Op], int]]:
    return dict.fromkeys(names.split(), count)


# Fused attention under the names of its kernels; products with one matrix per group of rows.
ATTENTIONS = tuple(
    f"_scaled_dot_product_{kernel}"
    for kernel in "flash_attention_for_cpu flash_attention efficient_attention cudnn_attention "
    "fused_attention_overrideable".split()
)
GROUPED = ("_grouped_mm", "transformers::grouped_mm_fallback")
COUNTS: dict[str, Callable[[Op], int]] = {
    **_each("mm addmm bmm baddbmm mv addmv dot vdot _scaled_mm _int_mm _addmm_activation linear", _product),
    **dict.fromkeys(GROUPED, _product),
    **_each("addbmm", _batches_summed),
    **_each("convolution", _convolution),
    **_each("conv_tbc", _over_time),
    **_each("torchvision::deform_conv2d", _deformable),
    **_each("_trilinear", _bilinear),
    **_each("mkldnn_rnn_layer _cudnn_rnn miopen_rnn lstm gru rnn_tanh rnn_relu", _recurrent),
    **dict.fromkeys(ATTENTIONS, _attention),
}
# Prefixes of the names of PyTorch's other multiplying operations. All others are element-wise, movements, comparisons,
# sorts or sums.
_MULTIPLYING = tuple(
    "_linalg linalg_ _fft_ _cdist _pdist _sparse_addmm _sparse_mm _sparse_sparse_matmul sspaddmm hspmm cholesky "
    "_cholesky lu_ triangular_solve ormqr geqrf orgqr householder_product mkldnn_ miopen_ cudnn_ quantized_ qlinear "
    "_flash_attention _efficient_attention _cudnn_attention _native_multi_head _transformer_encoder _weight_int "
    "_slow_conv slow_conv _conv_depthwise _scaled_grouped_mm _nested _triton".split()
)
_CHEAP = tuple(
    "_linalg_check_errors linalg_vector_norm linalg_cross torchvision::nms torchvision::roi_ "
    "torchvision::ps_roi_".split()
)
_ELSEWHERE = ("numpy", "data_ptr")  # tensors handed to other libraries


def multiply_adds(op: Op) -> int:
    """Return the multiply-adds of one operation, 0 if it has none or if `uncounted` names it."""
    count = COUNTS.get(_plain(op))
    return count(op) if count is not None and op.results else 0


def is_counted(name: str) -> bool:
    """Return whether the multiply-adds of operations called `name` are counted."""
    return name.rstrip("_") in COUNTS


def uncounted(ops: Iterable[Op]) -> tuple[str, ...]:
    """Return "module: operation" for each operation that may have multiply-adds but cannot be counted."""
    found = {f"{op.module or 'the model'}: {_plain(op)}": None for op in ops if _is_uncounted(op)}
    return tuple(found)


def _is_uncounted(op: Op) -> bool:
    name = _plain(op)
    if name in COUNTS or name.startswith(_CHEAP):
        return False
    if "::" in name:
        return not pointwise(op)
    return name in _ELSEWHERE if op.overload is None else name.startswith(_MULTIPLYING)


def _plain(op: Op) -> str:
    """Return an operation's name without the suffixes of in-place and out variants."""
    return op.name.removesuffix("(out=)").rstrip("_")
