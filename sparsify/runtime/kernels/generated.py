"""The kernel that runs generated machine code: it loops over an output's vectors, and the code computes their sums."""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .loops import FAST as _FAST
from .loops import clear_run, share
from .opcodes import Column as at
from .simd import WIDTH, pointer

_LINE = 64  # bytes


@intrinsic
def run_code(typing, address, x, out, values, residual, vectors):
    """Call the code at an address (program/row_code.py) for a number of contiguous vectors."""
    floats = types.CPointer(types.float32)

    def generate(context, builder, signature, args):
        one, many = ir.FloatType().as_pointer(), ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [one, one, one, one, many])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, floats, floats, floats, floats, types.int64), generate


@intrinsic
def prefetch(typing, address):
    """Prefetch the cache line at an address into the L2 cache, from which code is fetched too."""

    def generate(context, builder, signature, args):
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        read, second, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(function, [builder.inttoptr(args[0], byte), read, second, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@njit(**_FAST)
def convolve_generated(op, buffers, values, indptr, part, parts):
    """As `convolve`. A block of code computes sums of some output channels over some input channels, for one vector.

    Threads share the vectors, or the groups of output channels if that is more even.
    """
    out, residual, size, count = op[at.OUT], op[at.RESIDUAL], op[at.OUT_PLANE], op[at.CHANNELS]
    lines, span, wide, groups, chunks = op[at.RUNS], op[at.RUN], op[at.TILE_WIDTH], op[at.GROUPS], op[at.CHUNKS]
    in_row, out_row, rows = op[at.IN_ROW_STRIDE] * op[at.STRIDE_Y], op[at.ROW_STRIDE], op[at.TILE_ROWS]
    vectors = (span + WIDTH - 1) // WIDTH
    pieces = lines if lines > 1 else vectors
    line, last_line, begin, end, group, last_group = 0, lines, 0, vectors, 0, groups
    # The largest share determines the time of all.
    if ((pieces + parts - 1) // parts) * groups > ((groups + parts - 1) // parts) * pieces:
        group, last_group = share(groups, part, parts)
    elif lines > 1:
        line, last_line = share(lines, part, parts)
    else:
        begin, end = share(vectors, part, parts)
    other = residual if residual >= 0 else out
    first = line * out_row + begin * WIDTH
    beyond = last_line * out_row if lines > 1 else end * WIDTH
    if last_line == lines and end == vectors:
        beyond = op[at.HEIGHT] * out_row
    for row in range(line, last_line, rows):
        for block in range(begin * WIDTH, end * WIDTH, wide):
            number = min(wide, end * WIDTH - block) // WIDTH
            for one in range(group, last_group):
                plane = op[at.FIRST] + block + (count * one // groups) * size
                for chunk in range(chunks):
                    where = op[at.INDPTR] + 2 * (one * chunks + chunk)
                    code, entries = indptr[where], pointer(values, indptr[where + 1])
                    # Otherwise the processor would fetch code from memory line by line and wait for each.
                    for line_of_code in range(indptr[where + 2], indptr[where + 4], _LINE):
                        prefetch(line_of_code)
                    for r in range(row, min(row + rows, last_line)):
                        to = plane + r * out_row
                        x = pointer(buffers, op[at.IN] + r * in_row + block * op[at.STRIDE_X])
                        run_code(code, x, pointer(buffers, out + to), entries, pointer(buffers, other + to), number)
    if first < beyond:
        clear_run(buffers, out, op, count * group // groups, count * last_group // groups, first, beyond)
