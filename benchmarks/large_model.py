"""`python -m benchmarks.large_model`: time and memory of convert and verify for models of several kinds and sizes.

Each case is a process of its own, whose peaks of resident memory are read from /proc (Linux). Weights are few numbers
again and again, since only time and memory are looked at.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from sparsify import convert, verify

from .record import environment, record

# Name -> width and count of layers; a transformer's layer has 12 width^2 weights.
CASES = {"transformer": (2560, 13), "small transformer": (1024, 8), "MLP": (4096, 6), "CNN": (512, 24)}


def build(kind: str, width: int, layers: int) -> tuple[nn.Module, Tensor]:
    """Return a model without random initialisation, which would take longer than its conversion, and its input."""
    with torch.device("meta"):
        if kind == "MLP":
            model: nn.Module = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        elif kind == "CNN":
            model = nn.Sequential(*(nn.Conv2d(width, width, 3, padding=1) for _ in range(layers)))
        else:
            layer = nn.TransformerEncoderLayer(width, 16, 4 * width, batch_first=True)
            model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape[-1:]) * width**-0.5)
    return model, torch.randn(2, width, 4, 4) if kind == "CNN" else torch.randn(2, 4, width)


def memory(what: str) -> int:
    """Return VmRSS, the bytes that are in memory, or VmHWM, the most that were since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def forget_peak() -> int:
    """Begin a new peak and return what is in memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def measure(kind: str) -> str:
    """Return the row of one case."""
    small, x = build(kind, 16, 1)
    convert(small)
    verify(small, x)  # what is imported and compiled on first use
    started = time.perf_counter()
    model, x = build(kind, *CASES[kind])
    built = time.perf_counter() - started
    size = sum(parameter.nbytes for parameter in model.parameters())
    before, started = forget_peak(), time.perf_counter()
    convert(model)
    converting, peak = time.perf_counter() - started, memory("VmHWM") - before
    before, started = forget_peak(), time.perf_counter()
    if not verify(model, x).ok:
        raise AssertionError(f"{kind}: not verified")
    verifying, more = time.perf_counter() - started, memory("VmHWM") - before
    count = sum(parameter.numel() for parameter in model.parameters())
    of_convert, of_verify = f"{converting:.2f} | {peak / size:.2f}", f"{verifying:.1f} | {more / size:.2f}"
    return f"| {kind} | {count / 1e6:.0f} M | {built:.1f} | {of_convert} | {of_verify} |"


@click.command()
@click.option("--only", default="", help="One of the cases, by name.")
@click.option("--one", default="", hidden=True)
def main(only: str, one: str) -> None:
    """Measure every case and write the section of results.md."""
    warnings.simplefilter("ignore")
    if one:
        print(measure(one))
        return
    command = [sys.executable, "-m", "benchmarks.large_model", "--one"]
    found = [subprocess.check_output([*command, kind], text=True) for kind in CASES if only in ("", kind)]
    header = "| model, float32 | parameters | build, s | convert, s | its peak | verify, s | its peak |"
    note = "Peaks are of resident memory beyond what was there before, in copies of the model. Masks take 0.25 copies."
    about = [environment("torch", threads=torch.get_num_threads()), note]
    body = [*about, "", header, "|---|---|---|---|---|---|---|", *"".join(found).splitlines()]
    print("\n".join(body))
    record("large_model", "\n".join(body))


if __name__ == "__main__":
    main()
