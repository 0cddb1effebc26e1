"""Atomic operations on counters, for the barriers between threads."""

# mypy: ignore-errors
# Numba's and llvmlite's code generation has no types to check against.

from __future__ import annotations

import os

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def arrive(typing, counters, index):
    """Add one to counters[index], atomically."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        one = ir.Constant(ir.IntType(64), 1)
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
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate
