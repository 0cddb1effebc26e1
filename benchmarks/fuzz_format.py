"""Read mutated files for some seconds: each must raise SparsifyError or give a consistent state.

    python -m benchmarks.fuzz_format SECONDS [--seed 0] [--atheris]

The files hold a weight of every encoding. Half of the mutations have matching checksums, to get past their check:
bytes of streams and values, and the header's shapes, offsets, encodings and counts. A mutation without them must be
refused. With `--atheris` that library chooses the mutations of half the time by code coverage; without it all are
random. A failure leaves fuzz-failure.safetensors behind. The counts become a section of results.md.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, MutableSequence, Sequence
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from types import FunctionType

import torch
from timm.layers import StdConv2d
from torch import nn

import sparsify
from sparsify.export.save import inspect_file, read_state, save
from sparsify.formats.codec.weight_encodings import ENCODINGS
from sparsify.surgery.mask_state.masks import get_masks, set_masks

from .mutations import Bytes, mutated
from .record import environment, record

Counts = MutableSequence[int]

# A weight has at most 2048 entries of up to 8 bytes for each byte stored, and its mask; some of it is held twice.
MEMORY = 1 << 24
MEMORY_OF_BYTE = 2048 * 20


def valid_model() -> nn.Module:
    """Return a model whose masks have a weight for every encoding."""
    torch.manual_seed(0)
    layers = [nn.Linear(30, 20), nn.Linear(4, 4), nn.Linear(9, 9), nn.Linear(40, 1), nn.Linear(24, 12)]
    model = nn.Sequential(*layers, nn.Conv2d(30, 20, 3), StdConv2d(3, 5, 3))
    sparsify.convert(model)
    masks = {name: torch.rand(mask.shape) for name, mask in get_masks(model).items()}
    corner = torch.zeros(20, 30, 3, 3, dtype=torch.bool)
    corner[1::5, 2::6] = True
    set_masks(
        model,
        {
            "0.weight": masks["0.weight"] < 0.1,
            "1.weight": masks["1.weight"] < 2,
            "2.weight": masks["2.weight"] < 0.5,
            "3.weight": torch.arange(40).view(1, 40) != 7,
            "4.weight": (masks["4.weight"].view(12, 6, 4).argsort(dim=2) < 2).view(12, 24),
            "5.weight": corner & (masks["5.weight"] < 0.4),
            "6.weight": masks["6.weight"] < 0.5,
        },
    )
    return model


def valid_file(folder: Path) -> bytes:
    """Return a file with a weight of every encoding."""
    save(valid_model(), folder / "valid", spec="timm:x", arguments={"a": 1})
    found = {row.encoding for row in inspect_file(folder / "valid").rows}
    assert found == {*ENCODINGS, "plain"}, found
    return (folder / "valid").read_bytes()


def check(path: Path, whole: bytes, content: bytes, good: bool) -> bool:
    """Read a file and return whether it was accepted. Raises an error for an inconsistent state."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        state, masks, _ = read_state(path)
        summary = inspect_file(path)
    except sparsify.SparsifyError as error:
        assert "\n" not in str(error), error
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY + MEMORY_OF_BYTE * len(content), f"{peak} bytes for a file of {len(content)}"
    assert good or content == whole, "an altered file was accepted"
    for row in summary.rows:
        assert tuple(state[row.name].shape) == row.shape, row
        if row.kept is not None and row.name in masks:
            assert masks[row.name].shape == state[row.name].shape, row
            assert int(masks[row.name].sum()) == row.kept, row
            if row.encoding != "raw":
                # Compare bits: a NaN or a negative zero under the mask must show.
                removed = state[row.name][~masks[row.name]].contiguous()
                assert not removed.view(torch.uint8).any(), row
    return True


def target(folder: Path) -> tuple[Callable[[bytes], None], Counts]:
    """Return a function that reads the mutation drawn from bytes, and its counts: refused, accepted."""
    whole, counts = valid_file(folder), RawArray("q", 2)  # shared with a forked process
    assert check(folder / "a", whole, whole, True)

    def one_input(data: bytes) -> None:
        content, good = mutated(whole, Bytes(data))
        try:
            counts[check(folder / "a", whole, content, good)] += 1
        except BaseException:
            Path("fuzz-failure.safetensors").write_bytes(content)
            raise

    return one_input, counts


def main() -> None:
    """Fuzz for the seconds asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a thread pool does not survive a fork: the child would wait for it
    with tempfile.TemporaryDirectory() as folder:
        one_input, counts = target(Path(folder))
        seconds, found = given.seconds / (2 if given.atheris else 1), []
        generator, until = random.Random(given.seed), time.monotonic() + seconds
        while time.monotonic() < until:
            one_input(generator.randbytes(80))
        found.append(_line(f"random mutations, {seconds:.0f} s", counts))
        if given.atheris:
            one_input, counts = target(Path(folder))
            _guided(one_input, Path(folder), seconds, generator)
            found.append(_line(f"mutations that atheris chose by the code that they reach, {seconds:.0f} s", counts))
    print(*found, sep="\n")
    record("fuzz_format", body(found, given.seed))


def _guided(one_input: Callable[[bytes], None], folder: Path, seconds: float, generator: random.Random) -> None:
    """Let atheris choose the bytes, in a forked process, since it ends its process."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"atheris found a failure, or failed (status {status})")
        return
    import atheris

    for name in [name for name in sys.modules if name.startswith("sparsify.formats.")]:
        for function in vars(sys.modules[name]).values():
            if isinstance(function, FunctionType) and function.__module__ == name:
                atheris.instrument_func(function)
    corpus = folder / "corpus"  # else it begins with inputs of a few bytes, whose mutations are nearly all the same
    corpus.mkdir()
    for number in range(32):
        (corpus / str(number)).write_bytes(generator.randbytes(80))
    limits = [f"-max_total_time={seconds:.0f}", "-max_len=160", "-timeout=7200", "-len_control=0"]
    atheris.Setup([sys.argv[0], *limits, f"-seed={generator.randrange(1, 2**31)}", str(corpus)], one_input)
    atheris.Fuzz()


def _line(what: str, counts: Counts) -> str:
    return f"{what}: {counts[0]:,} refused in one line, {counts[1]:,} accepted that hold together"


def body(found: Sequence[str], seed: int) -> str:
    """Return the section of results.md; any failure would have ended the program before."""
    lines = [
        environment("torch", threads=1),
        "",
        f"Mutated model files with a weight of every encoding (seed {seed}), read and inspected; about half have good "
        "checksums. Each was refused in one line and in bounded memory, or is whole: shapes, counts and masks agree, "
        "and what a mask removes is zero. None without good checksums was accepted.",
        "",
    ]
    return "\n".join([*lines, *(f"- {line}" for line in found)])


if __name__ == "__main__":
    main()
