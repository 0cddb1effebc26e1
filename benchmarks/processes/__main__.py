"""`python -m benchmarks.processes`: writes the section *processes* of results.md, in about ten minutes on two cores."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file

from ..record import environment, record
from .formulas import check_lines, past_this_machine
from .killed import KINDS
from .tables import cost_lines, same_lines

SIZES = (1, 2, 4)
_TRAIN = ["train", "recipes/union_mask.yaml", "--model", "timm:test_resnet", "--device", "cpu", "--no-verify"]
_TRAIN += ["--set", "data.batch_size=500", "--set", "train.epochs=4", "--set", "prune.every=1it"]
_TRAIN += ["--set", "train.checkpoint.every=1it"]


@click.command()
@click.option("--kept", metavar="DIR", help="What an earlier call measured, and kept here, is taken from there.")
def main(kept: str | None) -> None:
    """Measure, and write the section."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        found = {size: _measured(folder, size, Path(kept or work)) for size in SIZES}
        kills = _kills(folder)
        agents = _two_agents(folder)
    body = [
        environment("torch", "accelerate", threads=1),
        "",
        "Processes are torchrun's, joined by gloo, on two cores that others used too: times are of the processor.",
        "",
        *same_lines(found),
        "",
        *kills,
        "",
        agents,
        "",
        *cost_lines(found),
        "",
        *check_lines(found),
        "",
        *past_this_machine(),
    ]
    record("processes", "\n".join(body))


def _measured(folder: Path, size: int, kept: Path) -> list[dict[str, Any]]:
    """Return the result of each process of a launch of `size`, cached in `kept`."""
    files = [kept / f"{size}-{rank}.pt" for rank in range(size)]
    if not all(file.exists() for file in files):
        _end(_start(_torchrun(size), "benchmarks.processes.worker", [str(folder)]))
        click.echo(f"{size} processes: done")
        for file in files if kept != folder else ():
            shutil.copy(folder / file.name, file)
    return [torch.load(file, weights_only=False) for file in files]


def _kills(folder: Path) -> list[str]:
    """Return a table: runs of two processes, killed and resumed, against one left alone."""
    _end(_start(_torchrun(2), "benchmarks.processes.killed", ["none", *_TRAIN, "--out", str(folder / "whole")]))
    lines = [
        "| killed (`kill -9`), of two processes | all had ended after | last record | resumed |",
        "|---|---|---|---|",
    ]
    for number, kind in enumerate(KINDS):
        run = folder / f"killed-{number}"
        process = _start(_torchrun(2), "benchmarks.processes.killed", [kind, *_TRAIN, "--out", str(run)])
        started = _dead_since(process, run)
        process.wait()
        seconds = time.monotonic() - started
        step = next((one["step"] for one in reversed(_records(run))), 0)
        _end(_start(_torchrun(2), "benchmarks.processes.killed", ["none", "train", "--resume", str(run)]))
        same = "to the same bits" if not _differing(folder / "whole", run) else "to OTHER bits"
        lines.append(f"| {kind} | {seconds:.0f} s | step {step} | {same} |")
        click.echo(lines[-1])
    return lines


def _dead_since(process: subprocess.Popen[bytes], run: Path) -> float:
    """Return when the run's files were last written, by the monotonic clock: about when its process was killed."""
    process.wait()
    newest = max(path.stat().st_mtime for path in run.rglob("*") if path.is_file())
    return time.monotonic() - (time.time() - newest)


def _two_agents(folder: Path) -> str:
    """Return a sentence on a run of two torchrun agents, a process each, that meet on the loopback."""
    run, port = folder / "agents", _free_port()
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "a"]
    where += ["--rdzv-endpoint", f"127.0.0.1:{port}"]
    agents = [_start(where, "benchmarks.processes.killed", ["none", *_TRAIN, "--out", str(run)]) for _ in range(2)]
    for agent in agents:
        _end(agent)
    same = "the same bits as two processes of one agent" if not _differing(folder / "whole", run) else "OTHER bits"
    return f"Two torchrun agents on the loopback (`--nnodes 2`), a process each, wrote one run with {same}."


def _differing(one: Path, other: Path) -> list[str]:
    found = []
    for path in one.rglob("*.safetensors"):
        if path.parent.name != "checkpoints":
            ours, theirs = load_file(path), load_file(other / path.relative_to(one))
            if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
                found.append(path.name)
    return found + ["metrics.jsonl"] * (_records(one) != _records(other))


def _records(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _torchrun(size: int) -> list[str]:
    return ["--nproc-per-node", str(size), "--master-port", str(_free_port())]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _start(launcher: Sequence[str], module: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", module, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise click.ClickException(f"{' '.join(map(str, process.args))}: ended with {process.returncode}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
