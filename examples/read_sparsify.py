"""Read a sparsify file with NumPy alone: python read_sparsify.py FILE lists its tensors."""

import json
import math
import sys
import zlib

import numpy as np

# NumPy has no bfloat16 and no 8-bit floats: they come back as unsigned integers with their bits.
TYPES = {"BOOL": "?", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "BF16": "<u2"}
TYPES |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "UI" for size in (1, 2, 4, 8)}


def read(path):
    """Return tensors and masks by name, and the metadata. The tensors are effective weights: zero where removed."""
    with open(path, "rb") as file:
        content = file.read()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    meta = header.pop("__metadata__")
    seal = b'"header_crc32":"%s"' % meta["header_crc32"].encode()
    blank = content[8:start].replace(seal, b'"header_crc32":"00000000"')
    assert meta["version"] in "123" and zlib.crc32(blank) == int(meta["header_crc32"], 16)
    tensors, masks = {}, {}
    for name, checksum in zip(sorted(header), meta["crc32"].split(" "), strict=True):
        begin, end = (start + offset for offset in header[name]["data_offsets"])
        assert zlib.crc32(content[begin:end]) == int(checksum, 16), name
        values = np.frombuffer(content[begin:end], TYPES.get(header[name]["dtype"], "u1"))
        tensors[name] = values.reshape(header[name]["shape"])
    for name, entry in json.loads(meta.get("masked", "{}")).items():
        suffix, decode = MASKS[entry["encoding"]]
        stream = tensors.pop(name + suffix) if suffix else None
        kept = tensors.pop(name + ".kept", None)
        masks[name] = decode(stream, tuple(entry["shape"]), len(kept) if kept is not None else None)
        if kept is not None:
            tensors[name] = np.zeros(entry["shape"], kept.dtype)
            tensors[name][masks[name]] = kept
    tensors |= {alias: tensors[name] for alias, name in json.loads(meta.get("aliases", "{}")).items()}
    return tensors, masks, meta


def full(stream, shape, kept):
    return np.ones(shape, bool)


def bitmask(stream, shape, kept):
    return np.unpackbits(stream, count=math.prod(shape), bitorder="little").astype(bool).reshape(shape)


def numbers(stream, digits, count):
    """Return the numbers whose binary digits are in that many rows of bits, the lowest first, and what follows them."""
    split = digits * ((count + 7) // 8)
    rows = np.unpackbits(stream[:split].reshape(digits, (count + 7) // 8), axis=1, count=count, bitorder="little")
    return sum((row.astype(int) << digit for digit, row in enumerate(rows)), np.zeros(count, int)), stream[split:]


def delta(stream, shape, kept):
    removed, digits = bool(stream[0] >> 7), int(stream[0] & 127)
    count = (math.prod(shape) - kept if removed else kept) + 1
    low, rest = numbers(stream[1:], digits, count)
    index, ends = np.arange(count), np.flatnonzero(np.unpackbits(rest, bitorder="little"))
    mask = np.full(math.prod(shape), removed)
    mask[(((ends - index) << digits) + np.cumsum(low) + index)[:-1]] = not removed
    return mask.reshape(shape)


def n_of_m(stream, shape, kept):
    n, m, axis = (int(value) for value in stream[:3])
    patterns = np.array([pattern for pattern in range(1 << m) if pattern.bit_count() == n])
    codes, _ = numbers(stream[3:], (len(patterns) - 1).bit_length(), math.prod(shape) // m)
    groups = (*shape[:axis], shape[axis] // m, *shape[axis + 1 :])
    chosen = patterns[codes].reshape(groups)
    mask = np.stack([chosen >> i & 1 for i in range(m)], axis=axis + 1)
    return mask.astype(bool).reshape(shape)


def units(stream, shape, kept):
    live = []
    for size in shape[:2]:
        live.append(bitmask(stream[: (size + 7) // 8], (size,), None))
        stream = stream[(size + 7) // 8 :]
    view = tuple(int(alive.sum()) for alive in live) + shape[2:]
    mask = np.zeros(shape, bool)
    mask[np.ix_(*live)] = (full, bitmask, delta, n_of_m)[stream[0]](stream[1:], view, kept)
    return mask


MASKS = {"bitmask": (".mask", bitmask), "whole": (".mask", bitmask), "raw": (".mask", bitmask), "full": ("", full)}
MASKS |= {"delta": (".gaps", delta), "n:m": (".groups", n_of_m), "units": (".units", units)}

if __name__ == "__main__":
    for name, tensor in read(sys.argv[1])[0].items():
        print(name, tensor.dtype, tensor.shape)
