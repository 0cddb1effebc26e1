"""Activation functions in float32, in forms that LLVM vectorises: no calls, no branches.

Each is within a few units in the last place of the true value, or of the largest term of a difference. NaN propagates,
and infinities give torch's results.
"""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

import numpy as np
from numba import njit

from .loops import FAST
from .opcodes import Activation
from .simd import half_power_of_two

_f = np.float32
_SHIFT = _f(1.5 * 2**23)  # adding it rounds a number to an integer in the last bits
# ln 2 in two terms, the first with few bits, so that the remainder of x is exact (Cody and Waite); as in Cephes.
_PER_LN2, _LN2_HIGH, _LN2_LOW = _f(1.44269504), _f(0.693359375), _f(-2.12194440e-4)


@njit(**FAST, inline="always")
def _powers(x):
    """Return s and q with exp(x) = 2 * s * (1 + q), s a power of two. Polynomial of Cephes' expf."""
    # 2 ** -127 is subnormal and becomes 0; 2 ** 128 becomes infinity in 2 * s.
    x = _f(-87.5) if x < _f(-87.5) else x
    x = _f(89.5) if x > _f(89.5) else x
    shifted = x * _PER_LN2 + _SHIFT
    n = shifted - _SHIFT
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = _f(1.9875691500e-4)
    p = p * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    return half_power_of_two(shifted), p * (r * r) + r


@njit(**FAST, inline="always")
def _exp(x):
    s, q = _powers(x)
    return s * (_f(1) + q) * _f(2)


@njit(**FAST, inline="always")
def sigmoid(x, parameter):
    return _f(1) / (_f(1) + _exp(-x))


@njit(**FAST, inline="always")
def silu(x, parameter):
    return x / (_f(1) + _exp(-x))


@njit(**FAST, inline="always")
def gelu(x, parameter):
    """x times the normal distribution, by the two polynomials of N. Juffa's erff; the tail without cancellation."""
    a = x * _f(0.70710678118654752)
    t, s = abs(a), a * a
    tail = _f(-1.72853470e-5) * t + _f(3.83197126e-4)
    tail = tail * s + (_f(-3.88396438e-3) * t + _f(2.42546219e-2))
    tail = tail * t + _f(-1.06777877e-1)
    tail = tail * t + _f(-6.34846687e-1)
    tail = tail * t + _f(-1.28717512e-1)
    tail = _exp(tail * t - t)  # 1 - erf(t)
    # Beyond this the tail is 0 in float32, and the polynomial is no longer valid.
    tail = _f(0) if t > _f(10) else tail
    near = _f(-5.96761703e-4)
    near = near * s + _f(4.99119423e-3)
    near = near * s + _f(-2.67681349e-2)
    near = near * s + _f(1.12819925e-1)
    near = near * s + _f(-3.76125336e-1)
    near = near * s + _f(1.28379166e-1)
    near = _f(1) + (near * a + a)
    far = tail if a < _f(0) else _f(2) - tail
    return _f(0.5) * x * (far if t > _f(0.927734375) else near)


@njit(**FAST, inline="always")
def gelu_tanh(x, parameter):
    return x / (_f(1) + _exp(_f(-1.5957691216) * (x + _f(0.044715) * x * x * x)))


@njit(**FAST, inline="always")
def tanh(x, parameter):
    """Cephes' tanhf."""
    t, s = abs(x), x * x
    far = _f(1) - _f(2) / (_exp(t + t) + _f(1))
    near = _f(-5.70498872745e-3)
    near = near * s + _f(2.06390887954e-2)
    near = near * s + _f(-5.37397155531e-2)
    near = near * s + _f(1.33314422036e-1)
    near = near * s + _f(-3.33332819422e-1)
    near = near * s * x + x
    return near if t < _f(0.625) else -far if x < _f(0) else far


@njit(**FAST, inline="always")
def hardsigmoid(x, parameter):
    y = x + _f(3)
    y = _f(0) if y < _f(0) else y
    return (_f(6) if y > _f(6) else y) / _f(6)


@njit(**FAST, inline="always")
def hardswish(x, parameter):
    y = x + _f(3)
    y = _f(0) if y < _f(0) else y
    return x * ((_f(6) if y > _f(6) else y) / _f(6))


@njit(**FAST, inline="always")
def leaky_relu(x, parameter):
    return x if x > _f(0) else x * parameter


@njit(**FAST, inline="always")
def elu(x, parameter):
    s, q = _powers(_f(0) if x > _f(0) else x)
    return x if x > _f(0) else ((s - _f(0.5)) + s * q) * _f(2) * parameter


@njit(**FAST, inline="always")
def mish(x, parameter):
    """x * tanh(log(1 + exp(x))) with both functions expanded; beyond 20 that is x."""
    e = _exp(_f(20) if x > _f(20) else x)
    e = e * (e + _f(2))
    return x * (e / (e + _f(2)))


def _over(function):
    """Return a loop that applies a function to contiguous floats in place, times a factor."""

    @njit(**FAST)
    def loop(buffers, begin, count, parameter, factor):
        first = np.uint64(begin)
        for i in range(np.uint64(count)):
            buffers[first + i] = function(buffers[first + i], parameter) * factor

    return loop


_sigmoid, _silu, _gelu, _gelu_tanh, _tanh = (_over(f) for f in (sigmoid, silu, gelu, gelu_tanh, tanh))
_hardsigmoid, _hardswish, _leaky_relu, _elu, _mish = (_over(f) for f in (hardsigmoid, hardswish, leaky_relu, elu, mish))


@njit(**FAST)
def apply(function, buffers, begin, count, parameter, factor):
    """Replace `count` floats by a function of them, times a factor; `parameter` is a slope or the like."""
    if function == Activation.SIGMOID:
        _sigmoid(buffers, begin, count, parameter, factor)
    elif function == Activation.SILU:
        _silu(buffers, begin, count, parameter, factor)
    elif function == Activation.GELU:
        _gelu(buffers, begin, count, parameter, factor)
    elif function == Activation.GELU_TANH:
        _gelu_tanh(buffers, begin, count, parameter, factor)
    elif function == Activation.TANH:
        _tanh(buffers, begin, count, parameter, factor)
    elif function == Activation.HARDSIGMOID:
        _hardsigmoid(buffers, begin, count, parameter, factor)
    elif function == Activation.HARDSWISH:
        _hardswish(buffers, begin, count, parameter, factor)
    elif function == Activation.LEAKY_RELU:
        _leaky_relu(buffers, begin, count, parameter, factor)
    elif function == Activation.ELU:
        _elu(buffers, begin, count, parameter, factor)
    elif function == Activation.MISH:
        _mish(buffers, begin, count, parameter, factor)
