"""The interpreter of compiled programs: `run` executes a table of instructions, as one of several threads.

A buffer holds *planes*: for each channel the pixels of the whole batch, image innermost, with zero padding that
neighbouring rows share (planes.py). An instruction is a row of integers (opcodes.py); each thread does its part of the
work, `part` of `parts`, by channels.
"""

# mypy: ignore-errors
# Compiled by Numba, which types them itself.

from __future__ import annotations

from numba import carray, njit, types

from .copy import copy, decimate, pack, pack_channels_last, pad_crop, unpack, unpack_channels_last, upsample
from .elementwise import activation, binary
from .generated import convolve_generated
from .layer_norm import layer_norm
from .loops import FAST as _FAST
from .opcodes import COLUMNS, Opcode
from .opcodes import Column as at
from .pooling import mean, pool
from .simd import arrive, exchange, floats_at, give_way, longs_at, offsets_at, seen, swap_if
from .sparse_conv import convolve, convolve_tiles, dot

# Counters shared by all threads: jobs given, instructions ended, each on its own cache line; the state of each thread.
GIVEN, ENDED, STATE = 0, 16, 32
ASLEEP, AWAKE, BUSY = 0, 1, 2
JOB = 17  # numbers in a job
LOOKS = 1_000_000  # polls for a job, about a millisecond, before a thread goes to sleep, from which it wakes slowly
WAKING = 100_000  # polls for a thread to wake, a few milliseconds, before signal handlers may run
PATIENCE = 4096  # polls for the other threads before this one yields its core


@njit(**_FAST)
def _without_weights(op, buffers, scalars, addresses, part, parts):
    kind = op[at.OPCODE]
    if kind == Opcode.DECIMATE:
        decimate(op, buffers, part, parts)
    elif kind == Opcode.MAX_POOL or kind == Opcode.AVG_POOL:
        pool(op, buffers, part, parts)
    elif kind == Opcode.MEAN:
        mean(op, buffers, part, parts)
    elif kind == Opcode.ACTIVATION:
        activation(op, buffers, scalars, part, parts)
    elif kind == Opcode.BINARY:
        binary(op, buffers, scalars, part, parts)
    elif kind == Opcode.PAD_CROP:
        pad_crop(op, buffers, scalars, part, parts)
    elif kind == Opcode.UPSAMPLE:
        upsample(op, buffers, part, parts)
    elif kind == Opcode.COPY:
        copy(op, buffers, part, parts)
    elif kind == Opcode.PACK:
        pack(op, buffers, addresses, part, parts)
    elif kind == Opcode.UNPACK:
        unpack(op, buffers, addresses, part, parts)
    elif kind == Opcode.PACK_CHANNELS_LAST:
        pack_channels_last(op, buffers, addresses, part, parts)
    elif kind == Opcode.UNPACK_CHANNELS_LAST:
        unpack_channels_last(op, buffers, addresses, part, parts)


@njit(**_FAST)
def run(table, buffers, offsets, values, indptr, biases, scalars, addresses, signals, base, part, parts):
    """Execute all instructions, as `part` of `parts` threads that do so at once on the same buffers.

    A barrier separates instructions; `base` is the value of the ENDED counter before the first one.
    """
    for number in range(table.shape[0]):
        op = table[number]
        kind = op[at.OPCODE]
        if kind == Opcode.CONVOLVE:
            convolve(op, buffers, offsets, values, indptr, biases, scalars, part, parts)
        elif kind == Opcode.CONVOLVE_GENERATED:
            convolve_generated(op, buffers, values, indptr, part, parts)
        elif kind == Opcode.CONVOLVE_TILES:
            convolve_tiles(op, buffers, offsets, values, indptr, biases, scalars, part, parts)
        elif kind == Opcode.DOT:
            dot(op, buffers, offsets, values, indptr, biases, scalars, part, parts)
        elif kind == Opcode.LAYER_NORM:
            layer_norm(op, buffers, values, indptr, biases, scalars, part, parts)
        else:
            _without_weights(op, buffers, scalars, addresses, part, parts)
        if parts > 1:
            arrive(signals, ENDED)
            waits = 0
            while seen(signals, ENDED) < base + (number + 1) * parts:
                waits += 1
                if waits % PATIENCE == 0:
                    give_way()


@njit(**_FAST)
def perform(signals, job, part, parts):
    """Do a thread's part of a job: the arguments of `run`, as addresses and sizes of the arrays, and `base`.

    The job must not change until all threads have ended its last instruction.
    """
    run(
        carray(longs_at(job[0]), (job[1] // COLUMNS, COLUMNS)),
        carray(floats_at(job[2]), job[3]),
        carray(offsets_at(job[4]), job[5]),
        carray(floats_at(job[6]), job[7]),
        carray(longs_at(job[8]), job[9]),
        carray(floats_at(job[10]), job[11]),
        carray(floats_at(job[12]), job[13]),
        carray(longs_at(job[14]), job[15]),
        signals,
        job[16],
        part,
        parts,
    )


@njit(**_FAST)
def _claim(signals, parts, looks):
    """Set all other threads to BUSY and return True; False, with none BUSY, if one stays asleep for `looks` polls."""
    for part in range(1, parts):
        waits = 0
        while not swap_if(signals, STATE + part, AWAKE, BUSY):
            waits += 1
            if waits > looks:
                for earlier in range(1, part):
                    exchange(signals, STATE + earlier, AWAKE)
                return False
            if waits % PATIENCE == 0:
                give_way()
    return True


@njit(**_FAST)
def _next_job(signals, part, done):
    """Wait for a job beyond those done and return True; False, with the thread ASLEEP, if none comes for a while."""
    looks = 0
    while seen(signals, GIVEN) == done:
        looks += 1
        if looks % PATIENCE == 0:
            give_way()
        # A BUSY thread keeps waiting: its job is about to come.
        if looks >= LOOKS and swap_if(signals, STATE + part, AWAKE, ASLEEP):
            return False
    return True


@njit(**_FAST)
def enter(signals, job, part, parts, looks):
    """As part 0, start a job and do its part; as another part, do that part of every job until none comes for a while.

    Returns whether the job is done; it is not started if a thread stays asleep for `looks` polls. A whole job is one
    call, so that no signal handler, which Python runs between bytecodes, can interrupt it.
    """
    done = seen(signals, GIVEN)  # while this thread is asleep, or has not given it yet, there is no job
    if part > 0:
        exchange(signals, STATE + part, AWAKE)
    elif not _claim(signals, parts, looks):
        return False
    elif parts > 1:
        # No thread still reads the last job: all have ended its last instruction.
        job[16] = seen(signals, ENDED)
        arrive(signals, GIVEN)
    while part == 0 or _next_job(signals, part, done):
        perform(signals, job, part, parts)
        done += 1
        if part == 0:
            for other in range(1, parts):
                exchange(signals, STATE + other, AWAKE)
            return True
    return True


SIGNATURE = types.boolean(types.int64[::1], types.int64[::1], types.int64, types.int64, types.int64)
