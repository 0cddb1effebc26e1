"""Writing of benchmarks/results.md: one section per benchmark, with the hardware and versions it was measured on."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import llvmlite.binding as llvm
import torch

from sparsify.hardware import processor

RESULTS = Path(__file__).parent / "results.md"
TITLE = "# Measurements\n\nEach section is written by the benchmark it is named after, `python -m benchmarks.NAME`.\n"
Row = dict[str, Any]


def environment(*packages: str, threads: int | None = None) -> str:
    """Return one line with the date, the processor and its instruction set, and versions of a measurement."""
    cores = f"{os.cpu_count()} cores" + (f", {threads} threads" if threads else "")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    kind = f"{processor()} ({llvm.get_host_cpu_name()}, {torch.backends.cpu.get_cpu_capability()})"
    return f"{date.today().isoformat()}; {kind}, {cores}; Python {platform.python_version()}, {versions}."


def seconds(values: Sequence[float]) -> str:
    """Return the median of some durations with their spread and number: "0.512 s (0.498 to 0.530, n = 7)"."""
    return f"{median(values):.3g} s ({min(values):.3g} to {max(values):.3g}, n = {len(values)})"


def record(section: str, body: str, results: Path | None = None) -> None:
    """Replace the section of results.md under the heading `section` by `body`; other sections stay."""
    results = results or RESULTS  # read at the call, so that tests can replace it
    text = results.read_text() if results.exists() else TITLE
    entry = f"## {section}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(section)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if pattern.search(text):
        text = pattern.sub(lambda _: f"{entry}\n", text)
    else:
        text = f"{text.rstrip()}\n\n{entry}"
    results.write_text(f"{text.rstrip()}\n")


def rows(file: Path) -> dict[str, Row]:
    """Return the rows of a JSON-lines file by model, the last of each."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {row["model"]: row for row in map(json.loads, lines)}
