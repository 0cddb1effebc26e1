"""Encodings of the AVX-512 instructions that generated code is made of (Intel SDM, volume 2, section 2.7).

A table holds one instruction's bytes for each accumulator, without its last operand: a displacement of 1 or 4 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..codegen.executable import ACCUMULATORS

Array = np.ndarray[Any, np.dtype[Any]]

_INPUT = ACCUMULATORS  # the register of the input; the others hold sums
_RAX, _RCX, _RSI, _RDI = 0, 1, 6, 7
_DISPLACED_BYTE, _DISPLACED, _DIRECT = 1, 2, 3  # what the last operand is
_0F, _0F38 = (1, 0), (2, 1)  # opcode map and mandatory prefix: none, 66


def _evex(kind: tuple[int, int], opcode: int, reg: int, second: int, mode: int, rm: int, spread: bool) -> list[int]:
    """Return an instruction of 512 bits: registers `reg` and `second`, and `rm`, a register or where one points.

    `spread` reads one float for all lanes.
    """
    high = rm if mode == _DIRECT else 0
    inverted = [~reg >> 3 & 1, ~high >> 4 & 1, ~high >> 3 & 1, ~reg >> 4 & 1]
    first = inverted[0] << 7 | inverted[1] << 6 | inverted[2] << 5 | inverted[3] << 4 | kind[0]
    middle = (~second & 15) << 3 | 4 | kind[1]
    last = 2 << 5 | spread << 4 | (~second >> 4 & 1) << 3
    return [0x62, first, middle, last, opcode, mode << 6 | (reg & 7) << 3 | rm & 7]


def _each(kind: tuple[int, int], opcode: int, mode: int, rm: int, second: int | None, spread: bool = False) -> Array:
    """Return a row for each accumulator, which is also the second operand if `second` is None."""
    registers = range(ACCUMULATORS)
    return np.array(
        [_evex(kind, opcode, k, k if second is None else second, mode, rm, spread) for k in registers], dtype=np.uint8
    )


def _clamps(opcode: int) -> Array:
    # The second source is the sum: the instruction returns it if it is NaN.
    found = [_evex(_0F, opcode, k, _INPUT, _DIRECT, k, False) for k in range(ACCUMULATORS)]
    return np.array(found, dtype=np.uint8)


def _input(kind: tuple[int, int], opcode: int, mode: int, rm: int) -> Array:
    return np.array([_evex(kind, opcode, _INPUT, 0, mode, rm, False)], dtype=np.uint8)


# vfmadd231ps zmm_k, zmm31, [rax + value]{1to16}; vbroadcastss zmm_k, [rax + value]; vaddps zmm_k, zmm_k, [...]{1to16}
MULTIPLY_ADD = _each(_0F38, 0xB8, _DISPLACED_BYTE, _RAX, _INPUT, spread=True)
SET_BIAS = _each(_0F38, 0x18, _DISPLACED_BYTE, _RAX, 0)
ADD_BIAS = _each(_0F, 0x58, _DISPLACED_BYTE, _RAX, None, spread=True)
# vbroadcastss zmm31, [rax + value]; vmovups zmm31, [rdi + offset]
SET_BOUND = _input(_0F38, 0x18, _DISPLACED_BYTE, _RAX)
READ = _input(_0F, 0x10, _DISPLACED, _RDI)
# vmovups zmm_k, [rsi + plane] and back; vaddps zmm_k, zmm_k, [rcx + plane]
RESUME = _each(_0F, 0x10, _DISPLACED, _RSI, 0)
STORE = _each(_0F, 0x11, _DISPLACED, _RSI, 0)
ADD_RESIDUAL = _each(_0F, 0x58, _DISPLACED, _RCX, None)
# vmaxps zmm_k, zmm31, zmm_k; vminps
AT_LEAST, AT_MOST = _clamps(0x5F), _clamps(0x5D)

BEGIN = bytes.fromhex("4889d0")  # mov rax, rdx
NEXT_VALUES = bytes.fromhex("4805")  # add rax, imm32
# add rdi, imm32; add rsi, 64; add rcx, 64; dec r8; jnz
NEXT_INPUT = bytes.fromhex("4881c7")
NEXT_VECTOR = bytes.fromhex("4883c640 4883c140 49ffc8 0f85")
END = bytes.fromhex("c5f877c3")  # vzeroupper; ret
