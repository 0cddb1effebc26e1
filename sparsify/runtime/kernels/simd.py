"""Code that Numba's loops do not generate: sums kept in vector registers, raw pointers, atomics for a barrier."""

# mypy: ignore-errors
# Numba's and llvmlite's code generation has no types to check against.

from __future__ import annotations

import os
from functools import partial

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...errors import SparsifyError

_FLOAT, _LONG, _INT = ir.FloatType(), ir.IntType(64), ir.IntType(32)


def _width() -> int:
    """Return the number of floats in one vector register of this machine, or SPARSIFY_VECTOR_WIDTH.

    Raises SparsifyError if that is set to anything else. Any of them runs on any machine.
    """
    given = os.environ.get("SPARSIFY_VECTOR_WIDTH")
    if given:
        if given not in ("4", "8", "16"):
            raise SparsifyError(f"SPARSIFY_VECTOR_WIDTH: '{given}' is given; 4, 8 or 16 floats are allowed")
        return int(given)
    found = llvm.get_host_cpu_features()
    return 16 if found.get("avx512f") else 8 if found.get("avx2") else 4


WIDTH = _width()
# Planes and vectors of a tile for weights with few zeros, for the 32 registers of AVX-512 or half as many.
TILE, TILE_VECTORS = 4, 4 if WIDTH == 16 else 2
_VECTOR = ir.VectorType(_FLOAT, WIDTH)


def _splat(builder, scalar):
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, WIDTH), [0] * WIDTH))


def load_vector(builder, pointer):
    loaded = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()))
    loaded.align = 4
    return loaded


def _clamp(builder, value, low, high):
    # Ordered comparisons are false for NaN, which therefore propagates, as in torch.
    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


def weighted_sums(vectors: int, planes: int = 1, rows: int = 1):
    """Return a function for `rows` times `vectors` contiguous vectors of `planes` output planes with the same inputs.

    out[p * size + r * out_row + i] = clamp(biases[p] + sum over j of weights[j * planes + p] * x[offsets[j] +
    r * in_row + i] + residual[p * size + r * out_row + i], low, high), for j from `begin` to `end`, r over the rows
    and i over vectors * WIDTH floats; `residual` is added only if `adds`, and the old `out` only if `resumes`. The sums
    stay in registers; in_row and out_row are row strides.
    """

    @intrinsic
    def sums(
        typing, x, offsets, weights, begin, end, biases, out, residual, size, in_row, out_row, resumes, adds, low, high
    ):
        floats, long, real = types.CPointer(types.float32), types.int64, types.float32
        given = (floats, types.CPointer(types.uint32), floats, long, long, floats, floats, floats, long, long, long)
        return types.void(*given, types.boolean, types.boolean, real, real), generate

    def generate(context, builder, signature, args):
        """Emit the LLVM code: a loop over j whose sums are phi nodes, one for each vector."""
        x, offsets, weights, begin, end, biases, out, residual, size, in_row, out_row, resumes, adds, low, high = args
        number = [ir.Constant(_LONG, n) for n in range(max(planes, rows, vectors * WIDTH) + 1)]
        starts = [_splat(builder, builder.load(builder.gep(biases, [number[p]]))) for p in range(planes)]
        steps = [
            builder.add(builder.mul(out_row, number[r]), number[v * WIDTH]) for r in range(rows) for v in range(vectors)
        ]
        places = [[builder.add(builder.mul(size, number[p]), step) for step in steps] for p in range(planes)]
        before = builder.block
        again, head, body, done = (builder.append_basic_block(name) for name in ("again", "head", "body", "done"))
        builder.cbranch(resumes, again, head)
        builder.position_at_end(again)
        sums = [
            [builder.fadd(start, load_vector(builder, builder.gep(out, [place]))) for place in row]
            for row, start in zip(places, starts, strict=True)
        ]
        builder.branch(head)
        builder.position_at_end(head)
        j = builder.phi(_LONG)
        j.add_incoming(begin, before)
        j.add_incoming(begin, again)
        held = [[builder.phi(_VECTOR) for _ in range(rows * vectors)] for _ in range(planes)]
        for ones, start, earlier in zip(held, starts, sums, strict=True):
            for one, old in zip(ones, earlier, strict=True):
                one.add_incoming(start, before)
                one.add_incoming(old, again)
        builder.cbranch(builder.icmp_signed("<", j, end), body, done)

        builder.position_at_end(body)
        _accumulate(builder, held, j, x, offsets, weights, in_row, rows)
        j.add_incoming(builder.add(j, number[1]), body)
        builder.branch(head)

        builder.position_at_end(done)
        _finish(builder, held, places, out, residual, adds, _splat(builder, low), _splat(builder, high))
        return context.get_dummy_value()

    return sums


def _accumulate(builder, held, j, x, offsets, weights, in_row, rows):
    """Give each sum its value in the next step of the loop: plus weight j of its plane times the inputs."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")
    number = partial(ir.Constant, _LONG)
    # Zero extension: a sign extension would add a check for wrap-around.
    source = builder.gep(x, [builder.zext(builder.load(builder.gep(offsets, [j])), _LONG)])
    sources = [builder.gep(source, [builder.mul(in_row, number(r))]) for r in range(rows)]
    vectors = range(len(held[0]) // rows)
    read = [load_vector(builder, builder.gep(one, [number(v * WIDTH)])) for one in sources for v in vectors]
    row = builder.gep(weights, [builder.mul(j, number(len(held)))])
    for p, sums in enumerate(held):
        weight = _splat(builder, builder.load(builder.gep(row, [number(p)])))
        for one, value in zip(sums, read, strict=True):
            one.add_incoming(builder.call(multiply_add, [weight, value, one]), builder.block)


def _finish(builder, held, places, out, residual, adds, low, high):
    """Store the sums, plus the residual if `adds`, clamped."""
    for sums, row in zip(held, places, strict=True):
        for one, place in zip(sums, row, strict=True):
            with builder.if_else(adds) as (then, otherwise):
                with then:
                    both = builder.fadd(one, load_vector(builder, builder.gep(residual, [place])))
                    store_vector(builder, _clamp(builder, both, low, high), builder.gep(out, [place]))
                with otherwise:
                    store_vector(builder, _clamp(builder, one, low, high), builder.gep(out, [place]))


def store_vector(builder, value, pointer):
    stored = builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer()))
    stored.align = 4


@intrinsic
def pointer(typing, array, index):
    """Return the address of array[index], whatever its bounds."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.gep(data, [args[1]])

    return types.CPointer(array.dtype)(array, types.int64), generate


def address_of(kind):
    """Return a function from a number to a pointer to values of a kind."""

    @intrinsic
    def convert(typing, address):
        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return convert


floats_at, longs_at, offsets_at = address_of(types.float32), address_of(types.int64), address_of(types.uint32)


@intrinsic
def arrive(typing, counters, index):
    """Add one to counters[index], atomically."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        one = ir.Constant(_LONG, 1)
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), one, "seq_cst")

    return types.int64(counters, types.int64), generate


@intrinsic
def exchange(typing, counters, index, value):
    """Set counters[index], atomically, and return the old value."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("xchg", builder.gep(data, [args[1]]), args[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), generate


@intrinsic
def swap_if(typing, counters, index, expected, value):
    """Set counters[index] if it equals `expected` (compare and swap); return whether it did."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        found = builder.cmpxchg(builder.gep(data, [args[1]]), args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(counters, types.int64, types.int64, types.int64), generate


@intrinsic
def seen(typing, counters, index):
    """Return counters[index], read atomically."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "seq_cst", 8)

    return types.int64(counters, types.int64), generate


@intrinsic
def give_way(typing):
    """Yield the processor to another thread, where the system can."""

    def generate(context, builder, signature, args):
        if os.name == "posix":
            kind = ir.FunctionType(_INT, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def half_power_of_two(typing, shifted):
    """Return 2 ** (n - 1) for the float n + 1.5 * 2 ** 23, n whole, from -126 (given as 0) to 129."""

    def generate(context, builder, signature, args):
        # n is in the last bits of the fraction; it is moved to the exponent, which is biased by 127.
        whole = builder.sub(builder.bitcast(args[0], _INT), ir.Constant(_INT, 0x4B400000 - 126))
        return builder.bitcast(builder.shl(whole, ir.Constant(_INT, 23)), _FLOAT)

    return types.float32(types.float32), generate
